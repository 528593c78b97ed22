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

// Tall operands are worked on in blocks of rows that stay in cache.
constexpr int64_t kBlockRows = 4096;

// Y R^-1, of the type of Y.
at::Tensor right_divide(const at::Tensor& Y, const at::Tensor& R) {
  const auto divisor = R.to(Y.scalar_type());
  auto quotient = at::empty(Y.sizes(), Y.options());
  for (int64_t row = 0; row < Y.size(0); row += kBlockRows) {
    const int64_t height = std::min(kBlockRows, Y.size(0) - row);
    auto block = quotient.narrow(0, row, height);
    at::linalg_solve_triangular_out(block, divisor, Y.narrow(0, row, height), /*upper=*/true, /*left=*/false);
  }
  return quotient;
}

double distance_from_identity(const at::Tensor& G) {
  return at::linalg_matrix_norm(G - at::eye(G.size(0), G.options()), "fro").item<double>();
}

// A shift beyond the usual rounding error of a Gram matrix with unit diagonal. The worst case that Fukaya et al.
// prove safe is so large that float32 columns would need many passes; a breakdown below it is caught.
double breakdown_shift(const at::Tensor& Y) {
  const double m = Y.size(0), k = Y.size(1);
  return 4 * (std::sqrt(m) + k) * unit_roundoff(Y);
}

// YᵀY free of the bias that long sums of equal signs gather in a product (a column of m ones is off by up to
// m u / 4): float32 is accumulated in float64; for float64 the diagonal, whose terms are all positive, is summed
// pairwise.
at::Tensor accurate_gram(const at::Tensor& Y) {
  if (Y.scalar_type() == at::kDouble) {
    const auto G = at::mm(Y.mT(), Y);
    G.diagonal().copy_(Y.square().sum(0));
    return G;
  }
  auto G = at::zeros({Y.size(1), Y.size(1)}, Y.options().dtype(at::kDouble));
  for (const auto& block : Y.split(kBlockRows)) {
    const auto wide = block.to(at::kDouble);
    G.addmm_(wide.mT(), wide);
  }
  return G;
}

// Below this distance ‖YᵀY − I‖ one Cholesky QR pass gives orthonormality to rounding.
constexpr double kNearOrthonormal = 0.5;

// Undefined where the Cholesky factorization breaks down or the basis does not become orthonormal.
std::optional<at::Tensor> cholesky_qr(at::Tensor Q) {
  constexpr int most_passes = 4;
  for (int pass = 0; pass < most_passes; ++pass) {
    // Every pass but the first may be the last.
    const auto G = pass == 0 ? at::mm(Q.mT(), Q) : accurate_gram(Q);
    auto R = cholesky_factor(G, 0.0);
    if (!R) R = cholesky_factor(G, breakdown_shift(Q));
    if (!R) return std::nullopt;
    Q = right_divide(Q, *R);
    if (pass > 0 && distance_from_identity(G) < kNearOrthonormal) return Q;
  }
  return std::nullopt;
}

// Y, times a power of two where its squares would leave the range of the type.
at::Tensor within_range(const at::Tensor& Y) {
  const double magnitude = largest_magnitude(Y);
  if (squares_in_range(Y, magnitude)) return Y;
  check_finite(Y, "orthonormalize", "Y");
  return scaled(Y, scale_exponent(magnitude));
}

}  // namespace

at::Tensor orthonormalize(const at::Tensor& Y) {
  check_matrix(Y, "orthonormalize", "Y");
  const auto safe = within_range(Y);
  if (Y.size(0) >= Y.size(1))
    if (const auto Q = cholesky_qr(safe)) return *Q;
  // Householder QR completes any rank to an orthonormal basis; one Cholesky pass removes the rounding that it
  // gathers over long columns.
  const auto Q = std::get<0>(at::linalg_qr(safe));
  const auto R = cholesky_factor(accurate_gram(Q), 0.0);
  TORCH_CHECK_LINALG(R, "orthonormalize: LAPACK's QR factorization is not orthonormal; please report the matrix");
  return right_divide(Q, *R);
}

at::Tensor stabilize(const at::Tensor& Y) {
  check_matrix(Y, "orthonormalize", "Y");
  const auto safe = within_range(Y);
  if (const auto R = cholesky_factor(at::mm(safe.mT(), safe), 0.0)) return right_divide(safe, *R);
  return orthonormalize(safe);
}

}  // namespace fastlr
