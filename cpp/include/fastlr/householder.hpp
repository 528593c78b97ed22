// Products of Householder reflectors, exactly unitary to rounding for any vectors.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <utility>

namespace fastlr {

// Q = H_1 ... H_k with H_j = I - 2 v_j v_j^H / ‖v_j‖^2 for the columns of V, m x k with k <= m; H_j = I where v_j = 0.
// Leading dimensions are a batch. With `lower`, V counts for its lower trapezoid alone, and products skip what is zero.
struct Reflectors {
  at::Tensor V;
  bool lower = false;
};

// Of blocks of columns of V, U = V 2^-exponents being their vectors scaled to norms in [1/2, 1): the product of their
// reflectors is I - U T U^H, T^-1 + T^-H = U^H U.
struct Factors {
  at::Tensor T;          // (parts, count, batch, width, width) in double precision, the sum of one or two parts
  at::Tensor exponents;  // (count, batch, 1, width)
};

// m k width flops in double precision. Zero-sized where V is. Raises where V is not finite.
Factors householder_factors(const Reflectors& Q);

// The first columns of Q. 4 m k c flops for c of them; 4/3 m^3 with `lower` for k = c = m.
at::Tensor householder_product(const Reflectors& Q, const Factors& factors, int64_t columns);

// Q X, or Q^H X with `adjoint`; 4 m k n flops for n columns.
at::Tensor householder_apply(const Reflectors& Q, const Factors& factors, const at::Tensor& X, bool adjoint);

// The gradients of V and X (undefined where X is the identity) from the result and its gradient: the blocks are undone
// one by one, so that no state but the result is needed. Three times the flops of the product.
std::pair<at::Tensor, at::Tensor> householder_backward(const Reflectors& Q, const Factors& factors,
                                                       const at::Tensor& result, const at::Tensor& grad, bool adjoint,
                                                       bool of_identity);

// V, unit lower trapezoidal, and phases d, with Q = (the first k columns of H_1 ... H_k) diag(d) for orthonormal
// columns Q: V is the factor L of the LU factorization without pivoting of Q - diag(d), where each d is chosen as its
// pivot is met, so that no pivot is below 1. m k^2 flops.
//
// Source: Ballard, Demmel, Grigori, Jacquelin, Knight, Nguyen, "Reconstructing Householder vectors from tall-skinny
// QR", JPDC 85 (2015).
std::pair<at::Tensor, at::Tensor> householder_vectors(const at::Tensor& Q);

}  // namespace fastlr
