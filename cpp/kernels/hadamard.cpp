// Some rows of a Hadamard matrix times random signs, by the fast transform of blocks of rows.
//
// With j = j_high·b + j_low, entry (i, j) of the Hadamard matrix is (-1)^popcount(i & j) = (-1)^popcount(i_high &
// j_high) · (-1)^popcount(i_low & j_low): a block of b rows of A is transformed on its own, and row i of the result
// takes row i_low of it with the sign of (i_high, j_high). So only log2 b additions are made for an entry, and size / b
// more; the whole transform, padded to a power of two, would make log2 of all rows.
#include <ATen/Parallel.h>

#include <algorithm>
#include <bit>
#include <vector>

#include <fastlr/sketch_draws.hpp>

#include "multiversion.hpp"
#include "sketch.hpp"

namespace fastlr::kernels {
namespace {

constexpr int64_t kPanelBytes = 256;
template <typename T>
inline __attribute__((always_inline)) void transform_rows(T* rows, int bits, int64_t width) {
  int half = 0;
  // Two levels at a time: half as many passes over the block.
  for (; half + 1 < bits; half += 2) {
    const int64_t step = (int64_t{1} << half) * width, end = (int64_t{1} << bits) * width;
    for (int64_t group = 0; group < end; group += 4 * step)
      for (int64_t at = group; at < group + step; ++at) {
        const T a = rows[at], b = rows[at + step], c = rows[at + 2 * step], d = rows[at + 3 * step];
        const T ab = a + b, a_b = a - b, cd = c + d, c_d = c - d;
        rows[at] = ab + cd;
        rows[at + step] = a_b + c_d;
        rows[at + 2 * step] = ab - cd;
        rows[at + 3 * step] = a_b - c_d;
      }
  }
  if (half < bits) {
    const int64_t step = (int64_t{1} << half) * width;
    for (int64_t at = 0; at < step; ++at) {
      const T a = rows[at], b = rows[at + step];
      rows[at] = a + b;
      rows[at + step] = a - b;
    }
  }
}

// Of row `pick` in the block of rows from `row` on.
inline bool block_negative(int64_t pick, int64_t row, int bits) {
  return std::popcount(static_cast<uint64_t>((pick & row) >> bits)) % 2 != 0;
}

// sums[i] += ±rows[low(picks[i])], of a transformed block from `row` on.
template <typename T>
inline __attribute__((always_inline)) void add_picked(const HadamardRows& S, int64_t row, int bits, const T* rows,
                                                      int64_t width, T* sums) {
  const int64_t low = (int64_t{1} << bits) - 1;
  for (int64_t i = 0; i < S.size; ++i) {
    const T sign = block_negative(S.picks[i], row, bits) ? T(-1) : T(1);
    const T* __restrict from = rows + (S.picks[i] & low) * width;
    T* __restrict sum = sums + i * width;
    for (int64_t c = 0; c < width; ++c) sum[c] += sign * from[c];
  }
}

// rows[low(picks[i])] += ±sums[i].
template <typename T>
inline __attribute__((always_inline)) void spread_picked(const HadamardRows& S, int64_t row, int bits, const T* sums,
                                                         int64_t width, T* rows) {
  const int64_t low = (int64_t{1} << bits) - 1;
  for (int64_t i = 0; i < S.size; ++i) {
    const T sign = block_negative(S.picks[i], row, bits) ? T(-1) : T(1);
    const T* __restrict sum = sums + i * width;
    T* __restrict to = rows + (S.picks[i] & low) * width;
    for (int64_t c = 0; c < width; ++c) to[c] += sign * sum[c];
  }
}

}  // namespace

#define FASTLR_DEFINE_HADAMARD(T)                                                                                      \
  FASTLR_MULTIVERSION void hadamard_rows(T* rows, int bits, int64_t width);                                            \
  void hadamard_rows(T* rows, int bits, int64_t width) { transform_rows(rows, bits, width); }                          \
  FASTLR_MULTIVERSION void hadamard_gather(const HadamardRows& S, int64_t row, int bits, const T* rows, int64_t width, \
                                           T* sums);                                                                   \
  void hadamard_gather(const HadamardRows& S, int64_t row, int bits, const T* rows, int64_t width, T* sums) {          \
    add_picked(S, row, bits, rows, width, sums);                                                                       \
  }                                                                                                                    \
  FASTLR_MULTIVERSION void hadamard_spread(const HadamardRows& S, int64_t row, int bits, const T* sums, int64_t width, \
                                           T* rows);                                                                   \
  void hadamard_spread(const HadamardRows& S, int64_t row, int bits, const T* sums, int64_t width, T* rows) {          \
    spread_picked(S, row, bits, sums, width, rows);                                                                    \
  }
FASTLR_DEFINE_HADAMARD(float)
FASTLR_DEFINE_HADAMARD(double)

namespace {

// Calls work(begin, width, block, sums) for panels of columns, with memory for a block of them and for a packed panel
// of the sketch: its own rows may lie a page apart.
template <typename T, typename Work>
void for_panels(const HadamardRows& S, int64_t columns, int bits, const Work& work) {
  const int64_t width = kPanelBytes / static_cast<int64_t>(sizeof(T));
  at::parallel_for(0, (columns + width - 1) / width, 1, [&](int64_t begin, int64_t end) {
    std::vector<T> block(width << bits), sums(width * S.size);
    for (int64_t panel = begin; panel < end; ++panel)
      work(panel * width, std::min(width, columns - panel * width), block.data(), sums.data());
  });
}

// The signs of columns first, first + 1, ...
template <typename T>
std::vector<T> signs_of(uint64_t seed, int64_t first, int64_t count) {
  std::vector<T> signs(count);
  at::parallel_for(0, count, 2048, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) signs[r] = sketch_draws::hadamard_negative(seed, first + r) ? T(-1) : T(1);
  });
  return signs;
}

}  // namespace

