#include <fastlr/svd_backward.hpp>

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include <fastlr/linear_operator.hpp>

#include "checks.hpp"

namespace fastlr {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
// Iterations that are not worth their overhead: the dense solution is taken at once.
constexpr int64_t kFewIterations = 16;

// ---- columns: scalars of shape (..., 1, k) ----

at::Tensor norms(const at::Tensor& X) { return at::linalg_vector_norm(X, 2, {-2}, /*keepdim=*/true); }

at::Tensor products(const at::Tensor& X, const at::Tensor& Y) { return at::linalg_vecdot(X, Y, -2).unsqueeze(-2); }

at::Tensor real_products(const at::Tensor& X, const at::Tensor& Y) {
  return X.is_complex() ? at::real(products(X, Y)) : products(X, Y);
}

// X without its components in the span of the orthonormal columns of Q.
at::Tensor outside(const at::Tensor& Q, const at::Tensor& X) { return X - at::matmul(Q, at::matmul(Q.mH(), X)); }

// ---- inside the kept spaces ----

// The M of U M Vᴴ. With dP = Uᴴ dA V, dU = U K and dV = V L inside, K and L are skew-Hermitian:
// K + L = (dP + dPᴴ) / (σ_j - σ_i) and K - L = (dP - dPᴴ) / (σ_j + σ_i). Differences of values up to `least`, and
// numerators over them up to `noise`, are rounding: nothing is divided by the first, and the second are zero.
at::Tensor inner(const at::Tensor& S, const at::Tensor& least, const at::Tensor& UgU, const at::Tensor& VgV,
                 const at::Tensor& noise) {
  const auto skew = [](const at::Tensor& X) { return (X - X.mH()) / 2; };
  const auto row = S.unsqueeze(-1), column = S.unsqueeze(-2);
  const auto difference = column - row, sum = column + row;
  const auto turn = skew(UgU + VgV);
  const auto significant = turn.abs() > noise, distinct = difference.abs() > least;
  if (significant.logical_and(distinct.logical_not()).any().item<bool>())
    TORCH_WARN(
        "randomized_svd: the loss depends on the choice among the singular vectors of values that are equal to "
        "rounding, which has no derivative and is left out of the gradient");
  return turn / at::where(distinct.logical_and(significant), difference, kInfinity) +
         skew(UgU - VgV) / at::where(sum > least, sum, kInfinity);
}

// The gradient of U before the phases of the pairs were fixed. Turning pair i by a phase φ changes the loss by
// `turn` φ; the phase that keeps the pivot entry real is -Im(pivot) / pivot.
at::Tensor before_fixed_phases(const at::Tensor& U, const at::Tensor& V, const at::Tensor& gU, const at::Tensor& gV) {
  // The largest real part: of entries of the same magnitude, it is the pivot that is real.
  const auto place = at::real(U).argmax(-2, /*keepdim=*/true);
  const auto pivot = at::real(U).gather(-2, place);
  const auto turn = at::imag(products(U, gU) + products(V, gV));
  return gU.scatter_add(-2, place, at::complex(at::zeros_like(turn), -turn / pivot));
}

// ---- outside the kept spaces ----

// X - T Y = F, Y - Tᴴ X = G with T = (I - U Uᴴ) A (I - V Vᴴ) / σ_i for column i; m >= n.
struct Systems {
  at::Tensor A, U, V;
  at::Tensor sigma;      // infinite where it is zero
  at::Tensor tolerance;  // of column i: the rounding of a product with T
  at::Tensor scale;      // ‖gu_i‖ + ‖gv_i‖ before the components inside were taken away

  at::Tensor forward(const at::Tensor& Y) const { return outside(U, at::matmul(A, Y)) / sigma; }
  at::Tensor adjoint(const at::Tensor& X) const { return outside(V, at::matmul(A.mH(), X)) / sigma; }
  at::Tensor normal(const at::Tensor& Y) const { return Y - adjoint(forward(Y)); }

