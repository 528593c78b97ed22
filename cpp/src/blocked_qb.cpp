// Incremental blocked QB factorization to a tolerance.
#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include <fastlr/orthonormalize.hpp>
#include <fastlr/random.hpp>

#include "orthonormal_beside.hpp"
#include "qb.hpp"
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

// Bounds ‖A - Q rowsᴴ‖_F from above. The projected norm costs nothing; where it would cancel, or ‖A‖_F is not known,
// a probe with Gaussian vectors that nothing before depends on. The failures of all probes add up to kFailure.
class ResidualBound {
 public:
  ResidualBound(Operator A, double tol, int64_t seed)
      : A_(std::move(A)), seed_(seed), u_(unit_roundoff(at::empty({0}, A_->options()))) {
    norm_ = A_->frobenius_norm();
    projected_ = norm_ && tol >= 32 * std::sqrt(u_);
  }

  ErrorEstimate operator()(const QB& qb) {
    if (projected_) {
      const double ratio = *norm_ > 0 ? std::min(qb.captured / *norm_, 1.0) : 1.0;
      // The squares are known to some u of ‖A‖_F^2, as the columns of Q are orthonormal to some sqrt(width) u.
      const double rounding = 8 * std::sqrt(static_cast<double>(qb.width())) * u_;
      const double left = *norm_ * std::sqrt((1 - ratio) * (1 + ratio) + rounding);
      return {left, left, left, 0.0};
    }
    ++probes_;
    // Columns far beyond those of the range finder, in a stream of their own for every probe.
    const int64_t column0 = (int64_t{1} << 30) + probes_ * kProbes;
    const auto omega = gaussian(A_->columns(), kProbes, seed_, column0, A_->options());
    auto error = estimate_error(qb.deflated(A_->gaussian_matmat(kProbes, seed_, column0), omega));
    error.upper = error.estimate * probe_factor(kFailure / static_cast<double>(probes_ * (probes_ + 1)));
    error.spectral = std::min(error.upper, error.spectral);
    return error;
  }

  // ‖A‖_F, or what is known to lie below it.
  double norm(const QB& qb) const { return norm_ ? *norm_ : qb.captured; }

 private:
  Operator A_;
  int64_t seed_, probes_ = 0;
  double u_;
  std::optional<double> norm_;
  bool projected_;
};

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
  double rounding = 0.0;
  Triplets factors;
  for (bool spare = false;;) {
    const int64_t block = spare ? options.oversample : std::max(kFirstBlock, qb.width() / 2);
    // Past two thirds of the short side a dense SVD is cheaper than what is left to do.
    if (most_width > 2 * shorter / 3 && qb.width() + block > 2 * shorter / 3) return dense();
    extend(*sketch.A, qb, std::min(block, most_width - qb.width()), power_iters, options.seed);
    const bool full = qb.width() == most_width;
    beyond = bound(qb);
    const double allowed = options.tol * bound.norm(qb);
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
  const bool converged = error.upper <= options.tol * bound.norm(qb);
  auto result = unscaled({factors.U.narrow(1, 0, rank), factors.S.narrow(0, 0, rank), factors.Vh.narrow(0, 0, rank)},
                         error, sketch.exponent, SvdMethod::blocked_qb);
  result.power_iters = power_iters;
  result.converged = converged;
  return result;
}

}  // namespace fastlr
