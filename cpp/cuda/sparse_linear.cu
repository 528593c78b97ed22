// CUDA loops over kept entries: a warp has a row and walks along it, a lane a column. Where a lane's value is, is
// counted from the bits below its own. A mask with more bits than there are values ends with a device assertion.
#include <ATen/OpMathType.h>
#include <c10/cuda/CUDAException.h>
#include <c10/macros/Macros.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>

#include "../kernels/sparse_linear.hpp"

namespace fastlr::kernels {
namespace {

constexpr int kWarp = 32, kRowsOfBlock = 8, kTokens = 8;

__device__ int64_t own_row() { return static_cast<int64_t>(blockIdx.x) * kRowsOfBlock + threadIdx.y; }

// Bit k says whether column first + k is kept, for a warp's columns.
__device__ uint32_t bits_at(const KeptRows& kept, int64_t row, int64_t first) {
  const int64_t bytes = (kept.columns + 7) / 8;
  const uint8_t* bits = kept.mask + row * bytes;
  uint32_t word = 0;
  for (int k = 0; k < 4; ++k)
    if (first / 8 + k < bytes) word |= static_cast<uint32_t>(bits[first / 8 + k]) << (8 * k);
  const int64_t left = kept.columns - first;
  return left >= kWarp ? word : word & ((1u << left) - 1);
}

// Calls work(column, kept, place) for the columns of a lane; place is that of the value, if the column is kept.
template <typename Work>
__device__ void for_columns(const KeptRows& kept, int64_t row, int64_t nonzeros, const Work& work) {
  int64_t place = kept.starts[row];
  for (int64_t first = 0; first < kept.columns; first += kWarp) {
    const uint32_t word = bits_at(kept, row, first);
    const bool own = word >> threadIdx.x & 1;
    const int64_t own_place = place + __popc(word & ((1u << threadIdx.x) - 1));
    CUDA_KERNEL_ASSERT(!own || own_place < nonzeros);
    if (first + threadIdx.x < kept.columns) work(first + threadIdx.x, own, own_place);
    place += __popc(word);
  }
}

__global__ void count_kernel(KeptRows kept, int64_t* counts) {
  const int64_t row = own_row();
  if (row >= kept.rows) return;
  int64_t count = 0;
  for (int64_t first = static_cast<int64_t>(threadIdx.x) * kWarp; first < kept.columns; first += kWarp * kWarp)
    count += __popc(bits_at(kept, row, first));
  for (int step = kWarp / 2; step > 0; step /= 2) count += __shfl_down_sync(0xffffffffu, count, step);
  if (threadIdx.x == 0) counts[row] = count;
}

template <typename T>
__global__ void expand_kernel(KeptRows kept, const T* values, int64_t nonzeros, T* dense) {
  const int64_t row = own_row();
  if (row >= kept.rows) return;
  for_columns(kept, row, nonzeros, [&](int64_t column, bool own, int64_t place) {
    dense[row * kept.columns + column] = own ? values[place] : T(0);
  });
}

template <typename T>
__global__ void gather_kernel(KeptRows kept, const T* dense, int64_t stride, T* values, int64_t nonzeros) {
  const int64_t row = own_row();
  if (row >= kept.rows) return;
  for_columns(kept, row, nonzeros, [&](int64_t column, bool own, int64_t place) {
    if (own) values[place] = dense[row * stride + column];
  });
}

template <typename T>
__global__ void multiply_kernel(KeptRows kept, const T* values, int64_t nonzeros, const T* X, int tokens, T* out) {
  using Sum = at::opmath_type<T>;
  const int64_t row = own_row();
  if (row >= kept.rows) return;
  Sum sums[kTokens] = {};
  for_columns(kept, row, nonzeros, [&](int64_t column, bool own, int64_t place) {
    if (!own) return;
    const Sum weight = static_cast<Sum>(values[place]);
#pragma unroll
    for (int t = 0; t < kTokens; ++t)
      if (t < tokens) sums[t] += weight * static_cast<Sum>(X[t * kept.columns + column]);
  });
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
    for (int step = kWarp / 2; step > 0; step /= 2) sums[t] += __shfl_down_sync(0xffffffffu, sums[t], step);
    if (threadIdx.x == 0 && t < tokens) out[t * kept.rows + row] = static_cast<T>(sums[t]);
  }
}

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(KeptRows, Parameters...), void* stream, const KeptRows& kept, Arguments... arguments) {
  if (kept.rows == 0) return;
  const auto blocks = static_cast<unsigned>((kept.rows + kRowsOfBlock - 1) / kRowsOfBlock);
  kernel<<<blocks, dim3(kWarp, kRowsOfBlock), 0, static_cast<cudaStream_t>(stream)>>>(kept, arguments...);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace

void count_kept_cuda(const uint8_t* mask, int64_t rows, int64_t columns, int64_t* counts, void* stream) {
  launch(count_kernel, stream, KeptRows{mask, nullptr, rows, columns}, counts);
}

template <typename T>
void expand_cuda(const KeptRows& kept, const T* values, int64_t nonzeros, T* dense, void* stream) {
  launch(expand_kernel<T>, stream, kept, values, nonzeros, dense);
}

template <typename T>
void gather_cuda(const KeptRows& kept, const T* dense, int64_t stride, T* values, int64_t nonzeros, void* stream) {
  launch(gather_kernel<T>, stream, kept, dense, stride, values, nonzeros);
}

template <typename T>
void multiply_cuda(const KeptRows& kept, const T* values, int64_t nonzeros, const T* X, int64_t tokens, T* out,
                   void* stream) {
  for (int64_t t = 0; t < tokens; t += kTokens)
    launch(multiply_kernel<T>, stream, kept, values, nonzeros, X + t * kept.columns,
           static_cast<int>(std::min<int64_t>(kTokens, tokens - t)), out + t * kept.rows);
}

#define FASTLR_INSTANTIATE(T)                                                        \
  template void expand_cuda(const KeptRows&, const T*, int64_t, T*, void*);          \
  template void gather_cuda(const KeptRows&, const T*, int64_t, T*, int64_t, void*); \
  template void multiply_cuda(const KeptRows&, const T*, int64_t, const T*, int64_t, T*, void*);
FASTLR_INSTANTIATE(float)
FASTLR_INSTANTIATE(double)
FASTLR_INSTANTIATE(c10::Half)
FASTLR_INSTANTIATE(c10::BFloat16)

}  // namespace fastlr::kernels
