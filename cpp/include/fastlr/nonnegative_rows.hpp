// Least squares and quadratic programs with nonnegative unknowns, many with one small matrix.
#pragma once

#include <ATen/core/Tensor.h>

namespace fastlr {

struct NonnegativeRows {
  at::Tensor X;
  double decrease;       // of the sum of f over the rows, a sum of what the steps gained: nothing cancels
  double before, after;  // KKT residuals, ‖min(X D, (gradient of f) D^-1)‖_F with D² the diagonal of G
};

struct NonnegativeRowsOptions {
  double penalty = 0.0;
  int64_t passes = 1;
  double tol = 0.0;
};

// Lowers f(x) = xᵀGx/2 - bᵀx + penalty 1ᵀx over x >= 0 for the rows b of B (m x k), from the rows of X (m x k), by
// cyclic coordinate descent: every step is the exact minimum in one coordinate. A row has `passes` over its coordinates
// at most, and none after one that lowers f by at most tol times what its first one did. G (k x k) is symmetric
// positive semidefinite; where G_jj = 0, x_j = 0. Negative entries of X count as zeros. float32 and float64, sums in
// float64. A row's result does not depend on the other rows, nor on the number of threads.
//
// With G = HHᵀ and B = AHᵀ, the rows of X are those of a nonnegative X with X H ≈ A. Where ‖H_j‖ is the root of G_jj,
// `before` and `after` are in units of A: what a step in each coordinate alone would change of X H.
//
// Sources: Cichocki, Phan, "Fast local algorithms for large scale nonnegative matrix and tensor factorizations", IEICE
// Trans. E92-A (2009); Gillis, Glineur, "Accelerated multiplicative updates and hierarchical ALS algorithms for
// nonnegative matrix factorization", Neural Comput. 24 (2012), for passes that go on while they gain.
NonnegativeRows nonnegative_rows(const at::Tensor& X, const at::Tensor& G, const at::Tensor& B,
                                 const NonnegativeRowsOptions& options);

}  // namespace fastlr
