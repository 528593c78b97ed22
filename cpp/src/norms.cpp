#include <fastlr/norms.hpp>

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include <fastlr/error_estimate.hpp>
#include <fastlr/random.hpp>

#include "block_lanczos.hpp"
#include "checks.hpp"
#include "first_product.hpp"
#include "qb.hpp"
#include "svd_parts.hpp"

namespace fastlr {
namespace {

constexpr const char* kNorm = "estimate_norm";
constexpr const char* kRank = "estimate_rank";

// estimate_norm: independent starts of the Krylov space, each of which would have to fail.
constexpr int64_t kStarts = 4;
// Gaussian vectors behind a Frobenius norm: an interval of some ±25 %.
constexpr int64_t kNormProbes = 64;
// estimate_rank
constexpr int64_t kPowerIters = 2;

double unit_roundoff_of(const LinearOperator& A) { return unit_roundoff(at::empty({0}, A.options())); }

// Relative rounding of a norm that comes from products with A.
double product_rounding(const LinearOperator& A) {
  return 10 * std::sqrt(static_cast<double>(std::max(A.rows(), A.columns()))) * unit_roundoff_of(A);
}

at::Tensor dense_singular_values(const LinearOperator& A, const char* caller) {
  const auto dense = A.to_dense();
  check_finite(dense, caller);
  return at::linalg_svdvals(dense);
}

double first(const at::Tensor& S) { return S.numel() > 0 ? S[0].item<double>() : 0.0; }

// The dimension k of the Krylov spaces for which the largest Ritz value of a positive semidefinite matrix of order n is
// below (1 - ε) of the largest eigenvalue with probability `failure` at most: (1.648 √n exp(-√ε (2 k - 1)))^kStarts.
// A complex matrix is a real one of twice the order to that bound.
int64_t krylov_steps(double n, double epsilon, double failure) {
  const double needed = std::log(1.648 * std::sqrt(n)) - std::log(failure) / kStarts;
  return std::max<int64_t>(2, static_cast<int64_t>(std::ceil((needed / std::sqrt(epsilon) + 1) / 2)));
}

}  // namespace

NormEstimate spectral_norm(const Operator& A, double rtol, double failure, int64_t seed) {
  check_operator(*A, kNorm);
  TORCH_CHECK_VALUE(rtol > 0, kNorm, ": rtol must be positive, got ", rtol);
  TORCH_CHECK_VALUE(failure > 0 && failure < 1, kNorm, ": failure_probability must be between 0 and 1, got ", failure);
  const auto tall = A->rows() < A->columns() ? adjoint(A) : A;
  const int64_t n = tall->columns();
  const auto before = A->passes();
  const double rounding = product_rounding(*A);
  const double epsilon = 1 - 1 / ((1 + rtol) * (1 + rtol));
  const int64_t steps = krylov_steps(
      static_cast<double>(c10::isComplexType(A->options().dtype().toScalarType()) ? 2 * n : n), epsilon, failure);
  if ((steps + 1) * kStarts > n) {
    const double value = first(dense_singular_values(*tall, kNorm));
    return {value, value * (1 - rounding), value * (1 + rounding), 0.0, A->passes() - before, NormMethod::dense};
  }
  const auto start = gaussian(n, kStarts, seed, 0, A->options());
  const auto in_range = first_product(tall, kNorm, [&](const Operator& op) { return op->matmat(start); });
  BlockLanczos space([&](const at::Tensor& X) { return in_range.A->normal_matmat(X, {X.size(1), X.size(1)}).co; },
                     start, steps * kStarts);
  space.extend(steps - 1);
  const double value = std::ldexp(std::sqrt(std::max(first(space.ritz().values), 0.0)), -in_range.exponent);
  return {value,   value * (1 - rounding), value * (1 + rtol) * (1 + rounding),
          failure, A->passes() - before,   NormMethod::lanczos};
}

NormEstimate frobenius_norm_estimate(const Operator& A, double failure, int64_t seed) {
  check_operator(*A, kNorm);
  TORCH_CHECK_VALUE(failure > 0 && failure < 1, kNorm, ": failure_probability must be between 0 and 1, got ", failure);
  const auto before = A->passes();
  auto known = A->frobenius_norm();
  if (!known && std::min(A->rows(), A->columns()) <= kNormProbes) known = frobenius_norm(A->to_dense());
  if (known) {
    if (!std::isfinite(*known)) A->check_finite(kNorm);
    const double rounding = product_rounding(*A);
    return {*known, *known * (1 - rounding), *known * (1 + rounding), 0.0, A->passes() - before, NormMethod::entries};
  }
  // The extreme case of both tails is a matrix of rank one (fastlr/error_estimate.hpp).
  const double value = frobenius_estimate(A->gaussian_matmat(kNormProbes, seed));
  const auto quantile = [&](double p) { return std::sqrt(chi_squared_quantile(p, kNormProbes) / kNormProbes); };
  return {value,
          value / quantile(1 - failure / 2),
          value / quantile(failure / 2),
          failure,
          A->passes() - before,
          NormMethod::probes};
}

namespace {

// What rounding may do to one of the values S: 10 sqrt(k) u ‖A‖_2, as far as bases are from orthonormal.
double value_rounding(const at::Tensor& S, double u) {
  return 10 * std::sqrt(static_cast<double>(S.numel())) * u * first(S);
}

// The numbers of singular values above tol ‖A‖_2, of a matrix with Ritz values S (lower bounds, but for rounding, of
// its singular values) and ‖E‖_2 <= residual for what they do not include: σ_i² <= S_i² + ‖E‖_2².
RankEstimate counted(const at::Tensor& singular_values, double tol, double residual, double u) {
  const auto S = singular_values.to(at::kCPU, at::kDouble).contiguous();
  const double norm = first(S), rounding = value_rounding(S, u);
  RankEstimate result{0, 0, 0, norm, residual, 0.0, 0, true, false};
  for (int64_t i = 0; i < S.numel(); ++i) {
    const double value = S.const_data_ptr<double>()[i];
    result.rank += value > tol * norm;
    result.lower += value - rounding > tol * (std::hypot(norm, residual) + rounding);
    result.upper += std::hypot(value, residual) + rounding > tol * (norm - rounding);
  }
  return result;
}

}  // namespace

RankEstimate estimate_rank(const Operator& A, std::optional<double> tol, std::optional<int64_t> most, int64_t seed) {
  check_operator(*A, kRank);
  TORCH_CHECK_VALUE(!tol || (*tol > 0 && *tol < 1), kRank, ": tol must be between 0 and 1, got ", tol.value_or(0));
  TORCH_CHECK_VALUE(!most || *most >= 1, kRank, ": most must be positive, got ", most.value_or(0));
  const auto tall = A->rows() < A->columns() ? adjoint(A) : A;
  const auto before = A->passes();
  const int64_t n = tall->columns();
  const double u = unit_roundoff_of(*A);
  const double threshold = tol.value_or(2 * u * static_cast<double>(tall->rows()));
  const int64_t most_width = std::min(most.value_or(n), n);
  const auto dense = [&] {
    auto result = counted(dense_singular_values(*tall, kRank), threshold, 0.0, u);
    result.passes = A->passes() - before;
    result.dense = true;
    return result;
  };
  if (n <= 2 * kFirstBlock) return dense();

  // Draws beyond those of the range finder, which has n columns at most: one probe serves all blocks.
  const auto first_sketch =
      first_product(tall, kRank, [&](const Operator& op) { return op->gaussian_matmat(kProbes, seed, n); });
  const auto omega = gaussian(n, kProbes, seed, n, A->options());
  QB qb{at::empty({tall->rows(), 0}, A->options()), at::empty({n, 0}, A->options())};
  for (int64_t stage = 1;; ++stage) {
    const int64_t block = std::min(std::max(kFirstBlock, qb.width() / 2), most_width - qb.width());
    if (most_width > 2 * n / 3 && qb.width() + block > 2 * n / 3) return dense();
    extend(*first_sketch.A, qb, block, kPowerIters, seed);
    const auto probed = first_sketch.product - at::mm(qb.Q, at::mm(qb.rows.mH(), omega));
    // The failures of all stages add up to kFailure.
    const double share = std::pow(static_cast<double>(stage * (stage + 1)), 1.0 / kProbes);
    const double residual = share * estimate_error(probed).spectral;
    const auto S = at::linalg_svdvals(qb.rows);
    const bool converged = residual + value_rounding(S, u) <= threshold * first(S);
    if (!converged && qb.width() < most_width) continue;
    auto result = counted(S, threshold, residual, u);
    if (!converged) result.upper = n;
    result.norm = std::ldexp(result.norm, -first_sketch.exponent);
    result.residual = std::ldexp(result.residual, -first_sketch.exponent);
    result.failure = kFailure;
    result.passes = A->passes() - before;
    result.converged = converged;
    return result;
  }
}

}  // namespace fastlr
