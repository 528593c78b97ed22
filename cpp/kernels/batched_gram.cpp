#include "batched_gram.hpp"

#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "multiversion.hpp"
#include "vectors.hpp"

namespace fastlr::kernels {
namespace {

// Rows that are summed up together, which keeps sums short, in columns that are copied to memory of so many rows.
constexpr int64_t kRows = 128;
// A tile of G of so many rows and columns is summed up in registers.
constexpr int64_t kTileRows = 2, kTileColumns = 4;

template <typename T>
inline __attribute__((always_inline)) void copy_strided(const T* from, int64_t stride, int64_t count, double* column) {
  if (stride == 1) {
    for (int64_t i = 0; i < count; ++i) column[i] = from[i];
  } else {
    for (int64_t i = 0; i < count; ++i) column[i] = from[i * stride];
  }
  for (int64_t i = count; i % kVectorSize != 0; ++i) column[i] = 0;
}

}  // namespace

FASTLR_MULTIVERSION void copy_column(const float* from, int64_t stride, int64_t count, double* column);
void copy_column(const float* from, int64_t stride, int64_t count, double* column) {
  copy_strided(from, stride, count, column);
}

FASTLR_MULTIVERSION void copy_column(const double* from, int64_t stride, int64_t count, double* column);
void copy_column(const double* from, int64_t stride, int64_t count, double* column) {
  copy_strided(from, stride, count, column);
}

namespace {

// Entry `first` and the W - 1 next ones of the vectors of sums of a tile.
template <int64_t W>
inline __attribute__((always_inline)) void sum_tile(const double* left, const double* right, int64_t steps,
                                                    double* sums) {
  Part<W> parts[kTileRows][kTileColumns] = {};
  for (int64_t at = 0; at < steps * kVectorSize; at += kVectorSize)
    for (int64_t a = 0; a < kTileRows; ++a)
      for (int64_t b = 0; b < kTileColumns; ++b)
        parts[a][b] += *reinterpret_cast<const Part<W>*>(left + a * kRows + at) *
                       *reinterpret_cast<const Part<W>*>(right + b * kRows + at);
  for (int64_t a = 0; a < kTileRows; ++a)
    for (int64_t b = 0; b < kTileColumns; ++b)
      *reinterpret_cast<Part<W>*>(sums + (a * kTileColumns + b) * kVectorSize) = parts[a][b];
}

}  // namespace

// The tiles of the lower triangle of G += blockᵀ block, for columns that begin with `steps` vectors of entries.
FASTLR_MULTIVERSION void add_tiles(const double* block, int64_t steps, int64_t columns, double* G);
void add_tiles(const double* block, int64_t steps, int64_t columns, double* G) {
  alignas(Vector) double sums[kTileRows * kTileColumns * kVectorSize];
  for (int64_t i = 0; i < columns; i += kTileRows)
    for (int64_t j = 0; j < i + kTileRows; j += kTileColumns) {
      for_parts([&]<int64_t W>(int64_t first) __attribute__((always_inline)) {
        sum_tile<W>(block + i * kRows + first, block + j * kRows + first, steps, sums + first);
      });
      for (int64_t a = 0; a < kTileRows; ++a)
        for (int64_t b = 0; b < kTileColumns; ++b) {
          const double* lanes = sums + (a * kTileColumns + b) * kVectorSize;
          double sum = 0;
          for (int64_t lane = 0; lane < kVectorSize; ++lane) sum += lanes[lane];
          G[(i + a) * columns + j + b] += sum;
        }
    }
}

template <typename In, typename Out>
void gram_cpu(const In* Y, int64_t count, int64_t rows, int64_t columns, const int64_t* strides, Out* G) {
  const int64_t padded = (columns + kTileColumns - 1) / kTileColumns * kTileColumns;
  at::parallel_for(0, count, 8, [&](int64_t begin, int64_t end) {
    VectorBuffer block(padded * kRows / kVectorSize);
    std::vector<double> sums(padded * padded);
    for (int64_t b = begin; b < end; ++b) {
      std::fill(sums.begin(), sums.end(), 0.0);
      for (int64_t row0 = 0; row0 < rows; row0 += kRows) {
        const In* from = Y + b * strides[0] + row0 * strides[1];
        const int64_t height = std::min(kRows, rows - row0);
        for (int64_t j = 0; j < columns; ++j)
          copy_column(from + j * strides[2], strides[1], height, block.entries() + j * kRows);
        add_tiles(block.entries(), (height + kVectorSize - 1) / kVectorSize, padded, sums.data());
      }
      for (int64_t i = 0; i < columns; ++i)
        for (int64_t j = 0; j <= i; ++j)
          G[(b * columns + i) * columns + j] = G[(b * columns + j) * columns + i] =
              static_cast<Out>(sums[i * padded + j]);
    }
  });
}

template void gram_cpu(const float*, int64_t, int64_t, int64_t, const int64_t*, float*);
template void gram_cpu(const float*, int64_t, int64_t, int64_t, const int64_t*, double*);
template void gram_cpu(const double*, int64_t, int64_t, int64_t, const int64_t*, double*);

}  // namespace fastlr::kernels
