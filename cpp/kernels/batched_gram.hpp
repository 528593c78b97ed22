// Gram matrices of the tall matrices of a batch.
#pragma once

#include <cstdint>

namespace fastlr::kernels {

// YᵀY for `count` matrices Y of rows x columns, entry (i, j) of the b-th at Y[b * strides[0] + i * strides[1] +
// j * strides[2]]; summed up in float64, in short sums.
template <typename In, typename Out>
void gram_cpu(const In* Y, int64_t count, int64_t rows, int64_t columns, const int64_t* strides, Out* G);

}  // namespace fastlr::kernels
