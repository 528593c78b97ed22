// Incremental blocked QB factorization to a tolerance.
#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include <fastlr/orthonormalize.hpp>
#include <fastlr/random.hpp>

#include "orthonormal_beside.hpp"
#include "qb.hpp"
#include "residual_bound.hpp"
#include "svd_parts.hpp"

namespace fastlr {

void extend(const LinearOperator& A, QB& qb, int64_t block, int64_t power_iters, int64_t seed) {
  const int64_t drawn = qb.width();
  const auto omega = gaussian(A.columns(), block, seed, drawn, A.options());
  auto Q = orthonormal_beside(qb.Q, qb.deflated(A.gaussian_matmat(block, seed, drawn), omega), qb.completed);
  for (int64_t i = 0; i < power_iters; ++i) {
    const auto P = stabilize(A.rmatmat(Q));
    Q = orthonormal_beside(qb.Q, qb.deflated(A.matmat(P), P), qb.completed);
  }
  const auto rows = A.rmatmat(Q);
  qb.Q = at::cat({qb.Q, Q}, 1);
  qb.rows = at::cat({qb.rows, rows}, 1);
  qb.captured = std::hypot(qb.captured, frobenius_norm(rows));
}

namespace {

constexpr int64_t kPowerIters = 2;

// The smallest number of leading values whose tail, with `beyond` that they do not include, is within `allowed`.
int64_t smallest_rank(const at::Tensor& values, double beyond, double allowed) {
  const auto S = values.to(at::kCPU, at::kDouble).contiguous();
  double tail = beyond;
  int64_t rank = S.numel();
  while (rank > 0 && std::hypot(tail, S.const_data_ptr<double>()[rank - 1]) <= allowed)
    tail = std::hypot(tail, S.const_data_ptr<double>()[--rank]);
  return rank;
}

RandomizedSvd truncated_dense_svd(const Operator& A, double tol, int64_t most_rank) {
  auto result = dense_svd(A, A->columns());
  const double norm = frobenius_norm(result.S), rounding = result.error.upper;
  const int64_t needed = smallest_rank(result.S, 0.0, tol * norm - rounding);
  const int64_t rank = std::min(needed, most_rank);
  const auto tail = result.S.narrow(0, rank, result.S.size(0) - rank);
  const double error = frobenius_norm(tail) + rounding;
  result.error = {error, error, (tail.numel() > 0 ? tail[0].item<double>() : 0.0) + rounding, 0.0};
  result.U = result.U.narrow(1, 0, rank);
  result.S = result.S.narrow(0, 0, rank);
  result.Vh = result.Vh.narrow(0, 0, rank);
  result.converged = error <= tol * norm;
  return result;
}

}  // namespace

RandomizedSvd blocked_qb_svd(const Operator& A, const AdaptiveSvdOptions& options) {
  const int64_t shorter = A->columns();
  const int64_t most_rank = std::min(options.most_rank.value_or(shorter), shorter);
  const int64_t most_width = std::min(most_rank + options.oversample, shorter);
  const int64_t power_iters = options.power_iters.value_or(kPowerIters);
  const auto dense = [&] { return truncated_dense_svd(A, options.tol, most_rank); };
  if (shorter <= 2 * kFirstBlock) return dense();

  // The sketch says whether A is finite and in range.
  const auto sketch = sketch_range(A, 1, options.seed);
  ResidualBound bound(sketch.A, options.tol, options.seed);
  QB qb{at::empty({A->rows(), 0}, A->options()), at::empty({shorter, 0}, A->options())};
  ErrorEstimate beyond{};
  int64_t rank = 0;
  double rounding = 0.0, allowed = 0.0;
  Triplets factors;
  for (bool spare = false;;) {
    const int64_t block = spare ? options.oversample : std::max(kFirstBlock, qb.width() / 2);
    // Past two thirds of the short side a dense SVD is cheaper than what is left to do.
    if (most_width > 2 * shorter / 3 && qb.width() + block > 2 * shorter / 3) return dense();
    extend(*sketch.A, qb, std::min(block, most_width - qb.width()), power_iters, options.seed);
    const bool full = qb.width() == most_width;
    beyond = bound(qb.captured, qb.width(),
                   [&](const at::Tensor& Y, const at::Tensor& omega) { return qb.deflated(Y, omega); });
    // ‖A‖_F, or what is known to lie below it.
    allowed = options.tol * bound.norm().value_or(qb.captured);
    if (beyond.upper > allowed && !full) continue;
    factors = triplets_of_rows(qb.Q, qb.rows, qb.width());
    rounding = svd_rounding(factors.S, unit_roundoff(qb.Q));
    rank = std::min(smallest_rank(factors.S, beyond.upper, allowed - rounding), most_rank);
    // The last triplets of a projection are its worst: columns beyond the rank make it the smallest one.
    if (full || spare || qb.width() - rank >= options.oversample) break;
    spare = true;
  }
  const auto tail = factors.S.narrow(0, rank, factors.S.size(0) - rank);
  ErrorEstimate error{
      std::hypot(beyond.estimate, frobenius_norm(tail)), std::hypot(beyond.upper, frobenius_norm(tail)) + rounding,
      std::hypot(beyond.spectral, tail.numel() > 0 ? tail[0].item<double>() : 0.0) + rounding, beyond.failure};
  const bool converged = error.upper <= allowed;
  auto result = unscaled({factors.U.narrow(1, 0, rank), factors.S.narrow(0, 0, rank), factors.Vh.narrow(0, 0, rank)},
                         error, sketch.exponent, SvdMethod::blocked_qb);
  result.power_iters = power_iters;
  result.converged = converged;
  return result;
}

}  // namespace fastlr
