#include "svd_parts.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include <fastlr/orthonormalize.hpp>
#include <fastlr/random.hpp>

#include "first_product.hpp"
#include "tall.hpp"

namespace fastlr {
namespace {

double rounding_factor(const at::Tensor& S, double u) { return std::sqrt(static_cast<double>(S.numel())) * u; }

}  // namespace

at::Tensor noise_level(const at::Tensor& S, double u) {
  return 4 * u * std::sqrt(static_cast<double>(S.size(-1))) * S.narrow(-1, 0, std::min<int64_t>(1, S.size(-1)));
}

at::Tensor without_noise(const at::Tensor& S, double u) { return at::where(S > noise_level(S, u), S, 0.0); }

double svd_rounding(const at::Tensor& S, double u) { return 10 * rounding_factor(S, u) * frobenius_norm(S); }

Sketch sketch_range(const Operator& A, int64_t width, int64_t seed) {
  const auto [op, exponent, product] = first_product(
      A, "randomized_svd", [&](const Operator& op) { return op->gaussian_matmat(width + kProbes, seed); });
  return {op, exponent, product.narrow(1, 0, width),
          product.narrow(1, width, kProbes).clone(at::MemoryFormat::Contiguous)};
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

namespace {

// diag(S) Vh Omega'
at::Tensor approximated_probe(const Triplets& factors, int64_t seed, int64_t column0) {
  const auto omega = gaussian(factors.Vh.size(-1), kProbes, seed, column0, factors.Vh.options());
  return factors.S.unsqueeze(-1) * at::matmul(factors.Vh, omega);
}

}  // namespace

at::Tensor residual_probe(const at::Tensor& probe, const Triplets& factors, int64_t seed, int64_t column0) {
  const auto right = approximated_probe(factors, seed, column0);
  return probe.dim() == 2 ? at::addmm(probe, factors.U, right, 1, -1) : at::baddbmm(probe, factors.U, right, 1, -1);
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

at::Tensor column_phases(const at::Tensor& U) {
  if (U.size(-2) == 0) return at::ones_like(U.sum(-2, /*keepdim=*/true));
  // A real column without its largest magnitude at both signs needs no search for where it is.
  if (!U.is_complex()) {
    const auto [least, most] = column_extremes(U);
    if (!(most == least.neg()).any().item<bool>())
      return at::where(most < least.neg(), -1.0, 1.0).to(U.scalar_type()).unsqueeze(-2);
  }
  return at::sgn(U.gather(-2, U.abs().argmax(-2, /*keepdim=*/true)));
}

void fix_signs(at::Tensor& U, at::Tensor& Vh) {
  if (U.numel() == 0) return;
  const auto phases = column_phases(U);
  U.mul_(at::conj_physical(phases));
  Vh.mul_(phases.mT());
}

void store(BatchedSvd& batch, int64_t i, const RandomizedSvd& one) {
  batch.U.select(0, i).copy_(one.U);
  batch.S.select(0, i).copy_(one.S);
  batch.Vh.select(0, i).copy_(one.Vh);
  batch.outcomes[i] = one;
}

RandomizedSvd unscaled(Triplets factors, ErrorEstimate error, int exponent, SvdMethod method) {
  return {{.error = scaled(error, -exponent), .method = method},
          std::move(factors.U),
          scaled(factors.S, -exponent),
          std::move(factors.Vh)};
}

namespace {

// ‖E‖_F, summed up in blocks of rows: no m x kProbes matrix in memory beside the probe.
ErrorEstimate probed_error(const at::Tensor& probe, const Triplets& factors, int64_t seed, int64_t column0) {
  const int64_t rows = probe.size(0), height = cached_rows(factors.U.size(1) * probe.element_size());
  const int64_t shares = row_shares(probe, rows, height);
  if (shares == 1) return estimate_error(residual_probe(probe, factors, seed, column0));
  const auto right = approximated_probe(factors, seed, column0);
  auto norms = at::zeros({shares, kProbes}, probe.options().dtype(at::kDouble));
  for_row_blocks(rows, height, shares, [&](int64_t share, int64_t row0, int64_t count) {
    const auto error = at::addmm(probe.narrow(0, row0, count), factors.U.narrow(0, row0, count), right, 1, -1);
    auto sum = norms.select(0, share);
    sum.hypot_(at::linalg_vector_norm(error, 2, at::IntArrayRef(0), false, double_type(error)));
  });
  return error_of_norms(at::linalg_vector_norm(norms, 2, at::IntArrayRef(0)));
}

}  // namespace

RandomizedSvd probed_result(const Triplets& factors, const at::Tensor& probe, int exponent, int64_t power_iters,
                            bool converged, const SvdOptions& options, int64_t width) {
  auto result = unscaled(factors, probed_error(probe, factors, options.seed, width), exponent, options.method);
  result.power_iters = power_iters;
  result.converged = converged;
  return result;
}

}  // namespace fastlr
