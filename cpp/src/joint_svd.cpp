#include <fastlr/joint_svd.hpp>

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include <fastlr/linear_operator.hpp>
#include <fastlr/orthonormalize.hpp>
#include <fastlr/randomized_svd.hpp>

#include "checks.hpp"
#include "for_each.hpp"

namespace fastlr {
namespace {

// What rounding may add to a bound of w columns, relative to the norm: V_j is orthonormal to 10 sqrt(w) u, and A_j V_j
// and E_j are rounded to as much together.
double rounding(int64_t w, double u) { return 20 * std::sqrt(static_cast<double>(w)) * u; }

double norm_of(const at::Tensor& values) { return at::linalg_vector_norm(values).item<double>(); }

// The norm of values beyond the leading `rank`.
double tail_of(const at::Tensor& values, int64_t rank) {
  return norm_of(values.narrow(0, rank, values.size(0) - rank));
}

std::vector<double> as_vector(const at::Tensor& values) {
  const auto numbers = values.to(at::kCPU, at::kDouble).contiguous();
  return {numbers.const_data_ptr<double>(), numbers.const_data_ptr<double>() + numbers.numel()};
}

at::Tensor as_tensor(const std::vector<double>& values) { return at::tensor(values, at::kDouble); }

at::Tensor real_like(const at::Tensor& values, const at::Tensor& like) {
  return values.to(like.options().dtype(at::kDouble));
}

}  // namespace

JointFactors joint_factors(at::ArrayRef<at::Tensor> matrices, int64_t width, int64_t power_iters, int64_t seed,
                           std::string_view caller) {
  const int64_t count = static_cast<int64_t>(matrices.size());
  TORCH_CHECK_VALUE(count > 0, caller, ": matrices must not be empty");
  const auto& like = matrices[0];
  const int64_t m = like.size(0), w = std::min(width, m);
  const auto wide = like.options().dtype(double_type(like));
  JointFactors factors{at::empty({count, m, w}, wide), at::zeros({count, w}, at::kDouble),
                       at::zeros({count}, at::kDouble), at::zeros({count}, at::kDouble), unit_roundoff(like)};
  for_each(count, like.is_cpu(), [&](int64_t j) {
    check_interrupt();
    const auto& A = matrices[j];
    check_finite(A, std::string(caller).c_str(), ("matrices[" + std::to_string(j) + "]").c_str());
    const double magnitude = largest_magnitude(A);
    const int exponent = exponent_in_range(A, magnitude);
    // Columns of zeros where A has fewer: the basis is completed.
    auto image = at::zeros({m, w}, wide);
    double rest = 0;
    if (const int64_t own = std::min(w, A.size(1)); own > 0) {
      const auto unit = scaled(A, exponent);
      const SvdOptions options{.rank = own, .oversample = 0, .power_iters = power_iters, .seed = seed};
      const auto Vh = randomized_svd(as_operator(unit), options).Vh;
      const auto product = at::mm(unit, materialized_adjoint(Vh));
      image.narrow(1, 0, own).copy_(product);
      const auto left = at::addmm(unit, product, Vh, 1, -1);
      rest = at::linalg_vector_norm(left, 2, at::IntArrayRef(), false, double_type(left)).item<double>();
    }
    const auto [U, S, Wh] = at::linalg_svd(image, /*full_matrices=*/false);
    const double norm = std::hypot(rest, norm_of(S));
    factors.U.select(0, j).copy_(U);
    if (norm == 0) return;
    factors.S[j].copy_(S / norm);
    factors.rest[j].fill_(rest / norm);
    factors.norm[j].fill_(std::ldexp(norm, -exponent));
  });
  return factors;
}

JointBounds joint_bounds(const JointFactors& factors, int64_t rank) {
  const auto& U = factors.U;
  const int64_t count = U.size(0), w = U.size(2);
  const double largest = largest_magnitude(factors.norm);
  if (largest == 0) return {0, 0, 0};
  const auto shares = factors.norm / largest;
  const auto S = factors.S * shares.unsqueeze(1);
  const double norm = norm_of(shares), rest = norm_of(factors.rest * shares);
  const auto bound = [&](double outside) {
    return std::min(1.0, std::hypot(rest, outside) / norm + rounding(w, factors.roundoff));
  };

  // Of the k-th values the largest is captured.
  const auto descending = std::get<0>(S.sort(0, /*descending=*/true));
  const double weyl = bound(std::hypot(norm_of(descending.narrow(0, 1, count - 1)), tail_of(descending[0], rank)));

  const auto all = (U * real_like(S, U).unsqueeze(1)).transpose(0, 1).flatten(1);
  double least = std::numeric_limits<double>::infinity();
  for (int64_t i = 0; i < count; ++i) {
    check_interrupt();
    const auto basis = U[i].narrow(1, 0, rank);
    least = std::min(least, norm_of(at::addmm(all, basis, at::mm(basis.mH(), all), 1, -1)));
  }
  const double residual = std::min(weyl, bound(least));
  return {weyl, residual, std::min(residual, bound(tail_of(at::linalg_svdvals(all), rank)))};
}

JointBound parse_joint_bound(std::string_view name) {
  if (name == "weyl") return JointBound::weyl;
  if (name == "residual") return JointBound::residual;
  if (name == "estimate") return JointBound::estimate;
  TORCH_CHECK_VALUE(false, "cluster_matrices: bound must be 'weyl', 'residual' or 'estimate', got '", name, "'");
}

namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();

// Two clusters' norms, relative to that of their union.
struct Shares {
  double norm, a, b;

