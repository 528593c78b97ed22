// What can be seen, without a product of its own, of a matrix that is said to be Hermitian.
#pragma once

#include <ATen/core/Tensor.h>

#include <fastlr/linear_operator.hpp>

namespace fastlr {

void check_square(const LinearOperator& A, const char* caller);

// Raises LinAlgError where Xᴴ A X is not Hermitian to rounding, for random X and the product A X; `name` is what the
// caller calls A.
void check_hermitian(const at::Tensor& product, const at::Tensor& X, const char* caller, const char* name = "A");

// Raises LinAlgError where the eigenvalues (ascending) of A, or of Qᴴ A Q with orthonormal Q, show that A is not
// positive semidefinite, computed with unit roundoff u.
void check_semidefinite(const at::Tensor& eigenvalues, double u, const char* caller);

}  // namespace fastlr
