#include <fastlr/tucker.hpp>

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <tuple>
#include <utility>

#include <fastlr/linear_operator.hpp>
#include <fastlr/orthonormalize.hpp>
#include <fastlr/random.hpp>

#include "checks.hpp"
#include "orthonormal_beside.hpp"
#include "svd_parts.hpp"
#include "tensor_modes.hpp"
#include "tucker_parts.hpp"

namespace fastlr {
namespace {

// Of the energy that a tolerance allows, the share that the sketches may lose.
constexpr double kSketchShare = 0.02;
// Below this many u ‖X‖ sketches show rounding.
constexpr double kSketchNoise = 100;
// A sketch of more than this share of a mode costs more than its Gram matrix.
constexpr double kMostSketched = 0.4;
// The first width of a sketch to a tolerance, or this part of the mode: narrower ones cost as much as reading X does.
constexpr int64_t kFirstWidth = 16, kFirstShare = 16;
// In the place of kSweepGain where a tolerance is to be kept: what later sweeps gain hardly spares a column.
constexpr double kToleranceGain = 1e-2;
// Entries of X at a time whose residual is computed.
constexpr int64_t kResidualBlock = int64_t{1} << 22;
// Norms beyond 2^kMostExponent, or below its inverse, are scaled.
constexpr int kMostExponent = 20;
constexpr int kMostAttempts = 3;

// The least rank whose tail is within `allowed`, and that tail.
std::pair<int64_t, double> least_rank(const at::Tensor& squares, double allowed) {
  const auto values = squares.to(at::kCPU).contiguous();
  const double* s = values.const_data_ptr<double>();
  int64_t rank = values.numel();
  double tail = 0;
  while (rank > 1 && tail + s[rank - 1] <= allowed) tail += s[--rank];
  return {rank, tail};
}

// A tensor on its way to the core: what the factors so far have made of it.
struct Reduced {
  at::Tensor X;
  std::vector<at::Tensor> factors;  // undefined: not yet

  void multiply(size_t i, int64_t mode, const at::Tensor& Q) {
    X = mode_product(X, mode, materialized_adjoint(Q));
    factors[i] = factors[i].defined() ? at::mm(factors[i], Q) : Q;
  }
};

// The order of the modes that makes the products cheapest, for the sizes that are left of them: by an exchange of
// neighbours, those with the least l n / (n - l) first; of equal ones the last, whose products are the fastest.
std::vector<size_t> cheapest_order(const at::Tensor& X, const std::vector<int64_t>& modes,
                                   const std::vector<int64_t>& left) {
  std::vector<size_t> order(modes.size());
  std::iota(order.rbegin(), order.rend(), 0);
  const auto cost = [&](size_t i) {
    const double n = static_cast<double>(X.size(modes[i])), l = static_cast<double>(left[i]);
    return l < n ? l * n / (n - l) : INFINITY;
  };
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return cost(a) < cost(b); });
  return order;
}

// The same where nothing is known of what will be left.
std::vector<size_t> order_of_halves(const at::Tensor& X, const std::vector<int64_t>& modes) {
  std::vector<int64_t> left;
  for (const int64_t mode : modes) left.push_back(X.size(mode) / 2);
  return cheapest_order(X, modes, left);
}

// ---- sketches ----

at::Tensor sketch(const at::Tensor& X, int64_t mode, int64_t width, int64_t seed, int64_t drawn) {
  return unfolding_product(X, mode, gaussian(X.numel() / X.size(mode), width, seed, drawn, X.options()));
}