  Shares(double norm_a, double norm_b) : norm(std::hypot(norm_a, norm_b)) {
    a = norm > 0 ? norm_a / norm : 0;
    b = norm > 0 ? norm_b / norm : 0;
  }
};

// Clusters that grow, each called by its first member. All of a cluster is kept relative to its norm.
class Clusters {
 public:
  Clusters(const JointFactors& factors, int64_t rank, double tol)
      : norm_(as_vector(factors.norm)),
        rank_(rank),
        tol_(tol),
        rounding_(rounding(factors.U.size(2), factors.roundoff)) {}
  virtual ~Clusters() = default;

  // Bounds for the union of cluster a and each of the others; infinite ones may stand for any above limit().
  virtual std::vector<double> predict(int64_t a, const std::vector<int64_t>& others) const = 0;
  // How far a prediction may be above what merge() finds.
  virtual double prediction_error() const { return 0.0; }
  double limit() const { return tol_ + prediction_error(); }
  // Makes a and b one cluster, called a, if the bound for it is within the tolerance.
  virtual bool merge(int64_t a, int64_t b) = 0;
  virtual double bound(int64_t a) const = 0;
  virtual at::Tensor basis(int64_t a) const = 0;

 protected:
  Shares shares(int64_t a, int64_t b) const { return {norm_[a], norm_[b]}; }
  double rounded_up(double error, int64_t a) const { return norm_[a] > 0 ? std::min(1.0, error + rounding_) : 0.0; }

  std::vector<double> norm_;
  int64_t rank_;
  double tol_, rounding_;
};

// Truncated factors U diag(S); what a truncation drops is counted with the rest.
class FactoredClusters final : public Clusters {
 public:
  FactoredClusters(const JointFactors& factors, int64_t rank, double tol)
      : Clusters(factors, rank, tol),
        U_(factors.U.transpose(0, 1).contiguous()),
        S_(factors.S.clone()),
        rest_(as_vector(factors.rest)) {}

