// The columns that QR with pivoting takes first.
#pragma once

#include <cstdint>

namespace fastlr::kernels {

// The first `count` pivots of S (rows x columns, row-major), which is overwritten: always the column with the largest
// part orthogonal to those before it. rows <= kMostPivotRows.
template <typename T>
void pivot_columns_cpu(T* S, int64_t rows, int64_t columns, int64_t count, int64_t* pivots);

constexpr int64_t kMostPivotRows = 128;

}  // namespace fastlr::kernels
