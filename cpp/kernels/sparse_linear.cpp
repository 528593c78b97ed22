#include "sparse_linear.hpp"

#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <type_traits>
#include <vector>

#include "kept_words.hpp"
#include "multiversion.hpp"
#include "sparse_rows_avx2.hpp"
#include "sparse_rows_avx512.hpp"

namespace fastlr::kernels {
namespace {

int64_t bytes_of(int64_t columns) { return (columns + 7) / 8; }

// Entries of W that take some 10 microseconds: for fewer a second thread costs more than it saves.
constexpr int64_t kTask = 1 << 15;

int64_t rows_of_task(int64_t entries, int64_t columns) {
  return std::max<int64_t>(1, entries / std::max<int64_t>(1, columns));
}

// The next values at the set bits of a row, zeros between them.
template <typename T, typename Out>
inline __attribute__((always_inline)) void expand_bits(const uint8_t* bits, int64_t columns, const T* values,
                                                       Out* row) {
  for (int64_t first = 0; first < columns; first += kWord) {
    std::fill_n(row + first, std::min(kWord, columns - first), Out(0));
    for (uint64_t word = word_at(bits, first, columns); word != 0; word &= word - 1)
      row[first + std::countr_zero(word)] = static_cast<Out>(*values++);
  }
}

template <typename T>
inline __attribute__((always_inline)) void gather_bits(const uint8_t* bits, int64_t columns, const T* row, T* values) {
  for (int64_t first = 0; first < columns; first += kWord)
    for (uint64_t word = word_at(bits, first, columns); word != 0; word &= word - 1)
      *values++ = row[first + std::countr_zero(word)];
}

// Independent sums, so that they need no reordering of floating-point operations to be vectorised.
template <typename T>
inline __attribute__((always_inline)) T sum_of_products(const T* a, const T* b, int64_t size) {
  constexpr int64_t kLanes = 256 / sizeof(T);
  T sums[kLanes] = {};
  int64_t j = 0;
  for (; j + kLanes <= size; j += kLanes)
    for (int64_t lane = 0; lane < kLanes; ++lane) sums[lane] += a[j + lane] * b[j + lane];
  for (; j < size; ++j) sums[0] += a[j] * b[j];
  for (int64_t half = kLanes / 2; half > 0; half /= 2)
    for (int64_t lane = 0; lane < half; ++lane) sums[lane] += sums[half + lane];
  return sums[0];
}

}  // namespace

// target_clones takes neither templates nor internal linkage in every compiler: plain functions.
FASTLR_MULTIVERSION int64_t count_row(const uint8_t* bits, int64_t columns);
int64_t count_row(const uint8_t* bits, int64_t columns) {
  int64_t count = 0;
  for (int64_t first = 0; first < columns; first += kWord) count += std::popcount(word_at(bits, first, columns));
  return count;
}

FASTLR_MULTIVERSION float dot(const float* a, const float* b, int64_t size);
float dot(const float* a, const float* b, int64_t size) { return sum_of_products(a, b, size); }
FASTLR_MULTIVERSION double dot(const double* a, const double* b, int64_t size);
double dot(const double* a, const double* b, int64_t size) { return sum_of_products(a, b, size); }

#define FASTLR_DEFINE_EXPAND(T, Out)                                                                    \
  FASTLR_MULTIVERSION void expand_row(const uint8_t* bits, int64_t columns, const T* values, Out* row); \
  void expand_row(const uint8_t* bits, int64_t columns, const T* values, Out* row) {                    \
    expand_bits(bits, columns, values, row);                                                            \
  }
FASTLR_DEFINE_EXPAND(float, float)
FASTLR_DEFINE_EXPAND(double, double)
FASTLR_DEFINE_EXPAND(c10::Half, c10::Half)
FASTLR_DEFINE_EXPAND(c10::BFloat16, c10::BFloat16)
FASTLR_DEFINE_EXPAND(c10::Half, float)
FASTLR_DEFINE_EXPAND(c10::BFloat16, float)

void count_kept_cpu(const uint8_t* mask, int64_t rows, int64_t columns, int64_t* starts) {
  starts[0] = 0;
  at::parallel_for(0, rows, rows_of_task(64 * kTask, columns), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) starts[r + 1] = count_row(mask + r * bytes_of(columns), columns);
  });
  for (int64_t r = 0; r < rows; ++r) starts[r + 1] += starts[r];
}

