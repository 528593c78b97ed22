// Small matrices of a batch side by side: entry (i, j) of kLanes of them is one vector, so that the same step is done
// for all of them at once.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "vectors.hpp"

namespace fastlr::kernels {

using Lanes = Vector;
constexpr int64_t kLanes = kVectorSize;

// W of the lanes of entry i, where they lie side by side.
template <int64_t W>
inline __attribute__((always_inline)) Part<W>& part(double* entries, int64_t i) {
  return *reinterpret_cast<Part<W>*>(entries + i * kLanes);
}

template <int64_t W>
inline __attribute__((always_inline)) void square_root(const Part<W>& x, Part<W>& root) {
  for (int64_t lane = 0; lane < W; ++lane) root[lane] = std::sqrt(x[lane]);
}

// Entries of size x size row-major matrices, the first of them at `matrices`; lanes from `used` on repeat the last one.
template <typename T>
void load_lanes(const T* matrices, int64_t used, int64_t size, Lanes* entries) {
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    const T* matrix = matrices + std::min(lane, used - 1) * size * size;
    for (int64_t at = 0; at < size * size; ++at) entries[at][lane] = matrix[at];
  }
}

// Calls work(first, used, buffer) for groups of kLanes of `count` matrices, the last one of less, on all threads.
template <typename Work>
void for_lanes(int64_t count, int64_t buffer_size, const Work& work) {
  at::parallel_for(0, (count + kLanes - 1) / kLanes, 1, [&](int64_t begin, int64_t end) {
    VectorBuffer buffer(buffer_size);
    for (int64_t group = begin; group < end; ++group)
      work(group * kLanes, std::min(kLanes, count - group * kLanes), buffer.data());
  });
}

}  // namespace fastlr::kernels
