#include "pivot_columns.hpp"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "multiversion.hpp"

namespace fastlr::kernels {
namespace {

// Columns that are worked on together: with all their rows they stay in a core's cache.
constexpr int64_t kChunk = 256;

// S - q qᵀS for some columns of S, and their squared lengths.
template <typename T>
inline __attribute__((always_inline)) void remove_direction(T* S, int64_t rows, int64_t stride, int64_t width,
                                                            const T* q, T* squares) {
  T along[kChunk] = {};
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < width; ++j) along[j] += q[i] * S[i * stride + j];
  std::fill_n(squares, width, T(0));
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < width; ++j) {
      const T rest = S[i * stride + j] - q[i] * along[j];
      S[i * stride + j] = rest;
      squares[j] += rest * rest;
    }
}

}  // namespace

FASTLR_MULTIVERSION void deflate(float* S, int64_t rows, int64_t stride, int64_t width, const float* q, float* squares);
void deflate(float* S, int64_t rows, int64_t stride, int64_t width, const float* q, float* squares) {
  remove_direction(S, rows, stride, width, q, squares);
}

FASTLR_MULTIVERSION void deflate(double* S, int64_t rows, int64_t stride, int64_t width, const double* q,
                                 double* squares);
void deflate(double* S, int64_t rows, int64_t stride, int64_t width, const double* q, double* squares) {
  remove_direction(S, rows, stride, width, q, squares);
}

template <typename T>
void pivot_columns_cpu(T* S, int64_t rows, int64_t columns, int64_t count, int64_t* pivots) {
  std::vector<T> squares(columns);
  // The first direction is none: only the lengths are found.
  T q[kMostPivotRows] = {};
  for (int64_t k = 0; k < count; ++k) {
    at::parallel_for(0, columns, kChunk, [&](int64_t begin, int64_t end) {
      for (int64_t j = begin; j < end; j += kChunk)
        deflate(S + j, rows, columns, std::min(kChunk, end - j), q, squares.data() + j);
    });
    // Rounding leaves a little of the columns that are taken.
    for (int64_t i = 0; i < k; ++i) squares[pivots[i]] = T(-1);
    const auto longest = std::max_element(squares.begin(), squares.end());
    pivots[k] = longest - squares.begin();
    const T length = *longest > 0 ? std::sqrt(*longest) : T(1);
    for (int64_t i = 0; i < rows; ++i) q[i] = S[i * columns + pivots[k]] / length;
  }
}

template void pivot_columns_cpu(float*, int64_t, int64_t, int64_t, int64_t*);
template void pivot_columns_cpu(double*, int64_t, int64_t, int64_t, int64_t*);

}  // namespace fastlr::kernels
