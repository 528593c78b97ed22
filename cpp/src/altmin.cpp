#include <fastlr/completion.hpp>

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include <fastlr/linear_operator.hpp>
#include <fastlr/orthonormalize.hpp>
#include <fastlr/randomized_svd.hpp>

#include "checks.hpp"
#include "observed.hpp"

namespace fastlr {
namespace {

constexpr int64_t kStartIters = 2;
// Steps that are extrapolated from, and what is left of the entries when that begins: before, the error is no linear
// function of the factors.
constexpr size_t kDepth = 5;
constexpr double kLinear = 0.1;
// So many sweeps that change what is left by no more than this are the last.
constexpr double kStationary = 1e-4;
constexpr int kStationarySweeps = 3;
// Of conjugate gradients, which begin at the last product: they become as accurate as that is.
constexpr double kInexact = 0.01;
constexpr int64_t kMostSteps = 100;

// Q diag(s) Pᵀ of a tall matrix.
struct ThinSvd {
  at::Tensor Q, s, P;
};

ThinSvd thin_svd(const at::Tensor& Y) {
  const auto Q = orthonormalize(Y);
  const auto [U, s, Ph] = at::linalg_svd(at::mm(Q.t(), Y), /*full_matrices=*/false);
  return {at::mm(Q, U), s, Ph.t()};
}

// V turned by an orthogonal matrix so that it is as near to W as can be.
at::Tensor turned(const at::Tensor& V, const at::Tensor& W) {
  const auto [U, s, Ph] = at::linalg_svd(at::mm(V.t(), W), /*full_matrices=*/false);
  return at::mm(V, at::mm(U, Ph));
}

// The fixed point of V -> F(V), extrapolated from its last values: the combination of them whose change is smallest.
//
// Source: Walker, Ni, "Anderson acceleration for fixed-point iterations", SIAM J. Numer. Anal. 49 (2011).
class Extrapolation {
 public:
  void forget() { *this = {}; }

  at::Tensor next(const at::Tensor& point, const at::Tensor& image) {
    const auto change = (image - point).flatten(), last = image.flatten();
    if (last_.defined()) {
      steps_.push_back(last - last_), bends_.push_back(change - change_);
      if (steps_.size() > kDepth) steps_.erase(steps_.begin()), bends_.erase(bends_.begin());
    }
    last_ = last, change_ = change;
    if (steps_.empty()) return image;
    const auto B = at::stack(bends_), gram = at::mm(B, B.t()).to(at::kDouble);
    const auto weights =
        at::mv(at::linalg_pinv(gram, /*rcond=*/1e-12, /*hermitian=*/true), at::mv(B, change).to(at::kDouble));
    return image - at::mv(at::stack(steps_).t(), weights.to(image.scalar_type())).view_as(image);
  }

 private:
  at::Tensor last_, change_;
  std::vector<at::Tensor> steps_, bends_;  // of images and changes
};

// One factor's side: its entries, and how the rows of the factor are found for the other factor.
class Side {
 public:
  Side(const ObservedRows& observed, const RowOptions& options)
      : observed_(observed), options_(options), ones_(at::ones({observed.count()}, observed.values.options())) {}

  // For U Vᵀ with V = Q diag(s), Q orthonormal: rows U that have the variance `noise` of what is left as their ridge,
  // if the entries of Q sqrt(width) and U / s, of variance 1, are taken as drawn at random. Conjugate gradients begin
  // at `start`. Returns the other factor of Q.
  at::Tensor solve(const at::Tensor& Q, const at::Tensor& s, double noise, const at::Tensor& start) {
    const double count = static_cast<double>(observed_.count()), width = static_cast<double>(observed_.width);
    const auto penalties = count * width / s.square();
    const double root = std::sqrt(width);
    const RowFactor begin{start / root, {}};
    return solve_rows(observed_, {Q * root, {}}, {ones_ * noise, penalties}, options_, &begin).U * root;
  }

  const ObservedRows& observed() const { return observed_; }

