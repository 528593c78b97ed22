// Products of a matrix with so few vectors that reading the matrix is their time.
#pragma once

#include <ATen/OpMathType.h>

#include <cstdint>

namespace fastlr::kernels {

// Vectors of entries, the first of each `stride` behind that of the one before.
template <typename T>
struct Strided {
  T* entries;
  int64_t stride;
};

// out (count x rows) += X Wᵀ for W (rows x columns, contiguous) and `count` vectors X, with sums in the wider type. W
// is read once. float32, float64 and bfloat16.
template <typename T>
void add_products_with_few(const T* W, int64_t rows, int64_t columns, Strided<const at::opmath_type<T>> X,
                           int64_t count, Strided<at::opmath_type<T>> out);

}  // namespace fastlr::kernels