template <typename T>
void add_hadamard_cpu(const HadamardRows& S, const RowMajor<const T>& A, int64_t first, const RowMajor<T>& Y) {
  const int bits = hadamard_block_bits(S.size, A.rows);
  const int64_t height = int64_t{1} << bits;
  const auto signs = signs_of<T>(S.seed, first, A.rows);
  for_panels<T>(S, A.columns, bits, [&](int64_t begin, int64_t width, T* buffer, T* sums) {
    std::fill_n(sums, S.size * width, T(0));
    // Blocks begin at multiples of their height, whatever the first row is.
    for (int64_t row = first / height * height; row < first + A.rows; row += height) {
      for (int64_t r = 0; r < height; ++r) {
        T* to = buffer + r * width;
        const int64_t own = row + r - first;
        if (own < 0 || own >= A.rows) {
          std::fill_n(to, width, T(0));
        } else {
          const T* from = A.entries + own * A.stride + begin;
          for (int64_t c = 0; c < width; ++c) to[c] = signs[own] * from[c];
        }
      }
      hadamard_rows(buffer, bits, width);
      hadamard_gather(S, row, bits, buffer, width, sums);
    }
    for (int64_t i = 0; i < S.size; ++i)
      for (int64_t c = 0; c < width; ++c) Y.entries[i * Y.stride + begin + c] += sums[i * width + c];
  });
}

template <typename T>
void hadamard_adjoint_cpu(const HadamardRows& S, const RowMajor<const T>& Y, int64_t first, const RowMajor<T>& X) {
  const int bits = hadamard_block_bits(S.size, X.rows);
  const int64_t height = int64_t{1} << bits;
  const auto signs = signs_of<T>(S.seed, first, X.rows);
  for_panels<T>(S, X.columns, bits, [&](int64_t begin, int64_t width, T* buffer, T* sums) {
    for (int64_t i = 0; i < S.size; ++i) std::copy_n(Y.entries + i * Y.stride + begin, width, sums + i * width);
    for (int64_t row = first / height * height; row < first + X.rows; row += height) {
      std::fill_n(buffer, height * width, T(0));
      hadamard_spread(S, row, bits, sums, width, buffer);
      hadamard_rows(buffer, bits, width);
      for (int64_t r = std::max<int64_t>(0, first - row); r < std::min(height, first + X.rows - row); ++r) {
        const int64_t own = row + r - first;
        T* to = X.entries + own * X.stride + begin;
        for (int64_t c = 0; c < width; ++c) to[c] = signs[own] * buffer[r * width + c];
      }
    }
  });
}

#define FASTLR_INSTANTIATE(T)                                                                                 \
  template void add_hadamard_cpu(const HadamardRows&, const RowMajor<const T>&, int64_t, const RowMajor<T>&); \
  template void hadamard_adjoint_cpu(const HadamardRows&, const RowMajor<const T>&, int64_t, const RowMajor<T>&);
FASTLR_INSTANTIATE(float)
FASTLR_INSTANTIATE(double)

}  // namespace fastlr::kernels
