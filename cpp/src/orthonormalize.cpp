#include <fastlr/orthonormalize.hpp>

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "checks.hpp"

namespace fastlr {
namespace {

// Tall operands are worked on in blocks of rows that stay in cache.
constexpr int64_t kBlockRows = 4096;

// Y <- Y R^-1.
void right_divide_(at::Tensor& Y, const at::Tensor& R) {
  const auto divisor = R.to(Y.scalar_type());
  for (auto& block : Y.split(kBlockRows))
    block.copy_(at::linalg_solve_triangular(divisor, block, /*upper=*/true, /*left=*/false));
}

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
  return at::linalg_vector_norm(G - at::eye(G.size(0), G.options())).item<double>();
}

// A shift beyond the usual rounding error of a Gram matrix with unit diagonal. The worst case that Fukaya et al.
// prove safe is so large that float32 columns would need many passes; a breakdown below it is caught.
double breakdown_shift(const at::Tensor& Y) {
  const double m = Y.size(0), k = Y.size(1);
  return 4 * (std::sqrt(m) + k) * unit_roundoff(Y);
}

at::ScalarType wide_type(const at::Tensor& Y) { return Y.is_complex() ? at::kComplexDouble : at::kDouble; }

// YᴴY in double precision, free of the bias that long sums of equal signs gather in a product (a column of m ones
// is off by up to m u / 4): float32 is accumulated in float64; for float64 the diagonal, whose terms are all
// positive, is summed pairwise.
at::Tensor accurate_gram(const at::Tensor& Y) {
  if (c10::toRealValueType(Y.scalar_type()) == at::kDouble) {
    const auto G = at::mm(Y.mH(), Y);
    G.diagonal().copy_(squared_magnitude(Y).sum(0));
    return G;
  }
  auto G = at::zeros({Y.size(1), Y.size(1)}, Y.options().dtype(wide_type(Y)));
  for (const auto& block : Y.split(kBlockRows)) {
    const auto wide = block.to(wide_type(Y));
    G.addmm_(wide.mH(), wide);
  }
  return G;
}

// Below this distance ‖YᴴY − I‖ one Cholesky QR pass gives orthonormality to rounding.
constexpr double kNearOrthonormal = 0.5;

// Q (3 I - G) / 2 for G = QᴴQ near I, the first step of Newton and Schulz for Q G^-1/2: orthonormal to
// (3 / 8) ‖G - I‖^2, by a product instead of a factorization.
void newton_schulz_(at::Tensor& Q, const at::Tensor& G) {
  const auto correction = ((at::eye(G.size(0), G.options()) - G) / 2).to(Q.scalar_type());
  for (auto& block : Q.split(kBlockRows)) block += at::mm(block, correction);
}

// Whether what newton_schulz_ leaves is below rounding.
bool newton_schulz_suffices(double distance, double u) { return distance * distance < u; }

// Upper triangular R with RᴴR = G + shift * diag(G), by Cholesky of G scaled to a unit diagonal (columns of
// very different size then cost no accuracy). Undefined where the factorization breaks down: G is not
// positive definite in floating point.
std::optional<at::Tensor> cholesky_factor(const at::Tensor& G, double shift = 0.0) {
  const auto norms = at::real(G.diagonal()).clamp_min(0).sqrt();
  const auto scale = at::where(norms > 0, norms, 1.0);
  auto unit = G / at::outer(scale, scale);
  if (shift > 0) unit.diagonal().add_(shift);
  const auto [L, info] = at::linalg_cholesky_ex(unit);
  if (info.item<int>() != 0) return std::nullopt;
  return L.mH() * scale;
}

// Undefined where the Cholesky factorization breaks down or the basis does not become orthonormal.
std::optional<at::Tensor> cholesky_qr(const at::Tensor& Y) {
  constexpr int most_passes = 4;
  at::Tensor Q;
  for (int pass = 0; pass < most_passes; ++pass) {
    // Every pass but the first may be the last.
    const auto G = pass == 0 ? at::mm(Y.mH(), Y) : accurate_gram(Q);
    const double distance = pass == 0 ? 1.0 : distance_from_identity(G);
    if (newton_schulz_suffices(distance, unit_roundoff(Y))) {
      newton_schulz_(Q, G);
      return Q;
    }
    auto R = cholesky_factor(G);
    if (!R) R = cholesky_factor(G, breakdown_shift(Y));
    if (!R) return std::nullopt;
    if (pass == 0) {
      Q = right_divide(Y, *R);
    } else {
      right_divide_(Q, *R);
      if (distance < kNearOrthonormal) return Q;
    }
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
  const auto R = cholesky_factor(accurate_gram(Q));
  TORCH_CHECK_LINALG(R, "orthonormalize: LAPACK's QR factorization is not orthonormal; please report the matrix");
  return right_divide(Q, *R);
}

at::Tensor polish(const at::Tensor& Q) {
  const auto G = accurate_gram(Q);
  if (!newton_schulz_suffices(distance_from_identity(G), unit_roundoff(Q))) return orthonormalize(Q);
  auto polished = Q.clone(at::MemoryFormat::Contiguous);
  newton_schulz_(polished, G);
  return polished;
}

at::Tensor stabilize(const at::Tensor& Y) {
  check_matrix(Y, "orthonormalize", "Y");
  const auto safe = within_range(Y);
  if (const auto R = cholesky_factor(at::mm(safe.mH(), safe))) return right_divide(safe, *R);
  return orthonormalize(safe);
}

}  // namespace fastlr