// Sketches of a fixed width for each mode, with steps of subspace iteration.
void compress(Reduced& reduced, const TuckerOptions& options, int64_t power_iters) {
  std::vector<int64_t> widths;
  for (size_t i = 0; i < options.modes.size(); ++i)
    widths.push_back(std::min(options.ranks[i] + options.oversample, reduced.X.size(options.modes[i])));
  for (const size_t i : cheapest_order(reduced.X, options.modes, widths)) {
    const int64_t mode = options.modes[i], n = reduced.X.size(mode), others = reduced.X.numel() / n;
    if (static_cast<double>(widths[i]) > kMostSketched * static_cast<double>(n) || widths[i] >= others) continue;
    auto Q = orthonormalize(sketch(reduced.X, mode, widths[i], options.seed + static_cast<int64_t>(i), 0));
    for (int64_t p = 0; p < power_iters; ++p) {
      // The projected tensor, unfolded and orthonormalized, is the next test matrix.
      const auto rows = unfolding(mode_product(reduced.X, mode, materialized_adjoint(Q)), mode);
      Q = orthonormalize(unfolding_product(reduced.X, mode, stabilize(rows.mH().contiguous())));
    }
    reduced.multiply(i, mode, Q);
  }
}

// Sketches that grow until a fresh one shows that what they miss is within `allowed`; a mode that would need a wide one
// is left as it is. How much of it was made use of.
double compress_to(Reduced& reduced, const TuckerOptions& options, double allowed) {
  double lost = 0;
  const double share = allowed / static_cast<double>(options.modes.size());
  for (const size_t i : order_of_halves(reduced.X, options.modes)) {
    const int64_t mode = options.modes[i], n = reduced.X.size(mode), others = reduced.X.numel() / n;
    const int64_t most = std::min(static_cast<int64_t>(kMostSketched * static_cast<double>(n)), others - 1);
    auto Q = at::empty({n, 0}, reduced.X.options());
    bool enough = false;
    int64_t drawn = 0, completed = 0;
    while (Q.size(1) < most) {
      const int64_t width = std::max({kFirstWidth, n / kFirstShare, Q.size(1) / 2});
      auto Y = sketch(reduced.X, mode, width, options.seed + static_cast<int64_t>(i), drawn);
      drawn += width;
      if (Q.size(1)) Y = at::addmm(Y, Q, at::mm(Q.mH(), Y), 1, -1);
      // The expected energy of a product with Gaussian columns.
      enough = Q.size(1) && energy(Y) <= static_cast<double>(width) * share;
      if (enough) break;
      Q = Q.size(1) ? at::cat({Q, orthonormal_beside(Q, Y, completed)}, 1) : orthonormalize(Y);
    }
    if (!enough) continue;
    reduced.multiply(i, mode, Q);
    lost += share;
  }
  return lost;
}

// ---- ST-HOSVD ----

void truncate(Reduced& reduced, const TuckerOptions& options) {
  for (const size_t i : cheapest_order(reduced.X, options.modes, options.ranks)) {
    const int64_t mode = options.modes[i];
    if (options.ranks[i] == reduced.X.size(mode)) continue;
    reduced.multiply(i, mode, spectrum(reduced.X, mode, options.ranks[i], {}).vectors.narrow(1, 0, options.ranks[i]));
  }
}

// What one mode leaves of its share of the allowed energy goes to the others.
void truncate_to(Reduced& reduced, const TuckerOptions& options, double allowed, double total) {
  double left = static_cast<double>(options.modes.size());
  for (const size_t i : order_of_halves(reduced.X, options.modes)) {
    const int64_t mode = options.modes[i];
    const double share = allowed / left--;
    const auto [squares, vectors] = spectrum(reduced.X, mode, 1, share / total);
    auto [rank, tail] = least_rank(squares, share);
    rank = std::min(rank, options.ranks[i]);
    allowed = std::max(0.0, allowed - tail);
    if (rank < reduced.X.size(mode)) reduced.multiply(i, mode, vectors.narrow(1, 0, rank));
  }
}

// ---- sweeps ----

class Sweep {
 public:
  Sweep(const std::vector<int64_t>& modes, std::vector<at::Tensor>& factors) : modes_(modes), factors_(factors) {}

  at::Tensor operator()(const at::Tensor& X) {
    renew(X, 0, modes_.size());
    return core_;
  }

