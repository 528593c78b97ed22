#include <fastlr/orthonormalize.hpp>

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "checks.hpp"
#include "tall.hpp"

namespace fastlr {
namespace {

// ‖G - I‖, the largest of a batch.
double distance_from_identity(const at::Tensor& G) {
  if (G.numel() == 0) return 0.0;
  auto difference = G.clone();
  difference.diagonal(0, -2, -1).sub_(1);
  return at::linalg_vector_norm(difference, 2, at::IntArrayRef({-2, -1})).max().item<double>();
}

// A shift beyond the usual rounding error of a Gram matrix with unit diagonal. The worst case that Fukaya et al.
// prove safe is so large that float32 columns would need many passes; a breakdown below it is caught.
double breakdown_shift(const at::Tensor& Y) {
  const double m = Y.size(0), k = Y.size(1);
  return 4 * (std::sqrt(m) + k) * unit_roundoff(Y);
}

// Below this distance ‖YᴴY − I‖ one Cholesky QR pass gives orthonormality to rounding.
constexpr double kNearOrthonormal = 0.5;

// Q (3 I - G) / 2 for G = QᴴQ near I, the first step of Newton and Schulz for Q G^-1/2: orthonormal to
// (3 / 8) ‖G - I‖^2, by a product instead of a factorization.
void newton_schulz_(at::Tensor& Q, const at::Tensor& G) {
  auto correction = G * -0.5;
  correction.diagonal(0, -2, -1).add_(0.5);
  tall_add_product_(Q, correction);
}

// Whether what newton_schulz_ leaves is below rounding.
bool newton_schulz_suffices(double distance, double u) { return distance * distance < u; }

// R^-1 of Cholesky's R; undefined where the factorization breaks down.
std::optional<at::Tensor> whitening(const at::Tensor& G, double shift = 0.0) {
  auto factors = cholesky_factors(G, shift);
  if (!factors.valid.item<bool>()) return std::nullopt;
  return std::move(factors.T);
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
    auto T = whitening(G);
    if (!T) T = whitening(G, breakdown_shift(Y));
    if (!T) return std::nullopt;
    if (pass == 0) {
      Q = tall_product(Y, *T);
    } else {
      tall_add_product_(Q, *T - at::eye(T->size(0), T->options()));
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
  const auto T = whitening(accurate_gram(Q));
  TORCH_CHECK_LINALG(T, "orthonormalize: LAPACK's QR factorization is not orthonormal; please report the matrix");
  return tall_product(Q, *T);
}

at::Tensor polish(const at::Tensor& Q) {
  const auto G = accurate_gram(Q);
  const double distance = distance_from_identity(G);
  if (newton_schulz_suffices(distance, unit_roundoff(Q))) {
    auto polished = Q.clone(at::MemoryFormat::Contiguous);
    newton_schulz_(polished, G);
    return polished;
  }
  if (distance < kNearOrthonormal) return tall_product(Q, cholesky_factors(G).T);
  if (Q.dim() == 2) return orthonormalize(Q);
  std::vector<at::Tensor> each;
  for (const auto& one : Q.unbind()) each.push_back(orthonormalize(one));
  return at::stack(each);
}

at::Tensor stabilize(const at::Tensor& Y) {
  check_matrix(Y, "orthonormalize", "Y");
  const auto safe = within_range(Y);
  if (const auto T = whitening(at::mm(safe.mH(), safe))) return tall_product(safe, *T);
  return orthonormalize(safe);
}

}  // namespace fastlr
