// Products with a matrix that keeps some of its entries: their values in row-major order, and a bit for every entry
// of the matrix.
#pragma once

#include <ATen/core/Tensor.h>

namespace fastlr {

// W is rows x columns. mask is uint8, rows x ceil(columns / 8): bit j % 8 of byte j / 8 of a row says whether column j
// is kept; the bits behind the last column are zero. values holds the kept entries, row by row. Where a value begins is
// counted from the mask in every call: one read of 1/32 of the bytes of a float32 matrix, and nothing to keep in step.
//
// All five are linear in each of their operands but the mask, and the last three are each other's derivatives. float16,
// bfloat16, float32 and float64; inputs of one call have one type. Leading dimensions are batches.

// W itself.
at::Tensor sparse_expand(const at::Tensor& values, const at::Tensor& mask, int64_t columns);

// The entries of `matrix` that the mask keeps, of which there are `nonzeros`: the adjoint of sparse_expand.
at::Tensor sparse_gather(const at::Tensor& matrix, const at::Tensor& mask, int64_t nonzeros);

// X Wᵀ for X (... x columns). For few rows of X the rows of W are expanded one by one and multiplied in the cache: the
// bytes of the mask and the values are all that is read. Otherwise W is expanded in blocks of rows.
at::Tensor sparse_linear(const at::Tensor& X, const at::Tensor& values, const at::Tensor& mask);

// Y W for Y (... x rows), W expanded in blocks of rows.
at::Tensor sparse_linear_adjoint(const at::Tensor& Y, const at::Tensor& values, const at::Tensor& mask,
                                 int64_t columns);

// The kept entries of Yᵀ X, for Y (... x rows) and X (... x columns), in blocks of rows.
at::Tensor sparse_products(const at::Tensor& Y, const at::Tensor& X, const at::Tensor& mask, int64_t nonzeros);

}  // namespace fastlr