 private:
  // X times all factors but those of [first, last): these are found anew, one after the other.
  void renew(const at::Tensor& X, size_t first, size_t last) {
    if (last - first == 1) {
      auto& U = factors_[first];
      const int64_t mode = modes_[first];
      if (U.size(1) < U.size(0)) U = leading_vectors(X, mode, U);
      core_ = mode_product(X, mode, materialized_adjoint(U));
      return;
    }
    // The larger half first: of three modes, neither first product is along the slowest one, the first.
    const size_t middle = (first + last + 1) / 2;
    renew(multiplied(X, middle, last), first, middle);
    renew(multiplied(X, first, middle), middle, last);
  }

  at::Tensor multiplied(at::Tensor X, size_t first, size_t last) const {
    std::vector<int64_t> modes(modes_.begin() + static_cast<std::ptrdiff_t>(first),
                               modes_.begin() + static_cast<std::ptrdiff_t>(last)),
        left;
    for (size_t i = first; i < last; ++i) left.push_back(factors_[i].size(1));
    for (const size_t i : cheapest_order(X, modes, left))
      X = mode_product(X, modes[i], materialized_adjoint(factors_[first + i]));
    return X;
  }

  const std::vector<int64_t>& modes_;
  std::vector<at::Tensor>& factors_;
  at::Tensor core_;
};

// ---- the result ----

// Where nothing was to be done, the factor is the identity.
std::vector<at::Tensor> with_identities(std::vector<at::Tensor> factors, const std::vector<int64_t>& modes,
                                        const at::Tensor& X) {
  for (size_t i = 0; i < modes.size(); ++i)
    if (!factors[i].defined()) factors[i] = at::eye(X.size(modes[i]), X.options());
  return factors;
}

struct Fit {
  at::Tensor core;
  std::vector<at::Tensor> factors;
  Sweeps sweeps;
};

Fit fit_ranks(const at::Tensor& X, const TuckerOptions& options, double total) {
  const auto& modes = options.modes;
  Reduced reduced{X, std::vector<at::Tensor>(modes.size())};
  if (options.method != TuckerMethod::kSequential)
    compress(reduced, options, options.method == TuckerMethod::kRandomized ? options.power_iters : 0);
  truncate(reduced, options);
  Fit fit{reduced.X, with_identities(reduced.factors, modes, X), {}};
  const double start = std::sqrt(std::max(total - energy(fit.core), 0.0));
  if (options.method == TuckerMethod::kAlternating)
    fit.sweeps = sweep_to_the_end([&] { return tucker_sweep(X, modes, fit.factors); }, fit.core, total,
                                  options.most_sweeps, kSweepGain);
  else
    fit.sweeps.converged = true;
  fit.sweeps.errors.insert(fit.sweeps.errors.begin(), start);
  return fit;
}

Fit fit_tolerance(const at::Tensor& X, const TuckerOptions& options, double total, double allowed) {
  const auto& modes = options.modes;
  Reduced outer{X, std::vector<at::Tensor>(modes.size())};
  const double missed = kSketchShare * allowed, noise = kSketchNoise * unit_roundoff(X);
  if (missed > noise * noise * total) allowed -= compress_to(outer, options, missed);
  Reduced inner{outer.X, std::vector<at::Tensor>(modes.size())};
  truncate_to(inner, options, allowed, total);
  Fit fit{inner.X, with_identities(inner.factors, modes, outer.X), {}};
  fit.sweeps.errors = {std::sqrt(std::max(total - energy(fit.core), 0.0))};
  fit.sweeps.converged = true;
  if (options.method == TuckerMethod::kAlternating && options.most_sweeps > 0) {
    const double rest = energy(outer.X);
    const auto done = sweep_to_the_end([&] { return tucker_sweep(outer.X, modes, fit.factors); }, fit.core, rest,
                                       options.most_sweeps, kToleranceGain);
    for (const double error : done.errors)
      fit.sweeps.errors.push_back(std::sqrt(error * error + std::max(total - rest, 0.0)));
    canonical(fit.core, modes, fit.factors);
    const double lost = tucker_residual(outer.X, modes, fit.core, fit.factors);
    drop_slices(fit.core, modes, fit.factors, allowed - lost * lost);
  }
  for (size_t i = 0; i < modes.size(); ++i)
    if (outer.factors[i].defined()) fit.factors[i] = at::mm(outer.factors[i], fit.factors[i]);
  return fit;
}

