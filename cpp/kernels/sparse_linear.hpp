// Loops over the kept entries of a matrix behind fastlr/sparse_linear.hpp.
#pragma once

#include <ATen/OpMathType.h>

#include <cstdint>

#include "kept_words.hpp"

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

// Inputs of W, in the type of its sums, `stride` apart: a multiple of kWord, zero behind the last column.
template <typename T>
struct Inputs {
  const at::opmath_type<T>* entries;
  int64_t tokens, stride;
};

// out (tokens x rows) = X Wᵀ. The mask is counted on the way; false where it does not keep `nonzeros` entries, and
// `out` is then nothing.
template <typename T>
bool multiply_cpu(const uint8_t* mask, int64_t rows, int64_t columns, const T* values, int64_t nonzeros,
                  const Inputs<T>& X, T* out);

// The same on a GPU, where nothing waits to hear whether bits and values agree; `stream` is a cudaStream_t. counts[r]
// is how many entries row r keeps.
void count_kept_cuda(const uint8_t* mask, int64_t rows, int64_t columns, int64_t* counts, void* stream);

template <typename T>
void expand_cuda(const KeptRows& kept, const T* values, int64_t nonzeros, T* dense, void* stream);

template <typename T>
void gather_cuda(const KeptRows& kept, const T* dense, int64_t stride, T* values, int64_t nonzeros, void* stream);

template <typename T>
void multiply_cuda(const KeptRows& kept, const T* values, int64_t nonzeros, const T* X, int64_t tokens, T* out,
                   void* stream);

}  // namespace fastlr::kernels
