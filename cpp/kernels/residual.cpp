// Rows are used twice while they are in the cache: for their products with x, and times these in the sum.
#include "residual.hpp"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "multiversion.hpp"

namespace fastlr::kernels {
namespace {

// Rows that are used together: x and the sum are read once for them.
constexpr int64_t kTogether = 4;
// Rows whose sum is taken in the type of A before it is added in double precision.
constexpr int64_t kPart = 2048;
// Bytes of columns of a block of rows that stay in the second-level cache.
constexpr int64_t kBlockBytes = 256 << 10, kLeastRows = 64;

// What a register of AVX2 holds: the accumulators below are as many as fit its registers, and longer vectors would be
// kept in memory.
template <typename T>
struct LineOf {
  typedef T Vector __attribute__((vector_size(32)));
  static constexpr int64_t kSize = 32 / sizeof(T);
};
template <typename T>
inline __attribute__((always_inline)) void load(const T* from, typename LineOf<T>::Vector& line) {
  std::memcpy(&line, from, sizeof(line));
}

// Products of `Count` lines of numbers, `stride` apart, with x.
template <typename T, int64_t Count>
inline __attribute__((always_inline)) void dots(const T* a, int64_t stride, const T* x, int64_t size, T* results) {
  constexpr int64_t kSize = LineOf<T>::kSize;
  typename LineOf<T>::Vector even[Count] = {}, odd[Count] = {}, x_even, x_odd, of_a;
  int64_t j = 0;
  for (; j + 2 * kSize <= size; j += 2 * kSize) {
    load(x + j, x_even);
    load(x + j + kSize, x_odd);
    for (int64_t i = 0; i < Count; ++i) {
      load(a + i * stride + j, of_a);
      even[i] += of_a * x_even;
      load(a + i * stride + j + kSize, of_a);
      odd[i] += of_a * x_odd;
    }
  }
  for (int64_t i = 0; i < Count; ++i) {
    even[i] += odd[i];
    T sum = T(0);
    for (int64_t lane = 0; lane < kSize; ++lane) sum += even[i][lane];
    for (int64_t rest = j; rest < size; ++rest) sum += a[i * stride + rest] * x[rest];
    results[i] = sum;
  }
}

// sum += factors times lines. What lies `ahead` of these is fetched meanwhile, into the second-level cache: in the
// first one it would take the place of what is at work.
constexpr int kSecondLevel = 2;
template <typename T, int64_t Count>
inline __attribute__((always_inline)) void add_lines(const T* a, int64_t stride, const T* factors, int64_t size, T* sum,
                                                     int64_t ahead) {
  constexpr int64_t kSize = LineOf<T>::kSize;
  typename LineOf<T>::Vector total, of_a;
  int64_t j = 0;
  for (; j + kSize <= size; j += kSize) {
    load(sum + j, total);
    for (int64_t i = 0; i < Count; ++i) {
      load(a + i * stride + j, of_a);
      __builtin_prefetch(a + ahead + i * stride + j, /*write=*/0, kSecondLevel);
      total += factors[i] * of_a;
    }
    std::memcpy(sum + j, &total, sizeof(total));
  }
  for (; j < size; ++j)
    for (int64_t i = 0; i < Count; ++i) sum[j] += factors[i] * a[i * stride + j];
}

template <typename T, int64_t Count>
inline __attribute__((always_inline)) void some_rows(const T* a, int64_t stride, int64_t columns, const T* x,
                                                     const T* b, T* r, T* g) {
  T products[Count];
  dots<T, Count>(a, stride, x, columns, products);
  for (int64_t i = 0; i < Count; ++i) r[i] = (b != nullptr ? b[i] : T(0)) - products[i];
  add_lines<T, Count>(a, stride, r, columns, g, /*ahead=*/Count * stride);
}

template <typename T>
inline __attribute__((always_inline)) void part_by_rows(const T* a, int64_t rows, int64_t stride, int64_t columns,
                                                        const T* x, const T* b, T* r, T* g) {
  int64_t i = 0;
  for (; i + kTogether <= rows; i += kTogether)
    some_rows<T, kTogether>(a + i * stride, stride, columns, x, b != nullptr ? b + i : nullptr, r + i, g);
  for (; i < rows; ++i) some_rows<T, 1>(a + i * stride, stride, columns, x, b != nullptr ? b + i : nullptr, r + i, g);
}

// Columns of a few rows: r <- r - columns times x, and then the products of the columns with r.
template <typename T>
inline __attribute__((always_inline)) void part_by_columns(const T* a, int64_t rows, int64_t stride, int64_t columns,
                                                           const T* x, const T* b, T* r, T* g) {
  for (int64_t i = 0; i < rows; ++i) r[i] = b != nullptr ? b[i] : T(0);
  T factors[kTogether], products[kTogether];
  int64_t j = 0;
  for (; j + kTogether <= columns; j += kTogether) {
    for (int64_t k = 0; k < kTogether; ++k) factors[k] = -x[j + k];
    add_lines<T, kTogether>(a + j * stride, stride, factors, rows, r, /*ahead=*/kTogether * stride);
  }
  for (; j < columns; ++j) {
    factors[0] = -x[j];
    add_lines<T, 1>(a + j * stride, stride, factors, rows, r, /*ahead=*/stride);
  }
  for (j = 0; j + kTogether <= columns; j += kTogether) {
    dots<T, kTogether>(a + j * stride, stride, r, rows, products);
    for (int64_t k = 0; k < kTogether; ++k) g[j + k] += products[k];
  }
  for (; j < columns; ++j) {
    dots<T, 1>(a + j * stride, stride, r, rows, products);
    g[j] += products[0];
  }
}

}  // namespace

// target_clones takes neither templates nor internal linkage in every compiler: plain functions.
#define FASTLR_DEFINE_RESIDUAL(T)                                                                                     \
  FASTLR_MULTIVERSION void residual_by_rows(const T* a, int64_t rows, int64_t stride, int64_t columns, const T* x,    \
                                            const T* b, T* r, T* g);                                                  \
  void residual_by_rows(const T* a, int64_t rows, int64_t stride, int64_t columns, const T* x, const T* b, T* r,      \
                        T* g) {                                                                                       \
    part_by_rows(a, rows, stride, columns, x, b, r, g);                                                               \
  }                                                                                                                   \
  FASTLR_MULTIVERSION void residual_by_columns(const T* a, int64_t rows, int64_t stride, int64_t columns, const T* x, \
                                               const T* b, T* r, T* g);                                               \
  void residual_by_columns(const T* a, int64_t rows, int64_t stride, int64_t columns, const T* x, const T* b, T* r,   \
                           T* g) {                                                                                    \
    part_by_columns(a, rows, stride, columns, x, b, r, g);                                                            \
  }
FASTLR_DEFINE_RESIDUAL(float)
FASTLR_DEFINE_RESIDUAL(double)

template <typename T>
void residual_cpu(const Strided<T>& A, const T* x, const T* b, T* r, double* g) {
  const bool by_rows = A.column_stride == 1;
  const int64_t fitting = kBlockBytes / std::max<int64_t>(1, A.columns * static_cast<int64_t>(sizeof(T)));
  const int64_t height = by_rows ? kPart : std::clamp(fitting, kLeastRows, kPart);
  const int64_t threads = at::in_parallel_region() ? 1 : at::get_num_threads();
  const int64_t shares = std::clamp<int64_t>(A.rows / height, 1, threads);
  std::vector<std::vector<double>> sums(shares);
  at::parallel_for(0, shares, 1, [&](int64_t begin, int64_t end) {
    for (int64_t share = begin; share < end; ++share) {
      auto& sum = sums[share];
      sum.resize(A.columns);
      std::vector<T> part(A.columns);
      const int64_t last = A.rows * (share + 1) / shares;
      for (int64_t row = A.rows * share / shares; row < last; row += height) {
        const int64_t count = std::min(height, last - row);
        std::fill(part.begin(), part.end(), T(0));
        const T* own = b != nullptr ? b + row : nullptr;
        if (by_rows) {
          residual_by_rows(A.entries + row * A.row_stride, count, A.row_stride, A.columns, x, own, r + row,
                           part.data());
        } else {
          residual_by_columns(A.entries + row, count, A.column_stride, A.columns, x, own, r + row, part.data());
        }
        for (int64_t j = 0; j < A.columns; ++j) sum[j] += static_cast<double>(part[j]);
      }
    }
  });
  std::copy(sums[0].begin(), sums[0].end(), g);
  for (int64_t share = 1; share < shares; ++share)
    for (int64_t j = 0; j < A.columns; ++j) g[j] += sums[share][j];
}

template void residual_cpu(const Strided<float>&, const float*, const float*, float*, double*);
template void residual_cpu(const Strided<double>&, const double*, const double*, double*, double*);

}  // namespace fastlr::kernels
