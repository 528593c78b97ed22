// Threads have panels of columns of Y, summed up in a packed copy of them: rows of Y itself may lie a page apart, and
// every addition would miss the table of pages. Of it the part of the rows of S that is at work stays in the cache
// while the rows of a block of A, which the cache holds too, are added to it. Sums are in the order of the rows.
#include <ATen/Parallel.h>

#include <algorithm>
#include <type_traits>
#include <vector>

#include <fastlr/sketch_draws.hpp>

#include "multiversion.hpp"
#include "sketch.hpp"

namespace fastlr::kernels {
namespace {

constexpr int64_t kPanelBytes = 512, kBlockRows = 256, kChunkRows = 1 << 18;

// Where the entries of a column are, twice the row plus one if negative: codes[j * rows + r].
using Code = uint32_t;
class Codes {
 public:
  Codes(const SparseSigns& S, int64_t first, int64_t rows) : rows_(rows), codes_(S.nonzeros * rows) {
    at::parallel_for(0, rows, 512, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r)
        for (int64_t j = 0; j < S.nonzeros; j += 4) {
          const auto words =
              sketch_draws::draw(S.seed, first + r, static_cast<uint32_t>(j / 4), sketch_draws::kSparseSign);
          for (int64_t k = j; k < std::min(j + 4, S.nonzeros); ++k) {
            const auto entry = sketch_draws::sparse_sign_entry(sketch_draws::word_of(words, static_cast<int>(k - j)), k,
                                                               S.size, S.nonzeros);
            codes_[k * rows + r] = static_cast<Code>(2 * entry.row + (entry.negative ? 1 : 0));
          }
        }
    });
  }

  const Code* of_part(int64_t j) const { return codes_.data() + j * rows_; }

 private:
  int64_t rows_;
  std::vector<Code> codes_;
};

// Rows of a panel lie far apart, which no prefetcher follows: what is read for the first time is asked for before.
constexpr int64_t kRowsAhead = 16, kLineBytes = 64;
constexpr int kSecondLevel = 2;

// A width that is known when this is compiled needs no loop.
template <typename T, typename Width>
inline __attribute__((always_inline)) void add_rows(const Code* codes, const T* rows, int64_t count, int64_t stride,
                                                    Width width, bool first_time, T* sums) {
  for (int64_t r = 0; r < count; ++r) {
    const T sign = (codes[r] & 1) != 0 ? T(-1) : T(1);
    T* __restrict sum = sums + static_cast<int64_t>(codes[r] >> 1) * width;
    const T* __restrict row = rows + r * stride;
    if (first_time)
      for (int64_t c = 0; c < width; c += kLineBytes / static_cast<int64_t>(sizeof(T)))
        __builtin_prefetch(row + kRowsAhead * stride + c, /*write=*/0, kSecondLevel);
    for (int64_t c = 0; c < width; ++c) sum[c] += sign * row[c];
  }
}

template <typename T>
inline __attribute__((always_inline)) void gather_rows(const Code* const* codes, int64_t parts, const T* sums,
                                                       int64_t sums_stride, int64_t count, int64_t width, T* rows,
                                                       int64_t stride) {
  for (int64_t r = 0; r < count; ++r) {
    T* row = rows + r * stride;
    for (int64_t c = 0; c < width; ++c) row[c] = T(0);
    for (int64_t j = 0; j < parts; ++j) {
      const Code code = codes[j][r];
      const T sign = (code & 1) != 0 ? T(-1) : T(1);
      const T* sum = sums + static_cast<int64_t>(code >> 1) * sums_stride;
      for (int64_t c = 0; c < width; ++c) row[c] += sign * sum[c];
    }
  }
}

}  // namespace

// target_clones takes neither templates nor internal linkage in every compiler: plain functions.
#define FASTLR_DEFINE_SPARSE_SIGN(name, gather, T)                                                              \
  FASTLR_MULTIVERSION void name(const Code* codes, const T* rows, int64_t count, int64_t stride, int64_t width, \
                                bool first_time, T* sums);                                                      \
  void name(const Code* codes, const T* rows, int64_t count, int64_t stride, int64_t width, bool first_time,    \
            T* sums) {                                                                                          \
    using Panel = std::integral_constant<int64_t, kPanelBytes / sizeof(T)>;                                     \
    if (width == Panel::value) {                                                                                \
      add_rows(codes, rows, count, stride, Panel(), first_time, sums);                                          \
    } else {                                                                                                    \
      add_rows(codes, rows, count, stride, width, first_time, sums);                                            \
    }                                                                                                           \
  }                                                                                                             \
  FASTLR_MULTIVERSION void gather(const Code* const* codes, int64_t parts, const T* sums, int64_t sums_stride,  \
                                  int64_t count, int64_t width, T* rows, int64_t stride);                       \
  void gather(const Code* const* codes, int64_t parts, const T* sums, int64_t sums_stride, int64_t count,       \
              int64_t width, T* rows, int64_t stride) {                                                         \
    gather_rows(codes, parts, sums, sums_stride, count, width, rows, stride);                                   \
  }
