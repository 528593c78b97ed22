// CUDA fill: one Philox counter a thread, threads along the columns of a group of rows, so that the
// stores of a warp are contiguous. Compiled with -fmad=false: the bits are those of the CPU fill.
#include <c10/cuda/CUDAException.h>

#include <algorithm>

#include "../kernels/random.hpp"

namespace fastlr::kernels {
namespace {

using philox::Kind;
using philox::Variates;

template <typename T, Kind kind>
__global__ void fill_random_kernel(T* out, RandomWindow window, int64_t first_group, int64_t groups) {
  constexpr int height = Variates<T>::count;
  const int64_t counters = groups * window.columns;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < counters; i += step) {
    const int64_t group = first_group + i / window.columns;
    const int64_t column = i % window.columns;
    const auto drawn = philox::variates_at<T, kind>(window.seed, group, static_cast<uint32_t>(window.column0 + column));
#pragma unroll
    for (int r = 0; r < height; ++r) {
      const int64_t row = group * height + r - window.row0;
      if (row >= 0 && row < window.rows) out[row * window.stride + column] = drawn.v[r];
    }
  }
}

template <typename T, Kind kind>
void launch(T* out, const RandomWindow& window, cudaStream_t stream) {
  constexpr int64_t height = Variates<T>::count;
  constexpr int64_t threads = 256, most_blocks = 1 << 16;
  const int64_t first_group = window.row0 / height;
  const int64_t groups = (window.row0 + window.rows + height - 1) / height - first_group;
  const int64_t blocks = std::min(most_blocks, (groups * window.columns + threads - 1) / threads);
  fill_random_kernel<T, kind><<<blocks, threads, 0, stream>>>(out, window, first_group, groups);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace

template <typename T>
void fill_random_cuda(T* out, Kind kind, const RandomWindow& window, void* stream) {
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  switch (kind) {
    case Kind::uniform:
      return launch<T, Kind::uniform>(out, window, cuda_stream);
    case Kind::gaussian:
      return launch<T, Kind::gaussian>(out, window, cuda_stream);
    case Kind::sign:
      return launch<T, Kind::sign>(out, window, cuda_stream);
  }
}

template void fill_random_cuda(float*, Kind, const RandomWindow&, void*);
template void fill_random_cuda(double*, Kind, const RandomWindow&, void*);

}  // namespace fastlr::kernels
