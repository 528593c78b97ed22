// Columns of a matrix in another order.
#pragma once

#include <cstdint>

namespace fastlr::kernels {

// out[t, j] = in[t, order[j]] + bias[j] for `rows` rows t and `columns` columns j; without a bias where it is null.
template <typename T>
void take_columns(const T* in, int64_t in_stride, int64_t rows, int64_t columns, const int32_t* order, const T* bias,
                  T* out, int64_t out_stride);

}  // namespace fastlr::kernels