FASTLR_DEFINE_SPARSE_SIGN(add_signed_rows, gather_signed_rows, float)
FASTLR_DEFINE_SPARSE_SIGN(add_signed_rows, gather_signed_rows, double)

namespace {

// Calls work(begin, end) for panels of columns.
template <typename T, typename Work>
void for_panels(int64_t columns, const Work& work) {
  const int64_t width = kPanelBytes / static_cast<int64_t>(sizeof(T));
  at::parallel_for(0, (columns + width - 1) / width, 1, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) work(panel * width, std::min(columns, (panel + 1) * width));
  });
}

}  // namespace

template <typename T>
void add_sparse_sign_cpu(const SparseSigns& S, const RowMajor<const T>& A, int64_t first, const RowMajor<T>& Y) {
  for (int64_t chunk = 0; chunk < A.rows; chunk += kChunkRows) {
    const int64_t rows = std::min(kChunkRows, A.rows - chunk);
    const Codes codes(S, first + chunk, rows);
    for_panels<T>(A.columns, [&](int64_t begin, int64_t end) {
      const int64_t width = end - begin;
      std::vector<T> sums(S.size * width);
      for (int64_t block = 0; block < rows; block += kBlockRows)
        for (int64_t j = 0; j < S.nonzeros; ++j)
          add_signed_rows(codes.of_part(j) + block, A.entries + (chunk + block) * A.stride + begin,
                          std::min(kBlockRows, rows - block), A.stride, width, /*first_time=*/j == 0, sums.data());
      for (int64_t i = 0; i < S.size; ++i)
        for (int64_t c = 0; c < width; ++c) Y.entries[i * Y.stride + begin + c] += sums[i * width + c];
    });
  }
}

template <typename T, typename Index>
void add_sparse_sign_cpu(const SparseSigns& S, const SparseRows<T, Index>& A, int64_t first, const RowMajor<T>& Y) {
  for (int64_t chunk = 0; chunk < A.rows; chunk += kChunkRows) {
    const int64_t rows = std::min(kChunkRows, A.rows - chunk);
    const Codes codes(S, first + chunk, rows);
    // The parts of S have no row in common.
    at::parallel_for(0, S.nonzeros, 1, [&](int64_t begin, int64_t end) {
      for (int64_t j = begin; j < end; ++j)
        for (int64_t r = 0; r < rows; ++r) {
          const Code code = codes.of_part(j)[r];
          const T sign = (code & 1) != 0 ? T(-1) : T(1);
          T* sum = Y.entries + static_cast<int64_t>(code >> 1) * Y.stride;
          for (Index k = A.starts[chunk + r]; k < A.starts[chunk + r + 1]; ++k) sum[A.columns[k]] += sign * A.values[k];
        }
    });
  }
}

template <typename T>
void sparse_sign_adjoint_cpu(const SparseSigns& S, const RowMajor<const T>& Y, int64_t first, const RowMajor<T>& X) {
  for (int64_t chunk = 0; chunk < X.rows; chunk += kChunkRows) {
    const int64_t rows = std::min(kChunkRows, X.rows - chunk);
    const Codes codes(S, first + chunk, rows);
    std::vector<const Code*> parts(S.nonzeros);
    for (int64_t j = 0; j < S.nonzeros; ++j) parts[j] = codes.of_part(j);
    for_panels<T>(X.columns, [&](int64_t begin, int64_t end) {
      gather_signed_rows(parts.data(), S.nonzeros, Y.entries + begin, Y.stride, rows, end - begin,
                         X.entries + chunk * X.stride + begin, X.stride);
    });
  }
}

#define FASTLR_INSTANTIATE(T)                                                                                        \
  template void add_sparse_sign_cpu(const SparseSigns&, const RowMajor<const T>&, int64_t, const RowMajor<T>&);      \
  template void add_sparse_sign_cpu(const SparseSigns&, const SparseRows<T, int32_t>&, int64_t, const RowMajor<T>&); \
  template void add_sparse_sign_cpu(const SparseSigns&, const SparseRows<T, int64_t>&, int64_t, const RowMajor<T>&); \
  template void sparse_sign_adjoint_cpu(const SparseSigns&, const RowMajor<const T>&, int64_t, const RowMajor<T>&);
FASTLR_INSTANTIATE(float)
FASTLR_INSTANTIATE(double)

}  // namespace fastlr::kernels