Tucker finished(const at::Tensor& X, const TuckerOptions& options, Fit fit, double norm, double total) {
  canonical(fit.core, options.modes, fit.factors);
  const double rest = total - energy(fit.core);
  const double error = rest > kCancelled * unit_roundoff(X) * total
                           ? std::sqrt(rest)
                           : tucker_residual(X, options.modes, fit.core, fit.factors);
  Tucker result{fit.core, fit.factors, norm, error, fit.sweeps.errors, fit.sweeps.converged};
  result.errors.back() = error;
  return result;
}

// X = 0: its factors are any orthonormal ones.
Tucker of_zeros(const at::Tensor& X, const TuckerOptions& options) {
  auto sizes = X.sizes().vec();
  Tucker result;
  for (size_t i = 0; i < options.modes.size(); ++i) {
    const int64_t n = X.size(options.modes[i]), r = options.tol ? std::min<int64_t>(n, 1) : options.ranks[i];
    sizes[options.modes[i]] = r;
    result.factors.push_back(at::eye(n, r, X.options()));
  }
  result.core = at::zeros(sizes, X.options());
  result.errors = {0.0};
  return result;
}

}  // namespace

at::Tensor tucker_sweep(const at::Tensor& X, const std::vector<int64_t>& modes, std::vector<at::Tensor>& factors) {
  return Sweep(modes, factors)(X.contiguous());
}

double tucker_residual(const at::Tensor& X, const std::vector<int64_t>& modes, const at::Tensor& core,
                       const std::vector<at::Tensor>& factors) {
  auto T = core;
  at::Tensor first;
  for (size_t i = 0; i < modes.size(); ++i) {
    if (modes[i] == 0)
      first = factors[i];
    else
      T = mode_product(T, modes[i], factors[i]);
  }
  const auto rows = X.reshape({X.size(0), -1});
  T = T.reshape({T.size(0), -1});
  if (!first.defined()) return frobenius_norm(rows - T);
  double norm = 0;
  const int64_t height = std::max<int64_t>(kResidualBlock / std::max<int64_t>(rows.size(1), 1), 1);
  for (int64_t i = 0; i < rows.size(0); i += height) {
    const int64_t count = std::min(height, rows.size(0) - i);
    norm = std::hypot(norm, frobenius_norm(at::addmm(rows.narrow(0, i, count), first.narrow(0, i, count), T, 1, -1)));
  }
  return norm;
}

Tucker tucker(const at::Tensor& input, const TuckerOptions& options) {
  const auto X = input.contiguous().resolve_conj();
  const double norm = frobenius_norm(X);
  if (!std::isfinite(norm)) check_finite(X, "tucker", "X");
  if (options.modes.empty()) return {X, {}, norm, 0.0, {0.0}, true};
  if (norm == 0) return of_zeros(X, options);
  // Sums of squares, and squares of them, far from overflow and underflow.
  const int exponent = scale_exponent(norm);
  const auto A = std::abs(exponent) > kMostExponent ? scaled(X, exponent) : X;
  const double size = A.is_same(X) ? norm : frobenius_norm(A), total = size * size;
  Tucker result;
  if (!options.tol) {
    result = finished(A, options, fit_ranks(A, options, total), size, total);
  } else {
    // Rounding may be what exceeds the tolerance: then a smaller one is aimed at.
    double allowed = *options.tol * *options.tol * total;
    for (int attempt = 0; attempt < kMostAttempts; ++attempt) {
      result = finished(A, options, fit_tolerance(A, options, total, allowed), size, total);
      if (result.error <= *options.tol * size) break;
      const double excess = *options.tol * size / result.error;
      allowed *= 0.9 * excess * excess;
    }
    result.converged = result.error <= *options.tol * size;
  }
  return A.is_same(X) ? result : unscaled(std::move(result), exponent);
}

}  // namespace fastlr
