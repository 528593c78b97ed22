// Loops over the kept entries of a matrix behind fastlr/sparse_linear.hpp.
#pragma once

#include <ATen/OpMathType.h>

#include <cstdint>

namespace fastlr::kernels {

// Rows of the matrix: the bits of a row begin at a whole byte; the values of row r are those from starts[r] on. Bits
// behind the last column count for nothing.
struct KeptRows {
  const uint8_t* mask;
  const int64_t* starts;
  int64_t rows, columns;
};

// starts[r] for r = 0 … rows: how many entries are kept before row r.
void count_kept_cpu(const uint8_t* mask, int64_t rows, int64_t columns, int64_t* starts);

// The dense rows, row-major.
template <typename T>
void expand_cpu(const KeptRows& kept, const T* values, T* dense);

// The entries of dense rows, `stride` apart, that are kept.
template <typename T>
void gather_cpu(const KeptRows& kept, const T* dense, int64_t stride, T* values);

// out[t * out_stride + r] = sum over j of W[r][j] * inputs[t * columns + j], summed up in the type of the inputs.
template <typename T>
void multiply_cpu(const KeptRows& kept, const T* values, const at::opmath_type<T>* inputs, int64_t tokens, T* out,
                  int64_t out_stride);

}  // namespace fastlr::kernels
