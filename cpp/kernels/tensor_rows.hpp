// A sparse tensor times small matrices along all modes but one.
#pragma once

#include <cstdint>
#include <vector>

namespace fastlr::kernels {

// The entries of a sparse tensor, in the order of their index along one mode: those with index i are
// order[offsets[i]] to order[offsets[i + 1] - 1].
template <typename T>
struct TensorRows {
  const int64_t* offsets;
  const int64_t* order;
  int64_t count;  // of the mode
  const T* values;
  std::vector<const int64_t*> indices;  // along each of the other modes
  std::vector<const T*> factors;        // of these, row by row
  std::vector<int64_t> ranks;
};

// Row i of `out`, of as many entries as the ranks' product, the last mode's varying fastest: the sum over the entries
// of value * (row of the first factor) x (row of the second) x ...
template <typename T>
void tensor_rows_cpu(const TensorRows<T>& rows, T* out);

}  // namespace fastlr::kernels