  // By the eigenvalues of the Gram matrix of both factors, for which U_aᴴ U_b is all that it takes.
  std::vector<double> predict(int64_t a, const std::vector<int64_t>& others) const override {
    const int64_t w = U_.size(2), count = static_cast<int64_t>(others.size());
    std::vector<double> share_a, share_b, bounds;
    for (const int64_t b : others) {
      const auto share = shares(a, b);
      share_a.push_back(share.a);
      share_b.push_back(share.b);
      bounds.push_back(std::hypot(share.a * rest_[a], share.b * rest_[b]));
    }
    const auto index = at::tensor(others, at::kLong);
    const auto one = real_like(as_tensor(share_a).unsqueeze(1) * S_[a], U_);
    const auto two = real_like(as_tensor(share_b).unsqueeze(1) * S_.index_select(0, index), U_);
    const auto products = at::mm(U_.flatten(1).mH(), U_.select(1, a)).unflatten(0, {U_.size(1), w});
    const auto cross = two.unsqueeze(2) * products.index_select(0, index.to(U_.device())) * one.unsqueeze(1);
    const auto squares = at::cat({one, two}, 1).square();
    const auto kept = worth_trying(squares, cross, bounds);
    if (kept.empty()) return std::vector<double>(count, kNever);

    const auto chosen = at::tensor(kept, at::kLong).to(U_.device());
    auto gram = at::zeros({static_cast<int64_t>(kept.size()), 2 * w, 2 * w}, U_.options());
    gram.diagonal(0, 1, 2).copy_(squares.index_select(0, chosen));
    // Only the lower triangle is read.
    gram.narrow(1, w, w).narrow(2, 0, w).copy_(cross.index_select(0, chosen));
    const auto tails = as_vector(tails_of(gram));
    std::vector<double> found(count, kNever);
    for (size_t i = 0; i < kept.size(); ++i) found[kept[i]] = std::hypot(bounds[kept[i]], tails[i]);
    return found;
  }

  // The square root of what rounding does to eigenvalues.
  double prediction_error() const override {
    return 8 * std::sqrt(static_cast<double>(U_.size(2)) * std::numeric_limits<double>::epsilon());
  }

  bool merge(int64_t a, int64_t b) override {
    const int64_t w = U_.size(2);
    const auto share = shares(a, b);
    const auto [U, values, Vh] = at::linalg_svd(at::cat({factor(a, share.a), factor(b, share.b)}, 1), false);
    const auto S = values.cpu();
    const double rest = std::hypot(share.a * rest_[a], share.b * rest_[b], tail_of(S, w));
    if (share.norm > 0 && std::hypot(rest, tail_of(S.narrow(0, 0, w), rank_)) + rounding_ > tol_) return false;
    U_.select(1, a).copy_(U.narrow(1, 0, w));
    S_[a].copy_(S.narrow(0, 0, w));
    rest_[a] = rest;
    norm_[a] = share.norm;
    return true;
  }

  double bound(int64_t a) const override { return rounded_up(std::hypot(rest_[a], tail_of(S_[a], rank_)), a); }

  at::Tensor basis(int64_t a) const override { return U_.select(1, a).narrow(1, 0, rank_); }

 private:
  at::Tensor factor(int64_t a, double share) const { return U_.select(1, a) * real_like(share * S_[a], U_); }

  // Where a lower bound of what rank_ leaves is within the limit: the leading eigenvalues of a Gram matrix G add up to
  // sqrt(rank) ‖G‖_F at most.
  std::vector<int64_t> worth_trying(const at::Tensor& squares, const at::Tensor& cross,
                                    const std::vector<double>& rest) const {
    const auto norm = (squares.square().sum(1) + 2 * squared_magnitude(cross).sum(at::IntArrayRef({1, 2}))).sqrt();
    const auto least = as_vector(squares.sum(1) - std::sqrt(static_cast<double>(rank_)) * norm);
    std::vector<int64_t> kept;
    for (size_t i = 0; i < least.size(); ++i)
      if (rest[i] * rest[i] + least[i] <= limit() * limit()) kept.push_back(static_cast<int64_t>(i));
    return kept;
  }

  // The norms of all singular values but the leading ones.
  at::Tensor tails_of(const at::Tensor& gram) const {
    constexpr int64_t grain = 8;
    auto squares = at::empty({gram.size(0), gram.size(1)}, gram.options().dtype(at::kDouble));
    for_ranges(gram.size(0), grain, gram.is_cpu(), [&](int64_t begin, int64_t end) {
      squares.narrow(0, begin, end - begin).copy_(at::linalg_eigvalsh(gram.narrow(0, begin, end - begin)));
    });
    return squares.narrow(1, 0, gram.size(1) - rank_).clamp_min(0).sum(1).sqrt();
  }

  at::Tensor U_;  // m x N x w
  at::Tensor S_;
  std::vector<double> rest_;
};

// Singular values: of the k-th ones of two clusters the larger is captured and the smaller is not. The factors are
// there for the bases alone.
class SpectralClusters final : public Clusters {
 public:
  SpectralClusters(const JointFactors& factors, int64_t rank, double tol)
      : Clusters(factors, rank, tol),
        factored_(factors, rank, std::numeric_limits<double>::infinity()),
        w_(factors.S.size(1)),
        S_(as_vector(factors.S)),
        rest_(as_vector(factors.rest)) {}

