// Argument checks and scale-free magnitudes that every algorithm shares.
#pragma once

#include <ATen/core/Tensor.h>

#include <fastlr/linear_operator.hpp>

namespace fastlr {

// A strided matrix of float32, float64, complex64 or complex128, or a clear error that names the caller and the
// argument.
void check_matrix(const at::Tensor& A, const char* caller, const char* name = "A");

// The same for what is known by its products.
void check_operator(const LinearOperator& A, const char* caller);

// The largest magnitude in A (0 for an empty one); infinite or NaN where A holds such an entry.
double largest_magnitude(const at::Tensor& A);

// Raises ValueError with the first non-finite index of A; does nothing where all entries are finite.
void check_finite(const at::Tensor& A, const char* caller, const char* name = "A");

// Unit roundoff of the real type, 2^-24 or 2^-53.
double unit_roundoff(at::ScalarType type);
double unit_roundoff(const at::Tensor& A);

// The type of twice the precision, or the same: complex128 or float64.
at::ScalarType double_type(const at::Tensor& A);

// The e for which magnitude * 2^e lies in [1/2, 1); 0 for zero.
int scale_exponent(double magnitude);

// Whether the squares of entries up to `magnitude`, of the type of A, are far from overflow and underflow; false
// for a magnitude that is not finite.
bool squares_in_range(const at::Tensor& A, double magnitude);

// The e for which the squares of A * 2^e are: 0 where those of A are.
int exponent_in_range(const at::Tensor& A, double magnitude);

// A * 2^e, exact but for underflow; A itself where e = 0. 2^e may lie outside the type's range.
at::Tensor scaled(const at::Tensor& A, int exponent);

// ‖A‖_F in double precision, without overflow or underflow of the squares.
double frobenius_norm(const at::Tensor& A);

// Aᴴ in memory of its own: lazily conjugated views do not survive every dispatch context of torch.
at::Tensor materialized_adjoint(const at::Tensor& A);

// |a|^2 of every entry, real.
at::Tensor squared_magnitude(const at::Tensor& A);

}  // namespace fastlr
