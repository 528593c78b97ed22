// How the eigenvalues of a Hermitian matrix are distributed.
#pragma once

#include <ATen/core/Tensor.h>

#include <fastlr/linear_operator.hpp>

namespace fastlr {

struct SpectralDensity {
  at::Tensor nodes;    // float64, n_vectors x steps, ascending in every row
  at::Tensor weights;  // float64, of the same shape; every row sums to 1
  // float64, n_vectors: not NaN where the Krylov space became invariant, but for rounding. The row is then the vector's
  // whole measure, with every node within this distance of the eigenvalues that it stands for.
  at::Tensor resolution;
  int64_t passes;  // over A
};

// Gauss quadratures of the spectral measures of random vectors v, uniform on the sphere, from Lanczos recurrences with
// full reorthogonalization, all vectors advancing together: `steps` passes of n_vectors columns, and
// 4 n steps^2 n_vectors flops. A row integrates polynomials of degree 2 steps - 1 to vᴴ p(A) v, the expected value of
// which is tr p(A) / n.
//
// Sources: Ubaru, Chen, Saad, "Fast estimation of tr(f(A)) via stochastic Lanczos quadrature", SIMAX 38 (2017); Lin,
// Saad, Yang, "Approximating spectral densities of large matrices", SIAM Review 58 (2016).
SpectralDensity spectral_density(const Operator& A, int64_t n_vectors, int64_t steps, int64_t seed);

}  // namespace fastlr