  std::vector<double> predict(int64_t a, const std::vector<int64_t>& others) const override {
    std::vector<double> bounds;
    for (const int64_t b : others) {
      double tail = 0;
      const double rest = union_of(a, b, [&](int64_t k, double larger) {
        if (k >= rank_) tail = std::hypot(tail, larger);
      });
      bounds.push_back(std::min(1.0, std::hypot(rest, tail) + rounding_));
    }
    return bounds;
  }

  bool merge(int64_t a, int64_t b) override {
    if (shares(a, b).norm > 0 && predict(a, {b})[0] > tol_) return false;
    std::vector<double> merged(w_);
    rest_[a] = union_of(a, b, [&](int64_t k, double larger) { merged[k] = larger; });
    std::copy(merged.begin(), merged.end(), S_.begin() + a * w_);
    norm_[a] = shares(a, b).norm;
    factored_.merge(a, b);
    return true;
  }

  double bound(int64_t a) const override {
    double tail = 0;
    for (int64_t k = rank_; k < w_; ++k) tail = std::hypot(tail, S_[a * w_ + k]);
    return rounded_up(std::hypot(rest_[a], tail), a);
  }

  at::Tensor basis(int64_t a) const override { return factored_.basis(a); }

 private:
  // Visits the larger of all pairs of values; the norm of the smaller ones and of the rest.
  template <typename Visit>
  double union_of(int64_t a, int64_t b, const Visit& visit) const {
    const auto share = shares(a, b);
    double rest = std::hypot(share.a * rest_[a], share.b * rest_[b]);
    for (int64_t k = 0; k < w_; ++k) {
      const auto [smaller, larger] = std::minmax({share.a * S_[a * w_ + k], share.b * S_[b * w_ + k]});
      rest = std::hypot(rest, smaller);
      visit(k, larger);
    }
    return rest;
  }

  FactoredClusters factored_;
  int64_t w_;
  std::vector<double> S_, rest_;
};

// What each cluster has outside of each member's basis; the best member's basis is that of its cluster.
class ProjectedClusters final : public Clusters {
 public:
  ProjectedClusters(const JointFactors& factors, int64_t rank, double tol)
      : Clusters(factors, rank, tol), U_(factors.U), count_(U_.size(0)), outside_(count_ * count_), members_(count_) {
    const auto all = (U_ * real_like(factors.S, U_).unsqueeze(1)).transpose(0, 1).flatten(1);
    for (int64_t i = 0; i < count_; ++i) {
      check_interrupt();
      const auto basis = U_[i].narrow(1, 0, rank);
      const auto outside = at::addmm(all, basis, at::mm(basis.mH(), all), 1, -1).unflatten(1, {count_, U_.size(2)});
      const auto norms = at::linalg_vector_norm(outside, 2, at::IntArrayRef({0, 2})).cpu();
      const auto row = as_vector(at::hypot(norms, factors.rest));
      std::copy(row.begin(), row.end(), outside_.begin() + i * count_);
      members_[i] = {i};
    }
  }

  std::vector<double> predict(int64_t a, const std::vector<int64_t>& others) const override {
    std::vector<double> bounds;
    for (const int64_t b : others) {
      const auto share = shares(a, b);
      double least = std::numeric_limits<double>::infinity();
      for (const auto* members : {&members_[a], &members_[b]})
        for (const int64_t i : *members)
          least = std::min(least, std::hypot(share.a * outside(i, a), share.b * outside(i, b)));
      bounds.push_back(std::min(1.0, least + rounding_));
    }
    return bounds;
  }

  bool merge(int64_t a, int64_t b) override {
    const auto share = shares(a, b);
    if (share.norm > 0 && predict(a, {b})[0] > tol_) return false;
    for (int64_t i = 0; i < count_; ++i)
      outside_[i * count_ + a] = std::hypot(share.a * outside(i, a), share.b * outside(i, b));
    members_[a].insert(members_[a].end(), members_[b].begin(), members_[b].end());
    norm_[a] = share.norm;
    return true;
  }

