// A residual and its product with the transpose, in one read of the matrix.
#pragma once

#include <cstdint>

namespace fastlr::kernels {

// A strided matrix of which one of the strides is 1.
template <typename T>
struct Strided {
  const T* entries;
  int64_t rows, columns, row_stride, column_stride;
};

// r = b - A x and g = Aᵀ r for vectors; b may be null, which is zero. g is summed in double precision over parts of
// a few thousand rows, one set of parts to a thread.
template <typename T>
void residual_cpu(const Strided<T>& A, const T* x, const T* b, T* r, double* g);

}  // namespace fastlr::kernels
