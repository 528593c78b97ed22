#include "krylov_solvers.hpp"

#include <ATen/ATen.h>

namespace fastlr {
namespace {

at::Tensor lengths(const at::Tensor& X) { return at::linalg_vector_norm(X, 2, at::IntArrayRef{0}, /*keepdim=*/true); }

// Zero where the divisor is: that right-hand side is done.
at::Tensor quotient(const at::Tensor& a, const at::Tensor& b) {
  return at::where(b > 0, a / at::where(b > 0, b, at::ones_like(b)), at::zeros_like(b));
}

at::Tensor real_products(const at::Tensor& X, const at::Tensor& Y) {
  const auto products = (X.is_complex() ? at::conj_physical(X) : X) * Y;
  return (products.is_complex() ? at::real(products) : products).sum(0, /*keepdim=*/true);
}

}  // namespace

KrylovRun conjugate_gradients(const LinearOperator& Q, const at::Tensor& C, int64_t max_iters, const Enough& enough) {
  auto Z = at::zeros_like(C), residual = C, direction = C;
  auto size = real_products(residual, residual);
  const int64_t k = C.size(1);
  int64_t iteration = 0;
  while (iteration < max_iters && !enough(residual)) {
    const auto image = Q.normal_matmat(direction, {/*image_from=*/k, /*co_columns=*/k}).co;
    const auto step = quotient(size, real_products(direction, image));
    Z = Z + direction * step;
    residual = residual - image * step;
    const auto next = real_products(residual, residual);
    direction = residual + direction * quotient(next, size);
    size = next;
    ++iteration;
  }
  return {Z, iteration};
}

KrylovRun lsqr(const LinearOperator& Q, const at::Tensor& B, bool consistent, int64_t max_iters, const Enough& enough) {
  auto beta = lengths(B);
  auto U = B * quotient(at::ones_like(beta), beta);
  auto V = Q.rmatmat(U);
  auto alpha = lengths(V);
  V = V * quotient(at::ones_like(alpha), alpha);
  auto Z = at::zeros_like(V), direction = V;
  auto phi = beta, rho = alpha;
  // The residual is phi times a unit vector, which LSQR does not keep: it is summed up in the same way.
  auto residual = consistent ? B : V * (phi * rho);
  int64_t iteration = 0;
  while (iteration < max_iters && !enough(residual)) {
    auto [next, co] = Q.residual_product(U * alpha, V);  // minus the next vectors
    beta = lengths(next);
    const auto inverse = quotient(at::ones_like(beta), beta);
    const auto U_next = next * -inverse;
    auto V_next = co * -inverse - V * beta;
    alpha = lengths(V_next);
    V_next = V_next * quotient(at::ones_like(alpha), alpha);
    const auto radius = at::hypot(rho, beta), c = quotient(rho, radius), s = quotient(beta, radius);
    Z = Z + direction * quotient(c * phi, radius);
    direction = V_next - direction * quotient(s * alpha, radius);
    if (consistent) residual = residual * s.square() - U_next * (phi * s * c);
    phi = s * phi;
    rho = -c * alpha;
    if (!consistent) residual = V_next * (phi * rho);
    U = U_next;
    V = V_next;
    ++iteration;
  }
  return {Z, iteration};
}

}  // namespace fastlr