  double bound(int64_t a) const override { return rounded_up(outside(best(a), a), a); }
  at::Tensor basis(int64_t a) const override { return U_[best(a)].narrow(1, 0, rank_); }

 private:
  double outside(int64_t i, int64_t a) const { return outside_[i * count_ + a]; }
  int64_t best(int64_t a) const {
    return *std::min_element(members_[a].begin(), members_[a].end(),
                             [&](int64_t i, int64_t j) { return outside(i, a) < outside(j, a); });
  }

  at::Tensor U_;
  int64_t count_;
  std::vector<double> outside_;  // count_ x count_: of column's cluster, outside of row's basis
  std::vector<std::vector<int64_t>> members_;
};

std::unique_ptr<Clusters> clusters_by(JointBound bound, const JointFactors& factors, int64_t rank, double tol) {
  if (bound == JointBound::weyl) return std::make_unique<SpectralClusters>(factors, rank, tol);
  if (bound == JointBound::residual) return std::make_unique<ProjectedClusters>(factors, rank, tol);
  return std::make_unique<FactoredClusters>(factors, rank, tol);
}

// The predictions for all pairs of clusters that are left.
class Pairs {
 public:
  Pairs(const Clusters& clusters, int64_t count) : clusters_(clusters), count_(count), bounds_(count * count, kNever) {
    left_.resize(count);
    std::iota(left_.begin(), left_.end(), 0);
    for (int64_t a = 0; a + 1 < count; ++a) {
      check_interrupt();
      set(a, {left_.begin() + a + 1, left_.end()});
    }
  }

  struct Pair {
    int64_t a, b;  // a < b
    double bound;
  };
  // The first of those with the smallest bound.
  Pair best() const {
    Pair pair{0, 0, kNever};
    for (const int64_t a : left_)
      for (const int64_t b : left_)
        if (b > a && at(a, b) < pair.bound) pair = {a, b, at(a, b)};
    return pair;
  }
  void refuse(const Pair& pair) { bounds_[pair.a * count_ + pair.b] = kNever; }
  void merged(const Pair& pair) {
    left_.erase(std::find(left_.begin(), left_.end(), pair.b));
    std::vector<int64_t> others;
    std::copy_if(left_.begin(), left_.end(), std::back_inserter(others), [&](int64_t b) { return b != pair.a; });
    if (!others.empty()) set(pair.a, others);
  }
  const std::vector<int64_t>& left() const { return left_; }

 private:
  double at(int64_t a, int64_t b) const { return bounds_[a * count_ + b]; }
  void set(int64_t a, const std::vector<int64_t>& others) {
    const auto bounds = clusters_.predict(a, others);
    for (size_t i = 0; i < others.size(); ++i)
      bounds_[std::min(a, others[i]) * count_ + std::max(a, others[i])] = bounds[i];
  }

  const Clusters& clusters_;
  int64_t count_;
  std::vector<double> bounds_;
  std::vector<int64_t> left_;
};

}  // namespace

MatrixClusters cluster_matrices(const JointFactors& factors, int64_t rank, double tol, JointBound bound) {
  const int64_t count = factors.U.size(0);
  const auto clusters = clusters_by(bound, factors, rank, tol);
  Pairs pairs(*clusters, count);
  std::vector<int64_t> owner(count);
  std::iota(owner.begin(), owner.end(), 0);
  for (auto pair = pairs.best(); pair.bound <= clusters->limit(); pair = pairs.best()) {
    check_interrupt();
    if (clusters->merge(pair.a, pair.b)) {
      pairs.merged(pair);
      std::replace(owner.begin(), owner.end(), pair.b, pair.a);
    } else {
      pairs.refuse(pair);
    }
  }

  const auto& left = pairs.left();
  std::vector<double> errors;
  std::vector<at::Tensor> bases;
  for (const int64_t a : left) {
    errors.push_back(clusters->bound(a));
    bases.push_back(polish(clusters->basis(a)));
  }
  for (auto& label : owner) label = std::find(left.begin(), left.end(), label) - left.begin();
  return {at::tensor(owner, at::kLong), as_tensor(errors), at::stack(bases)};
}

}  // namespace fastlr
