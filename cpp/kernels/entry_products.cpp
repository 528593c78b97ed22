#include "entry_products.hpp"

#include <algorithm>

#include "multiversion.hpp"
#include "registers.hpp"
#include "row_shares.hpp"

namespace fastlr::kernels {
namespace {

// How far ahead of the row that is multiplied others are fetched.
constexpr int64_t kAhead = 16;

template <typename R, typename T>
inline __attribute__((always_inline)) T dot(const T* a, const T* b, int64_t k) {
  typename R::Vector sum = {};
  int64_t j = 0;
  for (; j + R::kSize <= k; j += R::kSize) sum += R::at(a + j) * R::at(b + j);
  T rest = 0;
  for (; j < k; ++j) rest += a[j] * b[j];
  return R::sum(sum) + rest;
}

template <typename R, typename T>
inline __attribute__((always_inline)) void multiply_range(const int64_t* offsets, const int64_t* columns, int64_t begin,
                                                          int64_t end, const T* U, const T* V, int64_t k, T* out) {
  constexpr int64_t line = 64 / sizeof(T);
  const int64_t last = offsets[end] - 1;
  for (int64_t i = begin; i < end; ++i)
    for (int64_t e = offsets[i]; e < offsets[i + 1]; ++e) {
      const T* coming = V + columns[std::min(e + kAhead, last)] * k;
      for (int64_t j = 0; j < k; j += line) __builtin_prefetch(coming + j);
      out[e] = dot<R>(U + i * k, V + columns[e] * k, k);
    }
}

}  // namespace

#define FASTLR_DEFINE_MULTIPLY_ENTRIES(T)                                                                       \
  FASTLR_MULTIVERSION void multiply_entries(const int64_t* offsets, const int64_t* columns, int64_t begin,      \
                                            int64_t end, const T* U, const T* V, int64_t k, T* out);            \
  void multiply_entries(const int64_t* offsets, const int64_t* columns, int64_t begin, int64_t end, const T* U, \
                        const T* V, int64_t k, T* out) {                                                        \
    has_registers_of_512_bits() ? multiply_range<Registers<T, 64>>(offsets, columns, begin, end, U, V, k, out)  \
                                : multiply_range<Registers<T, 32>>(offsets, columns, begin, end, U, V, k, out); \
  }
FASTLR_DEFINE_MULTIPLY_ENTRIES(float)
FASTLR_DEFINE_MULTIPLY_ENTRIES(double)
#undef FASTLR_DEFINE_MULTIPLY_ENTRIES

template <typename T>
void entry_products_cpu(const int64_t* offsets, const int64_t* columns, int64_t count, const T* U, const T* V,
                        int64_t k, T* out) {
  for_row_shares(offsets, count, /*own=*/1, /*flops=*/2 * k + 1,
                 [&](int64_t begin, int64_t end) { multiply_entries(offsets, columns, begin, end, U, V, k, out); });
}

template void entry_products_cpu(const int64_t*, const int64_t*, int64_t, const float*, const float*, int64_t, float*);
template void entry_products_cpu(const int64_t*, const int64_t*, int64_t, const double*, const double*, int64_t,
                                 double*);

}  // namespace fastlr::kernels