  // Where the residual R of (I - TᴴT) Y is above a multiple of the rounding level.
  at::Tensor unsolved(const at::Tensor& R, const at::Tensor& Y, double multiple = 1.0) const {
    return norms(R) > multiple * tolerance * (norms(Y) + scale);
  }
};

struct Solution {
  at::Tensor Y;
  at::Tensor dropped;  // columns whose right-hand side is not in the range
  bool converged = true;
};

// (I - TᴴT) Y = B by conjugate residuals. A column stops where its residual lies along directions in which the matrix
// is zero, or negative as for triplets that have not converged: least squares without a component along it. The noise
// of `curvature` is below that limit: nothing is divided by it.
Solution conjugate_residuals(const Systems& systems, const at::Tensor& B, int64_t limit) {
  auto Y = at::zeros_like(B), R = B, P = R;
  auto NR = systems.normal(R), NP = NR;
  auto curvature = real_products(R, NR);
  auto stuck = at::zeros_like(systems.scale, at::kBool);
  for (;; --limit) {
    check_interrupt();
    const auto left = systems.unsolved(R, Y, 0.25).logical_and_(stuck.logical_not());
    stuck = stuck.logical_or(left.logical_and(curvature <= 4 * systems.tolerance * norms(R).square()));
    const auto active = left.logical_and(stuck.logical_not());
    if (!active.any().item<bool>()) break;
    if (limit == 0) return {Y, stuck, false};
    const auto step = at::where(active, curvature / real_products(NP, NP), 0.0);
    Y = Y + step * P;
    R = R - step * NP;
    NR = systems.normal(R);
    const auto next = real_products(R, NR);
    const auto ratio = at::where(active, next / curvature, 0.0);
    P = R + ratio * P;
    NP = NR + ratio * NP;
    curvature = next;
  }
  // The residual has only been updated so far.
  R = B - systems.normal(Y);
  const bool converged = !systems.unsolved(R, Y).logical_and_(stuck.logical_not()).any().item<bool>();
  const auto along = R * (products(R, Y) / real_products(R, R));
  return {at::where(stuck, Y - along, Y), stuck, converged};
}

// The same by the eigenvalues of TᴴT.
Solution dense_solution(const Systems& systems, const at::Tensor& B, const at::Tensor& largest) {
  const auto C = outside(systems.V, outside(systems.U, systems.A / largest).mH());
  const auto [values, Q] = at::linalg_eigh(at::matmul(C, C.mH()));
  const auto separation = 1 - values.unsqueeze(-1) * (largest / systems.sigma).square();
  const auto coefficients = at::matmul(Q.mH(), B);
  const auto resolved = separation > systems.tolerance;
  const auto left = at::where(resolved, at::zeros_like(coefficients), coefficients);
  return {at::matmul(Q, coefficients / at::where(resolved, separation, kInfinity)),
          norms(left) > systems.tolerance * systems.scale};
}

// As many iterations as take the time of a dense solution: a Gram matrix of the shorter side, 2 m n^2 flops, and its
// eigenvectors, which take the time of some 25 n^3 flops of a product.
int64_t affordable_iterations(const at::Tensor& A, int64_t k) {
  const double m = A.size(-2), n = A.size(-1);
  return static_cast<int64_t>(n / (2 * k) * (1 + 12 * n / m));
}

at::Tensor solve_normal(const Systems& systems, const at::Tensor& B, const at::Tensor& largest) {
  if (!systems.unsolved(B, at::zeros_like(B)).any().item<bool>()) return at::zeros_like(B);
  const int64_t limit = affordable_iterations(systems.A, B.size(-1));
  auto solution = limit < kFewIterations ? dense_solution(systems, B, largest) : conjugate_residuals(systems, B, limit);
  if (!solution.converged) solution = dense_solution(systems, B, largest);
  if (solution.dropped.any().item<bool>())
    TORCH_WARN(
        "randomized_svd: the loss depends on directions in which U and Vh have no derivative, because singular values "
        "beyond the rank are as large as kept ones (the rank cuts a cluster, or the factors have not converged); they "
        "are left out of the gradient");
  return solution.Y;
}

// X and Y of X Vᴴ + U Yᴴ: X_i σ_i - A⊥ Y_i = (I - U Uᴴ) gu_i, Y_i σ_i - A⊥ᴴ X_i = (I - V Vᴴ) gv_i.
std::pair<at::Tensor, at::Tensor> outer(const at::Tensor& A, const at::Tensor& U, const at::Tensor& S,
                                        const at::Tensor& V, const at::Tensor& gU, const at::Tensor& gV,
                                        double rounding) {
  if (A.size(-2) < A.size(-1)) {
    auto [Y, X] = outer(A.mH(), V, S, U, gV, gU, rounding);
    return {std::move(X), std::move(Y)};
  }
  const auto values = S.unsqueeze(-2), largest = values.narrow(-1, 0, 1);
  const auto kept = values > rounding * largest;
  const auto sigma = at::where(kept, values, kInfinity);
  const Systems systems{A, U, V, sigma, at::where(kept, rounding * largest / values, kInfinity), norms(gU) + norms(gV)};
  const auto F = outside(U, gU), G = outside(V, gV);
  const auto Y = solve_normal(systems, G + systems.adjoint(F), at::where(largest > 0, largest, 1.0));
  return {(F + systems.forward(Y)) / sigma, Y / sigma};
}

}  // namespace

