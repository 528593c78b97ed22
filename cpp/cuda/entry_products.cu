// Single entries of a product of two factors: a warp has a row and walks along its entries, a lane some of the terms.
#include <c10/cuda/CUDAException.h>

#include "../kernels/entry_products.hpp"

namespace fastlr::kernels {
namespace {

constexpr int kWarp = 32, kRowsOfBlock = 8;

template <typename T>
__global__ void multiply_kernel(const int64_t* offsets, const int64_t* columns, int64_t count, const T* U, const T* V,
                                int64_t k, T* out) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRowsOfBlock + threadIdx.y;
  if (row >= count) return;
  for (int64_t entry = offsets[row]; entry < offsets[row + 1]; ++entry) {
    const T* v = V + columns[entry] * k;
    T sum = 0;
    for (int64_t j = threadIdx.x; j < k; j += kWarp) sum += U[row * k + j] * v[j];
    for (int step = kWarp / 2; step > 0; step /= 2) sum += __shfl_down_sync(0xffffffffu, sum, step);
    if (threadIdx.x == 0) out[entry] = sum;
  }
}

}  // namespace

template <typename T>
void entry_products_cuda(const int64_t* offsets, const int64_t* columns, int64_t count, const T* U, const T* V,
                         int64_t k, T* out, void* stream) {
  if (count == 0) return;
  const auto blocks = static_cast<unsigned>((count + kRowsOfBlock - 1) / kRowsOfBlock);
  multiply_kernel<T><<<blocks, dim3(kWarp, kRowsOfBlock), 0, static_cast<cudaStream_t>(stream)>>>(offsets, columns,
                                                                                                  count, U, V, k, out);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

template void entry_products_cuda(const int64_t*, const int64_t*, int64_t, const float*, const float*, int64_t, float*,
                                  void*);
template void entry_products_cuda(const int64_t*, const int64_t*, int64_t, const double*, const double*, int64_t,
                                  double*, void*);

}  // namespace fastlr::kernels