namespace {

// What torch has found, or was told by ATEN_CPU_CAPABILITY.
enum class Vectors { none, avx2, avx512 };
Vectors vectors() {
  static const auto found = [] {
    const auto name = at::get_cpu_capability();
    return name == "AVX512" ? Vectors::avx512 : name == "AVX2" ? Vectors::avx2 : Vectors::none;
  }();
  return found;
}

template <typename T, typename Out>
using Expand = void (*)(const uint8_t*, int64_t, const T*, Out*);

template <typename T, typename Out>
Expand<T, Out> expand_function() {
#if defined(__x86_64__)
  if constexpr (std::is_same_v<T, Out>)
    if (vectors() == Vectors::avx512) return avx512::expand_row<T>;
  if constexpr (std::is_same_v<T, float>)
    if (vectors() == Vectors::avx2) return avx2::expand_row;
#endif
  return expand_row;
}

}  // namespace

template <typename T>
void expand_cpu(const KeptRows& kept, const T* values, T* dense) {
  const int64_t bytes = bytes_of(kept.columns);
  const auto expand = expand_function<T, T>();
  at::parallel_for(0, kept.rows, rows_of_task(kTask, kept.columns), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      expand(kept.mask + r * bytes, kept.columns, values + kept.starts[r], dense + r * kept.columns);
  });
}

template <typename T>
void gather_cpu(const KeptRows& kept, const T* dense, int64_t stride, T* values) {
  const int64_t bytes = bytes_of(kept.columns);
  at::parallel_for(0, kept.rows, rows_of_task(kTask, kept.columns), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      gather_bits(kept.mask + r * bytes, kept.columns, dense + r * stride, values + kept.starts[r]);
  });
}

namespace {

// Some rows of W, whose values are those from `values` to `end`.
template <typename T>
struct Rows {
  const uint8_t* mask;
  int64_t rows, columns;
  const T *values, *end;
};

// Writes the products of the rows to out[t * out_stride …]; false if there are more or fewer values than bits.
template <typename T>
bool multiply_rows(const Rows<T>& W, const Inputs<T>& X, T* out, int64_t out_stride) {
  using Sum = at::opmath_type<T>;
  const bool in_registers = vectors() == Vectors::avx512;
  const auto expand = expand_function<T, Sum>();
  std::vector<Sum> row(in_registers ? 0 : W.columns), products(X.tokens);
  const uint8_t* bits = W.mask;
  const T* values = W.values;
  for (int64_t r = 0; r < W.rows; ++r, bits += bytes_of(W.columns)) {
    const int64_t count = count_row(bits, W.columns);
    if (count > W.end - values) return false;
    if (in_registers) {
#if defined(__x86_64__)
      avx512::multiply_row(bits, W.columns, values, X.entries, X.tokens, X.stride, products.data());
#endif
    } else {
      expand(bits, W.columns, values, row.data());
      for (int64_t t = 0; t < X.tokens; ++t) products[t] = dot(row.data(), X.entries + t * X.stride, W.columns);
    }
    for (int64_t t = 0; t < X.tokens; ++t) out[t * out_stride + r] = static_cast<T>(products[t]);
    values += count;
  }
  return values == W.end;
}

}  // namespace

template <typename T>
bool multiply_cpu(const uint8_t* mask, int64_t rows, int64_t columns, const T* values, int64_t nonzeros,
                  const Inputs<T>& X, T* out) {
  // Where the values of a task begin has to be counted, but for the first task: one a thread, then.
  const int64_t tasks = std::clamp<int64_t>(rows * columns / kTask, 1, at::get_num_threads());
  const auto first_row = [&](int64_t task) { return rows * task / tasks; };
  std::vector<int64_t> starts(tasks + 1, 0);
  at::parallel_for(0, tasks - 1, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task)
      for (int64_t r = first_row(task); r < first_row(task + 1); ++r)
        starts[task + 1] += count_row(mask + r * bytes_of(columns), columns);
  });
  for (int64_t task = 1; task < tasks; ++task) starts[task] += starts[task - 1];
  starts[tasks] = nonzeros;
  if (starts[tasks - 1] > nonzeros) return false;

  std::atomic<bool> fits = true;
  at::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = first_row(task);
      const Rows<T> W{mask + first * bytes_of(columns), first_row(task + 1) - first, columns, values + starts[task],
                      values + starts[task + 1]};
      if (!multiply_rows(W, X, out + first, rows)) fits = false;
    }
  });
  return fits;
}

#define FASTLR_INSTANTIATE(T)                                       \
  template void expand_cpu(const KeptRows&, const T*, T*);          \
  template void gather_cpu(const KeptRows&, const T*, int64_t, T*); \
  template bool multiply_cpu(const uint8_t*, int64_t, int64_t, const T*, int64_t, const Inputs<T>&, T*);
FASTLR_INSTANTIATE(float)
FASTLR_INSTANTIATE(double)
FASTLR_INSTANTIATE(c10::Half)
FASTLR_INSTANTIATE(c10::BFloat16)

}  // namespace fastlr::kernels