at::Tensor svd_backward(const at::Tensor& A, const at::Tensor& U, const at::Tensor& S, const at::Tensor& Vh,
                        const std::optional<at::Tensor>& gU, const std::optional<at::Tensor>& gS,
                        const std::optional<at::Tensor>& gVh, bool center) {
  if (A.numel() == 0 || S.numel() == 0) return at::zeros(A.sizes(), A.options());
  const auto without_mean = [center](const at::Tensor& X) { return center ? X - X.mean(-2, /*keepdim=*/true) : X; };
  auto left = gS ? U * gS->unsqueeze(-2) : at::zeros_like(U);
  if (!gU && !gVh) return without_mean(at::matmul(left, Vh));

  const auto V = materialized_adjoint(Vh);
  // In one layout, whatever that of the gradients is, so that it does not show in the last digit.
  auto whole = gU.value_or(at::zeros_like(U)).contiguous();
  auto gV = materialized_adjoint(gVh.value_or(at::zeros_like(Vh)).contiguous());
  // Gradients of magnitude one: squares stay in range.
  const auto magnitude = at::maximum(whole.abs().amax({-2, -1}, /*keepdim=*/true), gV.abs().amax({-2, -1}, true));
  const auto unit = at::where(magnitude > 0, magnitude, 1.0);
  whole = whole / unit;
  gV = gV / unit;
  if (U.is_complex()) whole = before_fixed_phases(U, V, whole, gV);
  // Values that are no further apart coincide: what rounding may do to a value, as a fraction of the largest.
  const double rounding = 4 * std::sqrt(static_cast<double>(std::min(A.size(-2), A.size(-1)))) * unit_roundoff(A);
  const auto least = rounding * S.narrow(-1, 0, 1).unsqueeze(-1);
  const auto size = norms(whole) + norms(gV);
  const auto M = inner(S, least, at::matmul(U.mH(), whole), at::matmul(Vh, gV), rounding * (size + size.mT()));
  const auto [X, Y] = outer(without_mean(A), U, S, V, whole, gV, rounding);
  left = left + (at::matmul(U, M) + X) * unit;
  return without_mean(at::matmul(at::cat({left, U}, -1), at::cat({Vh, (Y * unit).mH()}, -2)));
}

}  // namespace fastlr
