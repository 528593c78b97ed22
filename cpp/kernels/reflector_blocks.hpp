// Blocks of Householder vectors in float32, from products in float64.
#pragma once

#include <algorithm>
#include <cstdint>

namespace fastlr::kernels {

// Matrices of a batch, entry (r, c) of the b-th at V[b * strides[0] + r * strides[1] + c], in blocks of columns. With
// `lower` entries above the diagonal count as zero, and a block begins at the row of its first column.
struct ReflectorBlocks {
  const float* V;
  int64_t strides[2];
  int64_t batch, rows, columns;
  int64_t width;  // of all blocks but the last
  bool lower;

  int64_t count() const { return (columns + width - 1) / width; }
  int64_t first_row(int64_t i) const { return lower ? i * width : 0; }
  int64_t width_of(int64_t i) const { return std::min(width, columns - i * width); }
};

// For each block of each matrix, at (i * batch + b): the exponents e with which the columns of U = V 2^-e have norms in
// [1/2, 1), and T, the inverse of the upper triangle of U^T U with half of its diagonal; as if vectors of zeros filled
// up the last block.
void reflector_factors_cpu(const ReflectorBlocks& blocks, double* T, int32_t* exponents);

// U and Y = U T of block i, batch x its rows x its columns.
void reflector_block_cpu(const ReflectorBlocks& blocks, int64_t i, const double* T, const int32_t* exponents, float* U,
                         float* Y);

}  // namespace fastlr::kernels
