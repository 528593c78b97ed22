#include "take_columns.hpp"

#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>

#include "multiversion.hpp"

namespace fastlr::kernels {
namespace {

// Entries that take some 10 microseconds: for fewer a second thread costs more than it saves.
constexpr int64_t kTask = 1 << 14;

template <typename T>
inline __attribute__((always_inline)) void take(const T* in, int64_t columns, const int32_t* order, const T* bias,
                                                T* out) {
  using Sum = at::opmath_type<T>;
  if (bias == nullptr)
    for (int64_t j = 0; j < columns; ++j) out[j] = in[order[j]];
  else
    for (int64_t j = 0; j < columns; ++j)
      out[j] = static_cast<T>(static_cast<Sum>(in[order[j]]) + static_cast<Sum>(bias[j]));
}

}  // namespace

// target_clones takes neither templates nor internal linkage in every compiler: plain functions.
#define FASTLR_DEFINE_TAKE(T)                                                                                   \
  FASTLR_MULTIVERSION void take_row(const T* in, int64_t columns, const int32_t* order, const T* bias, T* out); \
  void take_row(const T* in, int64_t columns, const int32_t* order, const T* bias, T* out) {                    \
    take(in, columns, order, bias, out);                                                                        \
  }
FASTLR_DEFINE_TAKE(float)
FASTLR_DEFINE_TAKE(double)
FASTLR_DEFINE_TAKE(c10::Half)
FASTLR_DEFINE_TAKE(c10::BFloat16)

template <typename T>
void take_columns(const T* in, int64_t in_stride, int64_t rows, int64_t columns, const int32_t* order, const T* bias,
                  T* out, int64_t out_stride) {
  const int64_t grain = std::max<int64_t>(1, kTask / std::max<int64_t>(1, columns));
  at::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) take_row(in + t * in_stride, columns, order, bias, out + t * out_stride);
  });
}

#define FASTLR_INSTANTIATE(T) \
  template void take_columns(const T*, int64_t, int64_t, int64_t, const int32_t*, const T*, T*, int64_t);
FASTLR_INSTANTIATE(float)
FASTLR_INSTANTIATE(double)
FASTLR_INSTANTIATE(c10::Half)
FASTLR_INSTANTIATE(c10::BFloat16)

}  // namespace fastlr::kernels
