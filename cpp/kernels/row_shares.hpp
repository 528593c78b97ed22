// Rows of a sparse matrix, shared out among the threads by what they cost, not by how many they are.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>

namespace fastlr::kernels {

// Calls work(begin, end) for rows of which row i has offsets[i + 1] - offsets[i] entries and costs as many, and `own`
// more; `flops` for each of these.
template <typename Work>
void for_row_shares(const int64_t* offsets, int64_t count, int64_t own, int64_t flops, const Work& work) {
  const auto before = [&](int64_t row) { return offsets[row] - offsets[0] + row * own; };
  const auto row_at = [&](int64_t share, int64_t shares) {
    const double wanted = static_cast<double>(before(count)) * static_cast<double>(share) / static_cast<double>(shares);
    int64_t low = 0, high = count;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      static_cast<double>(before(middle)) < wanted ? low = middle + 1 : high = middle;
    }
    return low;
  };
  // A thread that has less to do costs more than it saves.
  constexpr int64_t least = 1 << 15;
  const int64_t shares = std::clamp<int64_t>(before(count) * flops / least, 1, at::get_num_threads());
  at::parallel_for(0, shares, 1, [&](int64_t begin, int64_t end) {
    for (int64_t share = begin; share < end; ++share) work(row_at(share, shares), row_at(share + 1, shares));
  });
}

}  // namespace fastlr::kernels