 private:
  ObservedRows observed_;
  RowOptions options_;
  at::Tensor ones_;
};

// The leading left singular vectors and values of the observed entries with zeros in the place of the others: times the
// part that is observed, that is the matrix on average. Rows and columns with many entries are not trimmed, as they are
// in the paper: where they were, more sweeps were needed.
std::pair<at::Tensor, at::Tensor> spectral_start(const ObservedRows& observed, double part,
                                                 const AltminOptions& options) {
  const auto values = observed.weights ? observed.values * observed.weights->gt(0) : observed.values;
  const auto A =
      at::_sparse_csr_tensor_unsafe(observed.offsets, observed.columns, values, {observed.count(), observed.width},
                                    values.scalar_type(), at::kSparseCsr, values.device(), std::nullopt);
  const auto svd =
      randomized_svd(as_operator(A), {.rank = options.rank, .power_iters = kStartIters, .seed = options.seed});
  return {svd.U, svd.S / part};
}

}  // namespace

Completion altmin(const ObservedRows& observed, const std::optional<ObservedRows>& validation,
                  const AltminOptions& options) {
  const int exponent = even_exponent(observed.values);
  const RowOptions solve{.solver = options.solver, .tolerance = kInexact, .steps = kMostSteps};
  Side rows(with_values(observed, scaled(observed.values, exponent)), solve);
  Side columns(transposed(rows.observed()), solve);
  std::optional<ObservedRows> left_out;
  if (validation) left_out = with_values(*validation, scaled(validation->values, exponent));

  const double m = static_cast<double>(observed.count()), n = static_cast<double>(observed.width);
  const auto type = rows.observed().values.options();
  const auto zeros = [&](int64_t count) { return RowFactor{at::zeros({count, options.rank}, type), {}}; };
  const auto all = squares_left(rows.observed(), zeros(observed.count()), zeros(observed.width));
  const double part = std::max(all.weight, 1.0) / (m * n);
  double noise = all.sum / std::max(all.weight, 1.0);
  // Singular values that the noise hides are taken to be as large as it: a component that is lost could not come back.
  const double rounding = unit_roundoff(type.dtype().toScalarType());
  const auto visible = [&](const at::Tensor& s) {
    return at::maximum(s.clamp_min(std::sqrt(noise * std::max(m, n) / part)), rounding * s.max());
  };

  Completion result;
  result.rows = zeros(observed.count()), result.columns = zeros(observed.width);
  if (all.sum == 0) {
    result.converged = true;
    return result;
  }
  Extrapolation extrapolation;
  const auto [Q, s] = spectral_start(rows.observed(), part, options);
  auto U = Q * visible(s);
  double relative = 1;
  int stationary = 0;
  while (!result.converged && static_cast<int64_t>(result.sweeps.size()) < options.most_sweeps) {
    check_interrupt();
    const auto left = thin_svd(U);
    const auto& [U0, V0] = std::tie(result.rows.U, result.columns.U);
    // The matrix is left.Q times the transpose of this, then X times the transpose of right.Q.
    const auto right = thin_svd(columns.solve(left.Q, visible(left.s), noise, at::mm(V0, at::mm(U0.t(), left.Q))));
    check_interrupt();
    const auto values = visible(right.s);
    const auto X = rows.solve(right.Q, values, noise, at::mm(left.Q, right.P * right.s));
    // So that the ridge of every unknown was the same.
    result.rows.U = X * (std::sqrt(m) / values), result.columns.U = right.Q * (values / std::sqrt(m));
    result.ridge = noise;

    const auto fit = squares_left(rows.observed(), result.rows, result.columns);
    const double unit = std::ldexp(1.0, -exponent);
    result.sweeps.push_back({unit * unit * fit.sum, unit * fit.root_mean(),
                             left_out ? unit * squares_left(*left_out, result.rows, result.columns).root_mean()
                                      : std::numeric_limits<double>::quiet_NaN()});
    const double before = std::exchange(relative, std::sqrt(fit.sum / all.sum));
    stationary = std::abs(before - relative) <= kStationary * relative ? stationary + 1 : 0;
    result.converged = relative <= options.tol || stationary == kStationarySweeps;
    noise = fit.sum / std::max(fit.weight, 1.0);
    if (relative > before || relative > kLinear) extrapolation.forget();
    const auto next = thin_svd(X);
    U = extrapolation.next(U, turned(next.Q * visible(next.s), U));
  }
  result.rows.U = scaled(result.rows.U, -exponent / 2);
  result.columns.U = scaled(result.columns.U, -exponent / 2);
  result.ridge = std::ldexp(result.ridge, -exponent);
  return result;
}

}  // namespace fastlr
