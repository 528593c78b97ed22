#include "svd_parts.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include <fastlr/orthonormalize.hpp>
#include <fastlr/random.hpp>

#include "tall.hpp"

namespace fastlr {
namespace {

double rounding_factor(const at::Tensor& S, double u) { return std::sqrt(static_cast<double>(S.numel())) * u; }

}  // namespace

at::Tensor without_noise(const at::Tensor& S, double u) {
  if (S.numel() == 0) return S;
  const double factor = 4 * u * std::sqrt(static_cast<double>(S.size(-1)));
  return at::where(S > factor * S.narrow(-1, 0, 1), S, 0.0);
}

double svd_rounding(const at::Tensor& S, double u) { return 10 * rounding_factor(S, u) * frobenius_norm(S); }

int range_exponent(const LinearOperator& A, const at::Tensor& product) {
  A.check_finite("randomized_svd");
  const double magnitude = A.largest_magnitude().value_or(largest_magnitude(product));
  TORCH_CHECK_VALUE(std::isfinite(magnitude), "randomized_svd: the products of A must be finite, got ", magnitude);
  return scale_exponent(magnitude);
}

Sketch sketch_range(const Operator& A, int64_t width, int64_t seed) {
  const auto split = [&](const Operator& op, int exponent, const at::Tensor& product) {
    return Sketch{op, exponent, product.narrow(1, 0, width),
                  product.narrow(1, width, kProbes).clone(at::MemoryFormat::Contiguous)};
  };
  const auto product = A->gaussian_matmat(width + kProbes, seed);
  if (squares_in_range(product, largest_magnitude(product))) return split(A, 0, product);
  const int exponent = range_exponent(*A, product);
  if (exponent == 0) return split(A, 0, product);
  const auto in_range = scaled(A, exponent);
  return split(in_range, exponent, in_range->gaussian_matmat(width + kProbes, seed));
}

at::Tensor orthonormalize_against(const at::Tensor& basis, const at::Tensor& Y) {
  auto Q = Y;
  // The second round removes what the first one's rounding and the completion of deficient columns left.
  for (int round = 0; round < 2; ++round) Q = orthonormalize(Q - at::mm(basis, at::mm(basis.mH(), Q)));
  return Q;
}

// LAPACK's singular vectors are orthonormal to some ten times what the Cholesky passes reach: they are polished.
Triplets triplets_of_core(const at::Tensor& Q, const at::Tensor& core, const at::Tensor& P, int64_t rank) {
  const auto [left, values, right] = at::linalg_svd(core, /*full_matrices=*/false);
  return {at::mm(Q, polish(left.narrow(1, 0, rank))), without_noise(values, unit_roundoff(core)).narrow(0, 0, rank),
          at::mm(materialized_adjoint(polish(materialized_adjoint(right.narrow(0, 0, rank)))), P.mH())};
}

Triplets triplets_of_rows(const at::Tensor& Q, const at::Tensor& rows, int64_t rank) {
  const auto P = orthonormalize(rows);
  return triplets_of_core(Q, at::mm(rows.mH(), P), P, rank);
}

at::Tensor residual_probe(const at::Tensor& probe, const Triplets& factors, int64_t seed, int64_t column0) {
  const auto omega = gaussian(factors.Vh.size(-1), kProbes, seed, column0, factors.Vh.options());
  return probe - at::matmul(factors.U, factors.S.unsqueeze(-1) * at::matmul(factors.Vh, omega));
}

RandomizedSvd dense_svd(const Operator& A, int64_t rank) {
  const auto dense = A->to_dense();
  if (!std::isfinite(largest_magnitude(dense))) A->check_finite("randomized_svd");  // names the index in A
  check_finite(dense, "randomized_svd");
  auto [U, S, Vh] = at::linalg_svd(dense, /*full_matrices=*/false);
  const auto tail = S.narrow(0, rank, S.size(0) - rank);
  const double u = unit_roundoff(dense), rounding = svd_rounding(S, u);
  const double spectral = tail.numel() > 0 ? tail[0].item<double>() : 0.0;
  const double error = frobenius_norm(tail) + rounding;
  return {{.error = {error, error, spectral + rounding, 0.0}, .method = SvdMethod::dense},
          polish(U.narrow(1, 0, rank)),
          without_noise(S, u).narrow(0, 0, rank).contiguous(),
          materialized_adjoint(polish(materialized_adjoint(Vh.narrow(0, 0, rank))))};
}

void fix_signs(at::Tensor& U, at::Tensor& Vh) {
  if (U.numel() == 0) return;
  at::Tensor phase;
  // A real column without its largest magnitude at both signs needs no search for where it is.
  if (!U.is_complex()) {
    const auto [least, most] = column_extremes(U);
    if (!(most == least.neg()).any().item<bool>())
      phase = at::where(most < least.neg(), -1.0, 1.0).to(U.scalar_type()).unsqueeze(-2);
  }
  if (!phase.defined()) phase = at::sgn(U.gather(-2, U.abs().argmax(-2, /*keepdim=*/true)));
  U.mul_(at::conj_physical(phase));
  Vh.mul_(phase.mT());
}

RandomizedSvd unscaled(Triplets factors, ErrorEstimate error, int exponent, SvdMethod method) {
  error.estimate = std::ldexp(error.estimate, -exponent);
  error.upper = std::ldexp(error.upper, -exponent);
  error.spectral = std::ldexp(error.spectral, -exponent);
  return {
      {.error = error, .method = method}, std::move(factors.U), scaled(factors.S, -exponent), std::move(factors.Vh)};
}

}  // namespace fastlr
