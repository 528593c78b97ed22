#include <fastlr/hermitian.hpp>

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include <fastlr/orthonormalize.hpp>
#include <fastlr/random.hpp>

#include "block_lanczos.hpp"
#include "checks.hpp"
#include "first_product.hpp"
#include "hermitian_checks.hpp"
#include "svd_parts.hpp"

namespace fastlr {
namespace {

int64_t checked_width(const LinearOperator& A, int64_t rank, int64_t oversample, const char* caller) {
  check_square(A, caller);
  const int64_t n = A.rows();
  TORCH_CHECK_VALUE(rank >= 1 && (rank <= n || n == 0), caller, ": rank must be between 1 and n = ", n, ", got ", rank);
  TORCH_CHECK_VALUE(oversample >= 0, caller, ": oversample must be non-negative, got ", oversample);
  return std::min(rank + oversample, n);
}

// The probe of E = A - V diag(values) Vᴴ from that of A.
ErrorEstimate probed_error(const at::Tensor& probe, const at::Tensor& omega, const at::Tensor& values,
                           const at::Tensor& V) {
  return estimate_error(probe - at::mm(V, values.unsqueeze(1) * at::mm(V.mH(), omega)));
}

Eigenpairs unscaled(Eigenpairs pairs, int exponent) {
  pairs.error = scaled(pairs.error, -exponent);
  pairs.values = scaled(pairs.values, -exponent);
  if (pairs.residuals.defined()) pairs.residuals = scaled(pairs.residuals, -exponent);
  return pairs;
}

Eigenpairs finished(Eigenpairs pairs, const LinearOperator& A, int64_t passes_before) {
  pairs.vectors = pairs.vectors.contiguous();
  pairs.vectors.mul_(at::conj_physical(column_phases(pairs.vectors)));  // the largest entry is real and positive
  pairs.passes = A.passes() - passes_before;
  return pairs;
}

// All eigenvalues are known, and with them the error.
Eigenpairs dense_eigh(const Operator& A, int64_t rank, bool semidefinite, const char* caller) {
  const auto dense = A->to_dense();
  check_finite(dense, caller);
  const int exponent = scale_exponent(largest_magnitude(dense));
  const auto unit = scaled(dense, exponent);
  check_hermitian(unit, at::eye(A->rows(), A->options()), caller);
  auto [values, vectors] = at::linalg_eigh((unit + unit.mH()) / 2);
  if (semidefinite) {
    check_semidefinite(values, unit_roundoff(dense), caller);
    values = values.clamp_min(0);
  }
  const auto order = values.abs().argsort(/*dim=*/0, /*descending=*/true);
  values = values.index_select(0, order);
  vectors = vectors.index_select(1, order).narrow(1, 0, rank);
  const double u = unit_roundoff(dense), rounding = svd_rounding(values, u);
  const auto tail = values.narrow(0, rank, values.size(0) - rank);
  const double spectral = tail.numel() > 0 ? std::abs(tail[0].item<double>()) : 0.0;
  const double error = frobenius_norm(tail) + rounding;
  values = at::where(values.abs() > noise_level(values.abs(), u), values, 0.0).narrow(0, 0, rank).contiguous();
  const auto residuals = at::full({rank}, rounding, values.options());
  return unscaled(
      {values, polish(vectors), residuals, {error, error, spectral + rounding, 0.0}, 0, 0, true, EighMethod::dense},
      exponent);
}

// Yν = (A + νI) Q of a sketch with orthonormal Q as V diag(values + ν) Vᴴ: the shift keeps QᴴYν positive definite in
// floating point. In double precision, since the condition number of QᴴYν amplifies the rounding of what follows.
Eigenpairs shifted_nystrom(const at::Tensor& sketched, const at::Tensor& basis, int64_t rank, const char* caller) {
  const double u = unit_roundoff(sketched);
  const auto Y = sketched.to(double_type(sketched)), Q = basis.to(Y.scalar_type());
  const auto B = at::mm(Q.mH(), Y);
  const auto eigenvalues = at::linalg_eigvalsh((B + B.mH()) / 2);
  check_semidefinite(eigenvalues, u, caller);
  const double norm = std::sqrt(std::max(at::linalg_eigvalsh(at::mm(Y.mH(), Y))[-1].item<double>(), 0.0));
  // A negative eigenvalue of QᴴY is the rounding that the shift has to cover.
  double shift = std::max(std::sqrt(static_cast<double>(Y.size(1))) * u * norm, -4 * eigenvalues[0].item<double>());
  const double noise = 4 * std::sqrt(static_cast<double>(Y.size(0))) * u * norm;
  if (shift == 0.0) shift = std::numeric_limits<float>::min();  // a zero matrix
  for (int attempt = 0; attempt < 8; ++attempt, shift *= 4) {
    const auto shifted = Y + shift * Q;
    const auto core = at::mm(Q.mH(), shifted);
    const auto [L, info] = at::linalg_cholesky_ex((core + core.mH()) / 2);
    if (info.item<int>() != 0) continue;
    const auto root = at::linalg_solve_triangular(L.mH(), shifted, /*upper=*/true, /*left=*/false);
    const auto [left, singular, right] = at::linalg_svd(root, /*full_matrices=*/false);
    auto values = singular.square() - shift;
    // What the shift and the rounding that it covers leave of a zero.
    values = at::where(values > std::max(noise, 4 * shift), values, 0.0);
    return {values.narrow(0, 0, rank).to(c10::toRealValueType(sketched.scalar_type())),
            polish(left.narrow(1, 0, rank).to(sketched.scalar_type())),
            {},
            {},
            0,
            0,
            true,
            EighMethod::nystrom};
  }
  TORCH_CHECK_LINALG(false, caller, ": A must be positive semidefinite; its sketch has no Cholesky factor");
}

}  // namespace

Eigenpairs nystrom(const Operator& A, int64_t rank, int64_t oversample, int64_t seed) {
  constexpr const char* caller = "nystrom";
  const int64_t width = checked_width(*A, rank, oversample, caller), n = A->rows();
  const auto before = A->passes();
  if (width == n) return finished(dense_eigh(A, std::min(rank, n), /*semidefinite=*/true, caller), *A, before);
  const auto Q = orthonormalize(gaussian(n, width, seed, 0, A->options()));
  const auto omega = gaussian(n, kProbes, seed, width, A->options());
  const auto sketch = first_product(A, caller, [&](const Operator& op) { return op->matmat(at::cat({Q, omega}, 1)); });
  const auto Y = sketch.product.narrow(1, 0, width), probe = sketch.product.narrow(1, width, kProbes);
  check_hermitian(sketch.product, at::cat({Q, omega}, 1), caller);
  auto pairs = shifted_nystrom(Y, Q, rank, caller);
  pairs.error = probed_error(probe, omega, pairs.values, pairs.vectors);
  return finished(unscaled(std::move(pairs), sketch.exponent), *A, before);
}

Eigenpairs randomized_eigh(const Operator& A, int64_t rank, int64_t oversample, std::optional<int64_t> power_iters,
                           int64_t seed) {
  constexpr const char* caller = "randomized_eigh";
  const int64_t width = checked_width(*A, rank, oversample, caller), n = A->rows();
  TORCH_CHECK_VALUE(!power_iters || *power_iters >= 0, caller,
                    ": power_iters must be \"auto\" or a non-negative integer, got ", power_iters.value_or(0));
  const auto before = A->passes();
  // A given depth keeps all iterates; a target restarts with as many Ritz vectors as the first block has.
  const bool to_target = !power_iters;
  const int64_t most_width = to_target ? 4 * width : (*power_iters + 1) * width;
  if (most_width + width > n)
    return finished(dense_eigh(A, std::min(rank, n), /*semidefinite=*/false, caller), *A, before);

  const auto omega = gaussian(n, width + kProbes, seed, 0, A->options());
  const auto sketch = first_product(A, caller, [&](const Operator& op) { return op->matmat(omega); });
  check_hermitian(sketch.product, omega, caller);
  const auto& op = *sketch.A;
  const double u = unit_roundoff(omega);
  const double target = residual_target(omega, width);

  BlockLanczos space([&](const at::Tensor& X) { return op.matmat(X); }, sketch.product.narrow(1, 0, width), most_width);
  const auto settled = [&](const RitzPairs& pairs) {
    const double worst = pairs.residuals.narrow(0, 0, rank).max().item<double>();
    return worst <= target * std::abs(pairs.values[0].item<double>());
  };
  if (!to_target) space.extend(*power_iters);
  const auto [ritz, blocks, converged] = to_target ? run(space, settled) : LanczosRun{space.ritz(), *power_iters, true};
  const auto noise = noise_level(ritz.values.abs(), u);
  Eigenpairs pairs{at::where(ritz.values.abs() > noise, ritz.values, 0.0).narrow(0, 0, rank).contiguous(),
                   orthonormalize(at::mm(space.basis(), ritz.vectors.narrow(1, 0, rank))),
                   ritz.residuals.narrow(0, 0, rank) + noise,
                   {},
                   0,
                   blocks,
                   converged,
                   EighMethod::lanczos};
  pairs.error = probed_error(sketch.product.narrow(1, width, kProbes), omega.narrow(1, width, kProbes), pairs.values,
                             pairs.vectors);
  return finished(unscaled(std::move(pairs), sketch.exponent), *A, before);
}

}  // namespace fastlr
