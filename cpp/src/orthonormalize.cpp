#include <fastlr/orthonormalize.hpp>

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "checks.hpp"

namespace fastlr {
namespace {

// Upper triangular R with R^T R = G + shift * diag(G), by Cholesky of G scaled to a unit diagonal (columns of
// very different size then cost no accuracy). Undefined where the factorization breaks down: G is not
// positive definite in floating point.
std::optional<at::Tensor> cholesky_factor(const at::Tensor& G, double shift) {
  const auto norms = G.diagonal().sqrt();
  const auto scale = at::where(norms > 0, norms, at::ones_like(norms));
  auto unit = G / at::outer(scale, scale);
  unit.diagonal().add_(shift);
  const auto [L, info] = at::linalg_cholesky_ex(unit);
  if (info.item<int>() != 0) return std::nullopt;
  return L.mT() * scale;
}

// Y R^-1 in blocks of rows that stay in cache: the solver copies what it is given.
at::Tensor right_divide(const at::Tensor& Y, const at::Tensor& R) {
  constexpr int64_t step = 4096;
  auto quotient = at::empty(Y.sizes(), Y.options());
  for (int64_t row = 0; row < Y.size(0); row += step) {
    const int64_t height = std::min(step, Y.size(0) - row);
    auto block = quotient.narrow(0, row, height);
    at::linalg_solve_triangular_out(block, R, Y.narrow(0, row, height), /*upper=*/true, /*left=*/false);
  }
  return quotient;
}

double distance_from_identity(const at::Tensor& G) {
  return at::linalg_matrix_norm(G - at::eye(G.size(0), G.options()), "fro").item<double>();
}

// The shift of Fukaya et al. for a Gram matrix with unit diagonal, whose norm is at most k.
double breakdown_shift(const at::Tensor& Y) {
  const double m = Y.size(0), k = Y.size(1);
  return 11 * (m + k + 1) * k * unit_roundoff(Y);
}

// Below this distance ‖YᵀY − I‖ one Cholesky QR pass gives orthonormality to rounding.
constexpr double kNearOrthonormal = 0.5;

// Undefined where the Cholesky factorization breaks down or the basis does not become orthonormal.
std::optional<at::Tensor> cholesky_qr(at::Tensor Q) {
  constexpr int most_passes = 4;
  for (int pass = 0; pass < most_passes; ++pass) {
    const auto G = at::mm(Q.mT(), Q);
    const bool last = pass > 0 && distance_from_identity(G) < kNearOrthonormal;
    auto R = cholesky_factor(G, 0.0);
    if (!R) R = cholesky_factor(G, breakdown_shift(Q));
    if (!R) return std::nullopt;
    Q = right_divide(Q, *R);
    if (last) return Q;
  }
  return std::nullopt;
}

at::Tensor scaled_to_unit(const at::Tensor& Y) {
  const double magnitude = largest_magnitude(Y);
  if (!std::isfinite(magnitude)) check_finite(Y, "orthonormalize", "Y");
  return scaled(Y, scale_exponent(magnitude));
}

}  // namespace

at::Tensor orthonormalize(const at::Tensor& Y) {
  check_matrix(Y, "orthonormalize", "Y");
  const auto unit = scaled_to_unit(Y);
  if (Y.size(0) >= Y.size(1))
    if (const auto Q = cholesky_qr(unit)) return *Q;
  // Householder QR completes any rank to an orthonormal basis; one Cholesky pass removes the rounding that it
  // gathers over long columns.
  const auto Q = std::get<0>(at::linalg_qr(unit));
  const auto R = cholesky_factor(at::mm(Q.mT(), Q), 0.0);
  TORCH_CHECK_LINALG(R, "orthonormalize: LAPACK's QR factorization is not orthonormal");
  return right_divide(Q, *R);
}

at::Tensor stabilize(const at::Tensor& Y) {
  check_matrix(Y, "orthonormalize", "Y");
  const auto scaled = scaled_to_unit(Y);
  if (const auto R = cholesky_factor(at::mm(scaled.mT(), scaled), breakdown_shift(scaled)))
    return right_divide(scaled, *R);
  return orthonormalize(scaled);
}

}  // namespace fastlr
