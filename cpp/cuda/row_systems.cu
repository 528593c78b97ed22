// Least squares for the rows of a factor: a block of threads has a row and its normal equations in shared memory; for
// conjugate gradients a warp has a row.
#include <c10/cuda/CUDAException.h>

#include <algorithm>
#include <limits>

#include "../kernels/row_systems.hpp"

namespace fastlr::kernels {
namespace {

template <typename T>
constexpr T kRounding = 4 * std::numeric_limits<T>::epsilon();
constexpr int kThreads = 128, kWarp = 32, kEntries = 16, kRowsOfBlock = 4;

template <typename T>
__device__ T* shared() {
  extern __shared__ unsigned char memory[];
  return reinterpret_cast<T*>(memory);
}

template <typename T>
__device__ T penalty_of(const RowSystems<T>& systems, int64_t row, int64_t unknown) {
  return systems.ridge[row] * (systems.penalties ? systems.penalties[unknown] : T(1));
}

template <typename T>
__device__ T target_of(const RowSystems<T>& systems, int64_t entry) {
  return systems.values[entry] - (systems.shifts ? systems.shifts[systems.columns[entry]] : T(0));
}

// Entry (r, c), c <= r, of a lower triangle that is stored by rows.
__device__ int triangle(int r, int c) { return r * (r + 1) / 2 + c; }

// Row and column of a place in the triangle.
__device__ void place_of(int place, int& r, int& c) {
  r = static_cast<int>((sqrtf(8.0f * static_cast<float>(place) + 1.0f) - 1.0f) / 2.0f);
  while (triangle(r + 1, 0) <= place) ++r;
  while (triangle(r, 0) > place) --r;
  c = place - triangle(r, 0);
}

// Shared: kEntries rows of X, each with a 1 for an intercept and its target, times the root of the weight; the triangle
// of the normal equations with the right-hand side as its last row; the diagonal.
template <typename T>
__global__ void solve_kernel(RowSystems<T> systems, const T* factor, int k, bool intercept, T* solutions, T* intercepts,
                             bool* definite) {
  const int order = k + intercept, width = order + 1, size = triangle(width, 0);
  T *X = shared<T>(), *A = X + kEntries * width, *diagonal = A + size, *x = A + triangle(order, 0);
  for (int64_t row = blockIdx.x; row < systems.count; row += gridDim.x) {
    __syncthreads();
    for (int place = threadIdx.x; place < size; place += blockDim.x) A[place] = T(0);
    for (int64_t first = systems.offsets[row]; first < systems.offsets[row + 1]; first += kEntries) {
      const int entries = static_cast<int>(min(static_cast<int64_t>(kEntries), systems.offsets[row + 1] - first));
      __syncthreads();
      for (int at = threadIdx.x; at < entries * width; at += blockDim.x) {
        const int64_t entry = first + at / width;
        const int j = at % width;
        const T root = systems.weights ? sqrt(systems.weights[entry]) : T(1);
        X[at] = root * (j < k ? factor[systems.columns[entry] * k + j] : j < order ? T(1) : target_of(systems, entry));
      }
      __syncthreads();
      for (int place = threadIdx.x; place < size; place += blockDim.x) {
        int r, c;
        place_of(place, r, c);
        T sum = A[place];
        for (int e = 0; e < entries; ++e) sum += X[e * width + r] * X[e * width + c];
        A[place] = sum;
      }
    }
    __syncthreads();
    const bool empty = systems.offsets[row] == systems.offsets[row + 1];
    for (int j = threadIdx.x; j < order; j += blockDim.x) {
      A[triangle(j, j)] += empty ? T(1) : penalty_of(systems, row, j);
      diagonal[j] = A[triangle(j, j)];
    }
    const T rounding = static_cast<T>(order) * kRounding<T>;
    bool valid = true;  // the same in all threads
    for (int j = 0; j < order && valid; ++j) {
      __syncthreads();
      const T pivot = A[triangle(j, j)];
      valid = pivot > rounding * diagonal[j];
      if (!valid) break;
      const T reciprocal = 1 / sqrt(pivot);
      __syncthreads();
      for (int r = j + static_cast<int>(threadIdx.x); r < width; r += blockDim.x)
        A[triangle(r, j)] = r == j ? reciprocal : A[triangle(r, j)] * reciprocal;
      __syncthreads();
      for (int place = threadIdx.x; place < triangle(width - j - 1, 0); place += blockDim.x) {
        int r, c;
        place_of(place, r, c);
        A[triangle(j + 1 + r, j + 1 + c)] -= A[triangle(j + 1 + r, j)] * A[triangle(j + 1 + c, j)];
      }
    }
    for (int j = order; valid && j-- > 0;) {
      __syncthreads();
      const T unknown = x[j] * A[triangle(j, j)];
      for (int p = threadIdx.x; p < j; p += blockDim.x) x[p] -= unknown * A[triangle(j, p)];
      if (threadIdx.x == 0) diagonal[j] = unknown;
    }
    __syncthreads();
    for (int j = threadIdx.x; j < k; j += blockDim.x) solutions[row * k + j] = valid ? diagonal[j] : T(0);
    if (threadIdx.x == 0) {
      definite[row] = valid;
      if (intercepts) intercepts[row] = valid ? diagonal[k] : T(0);
    }
  }
}

// ---- conjugate gradients ----

template <typename T>
__device__ T warp_sum(T value) {
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}

// Calls work(x, weight, target) for the entries of a row, x that of the factor.
template <typename T, typename Work>
__device__ void for_entries(const RowSystems<T>& systems, int64_t row, const T* factor, int64_t k, const Work& work) {
  for (int64_t entry = systems.offsets[row]; entry < systems.offsets[row + 1]; ++entry)
    work(factor + systems.columns[entry] * k, systems.weights ? systems.weights[entry] : T(1),
         target_of(systems, entry));
}

// Xᵀ W (targets - X p) - ridge (penalties p), by lanes that have every 32nd unknown each; without `with_values` the
// targets are zero.
template <typename T>
__device__ void residual(const RowSystems<T>& systems, int64_t row, bool with_values, const T* factor, int64_t k,
                         const T* p, T* result) {
  for (int64_t j = threadIdx.x; j < k; j += kWarp) result[j] = -penalty_of(systems, row, j) * p[j];
  for_entries(systems, row, factor, k, [&](const T* x, T weight, T target) {
    T dot = 0;
    for (int64_t j = threadIdx.x; j < k; j += kWarp) dot += x[j] * p[j];
    const T left = weight * ((with_values ? target : T(0)) - warp_sum(dot));
    for (int64_t j = threadIdx.x; j < k; j += kWarp) result[j] += left * x[j];
  });
}

// The kernel of the CPU, step by step (row_gradients.cpp). Shared: five vectors for every row of the block.
template <typename T>
__global__ void gradients_kernel(RowSystems<T> systems, const T* factor, int64_t k, T tolerance, int64_t steps,
                                 T* solutions) {
  T *left = shared<T>() + threadIdx.y * 5 * k, *direction = left + k, *product = direction + k, *scale = product + k;
  T* u = scale + k;
  const auto dot = [&](const T* weights, const T* a, const T* b) {
    T sum = 0;
    for (int64_t j = threadIdx.x; j < k; j += kWarp) sum += (weights ? weights[j] : T(1)) * a[j] * b[j];
    return warp_sum(sum);
  };
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRowsOfBlock + threadIdx.y;
  if (row >= systems.count) return;
  for (int64_t j = threadIdx.x; j < k; j += kWarp) {
    scale[j] = penalty_of(systems, row, j);
    product[j] = T(0);
    u[j] = solutions[row * k + j];
  }
  for_entries(systems, row, factor, k, [&](const T* x, T weight, T) {
    for (int64_t j = threadIdx.x; j < k; j += kWarp) scale[j] += weight * x[j] * x[j];
  });
  for (int64_t j = threadIdx.x; j < k; j += kWarp) scale[j] = scale[j] > 0 ? 1 / scale[j] : T(1);
  residual(systems, row, true, factor, k, product, left);
  const T least = kRounding<T> * kRounding<T> * dot(scale, left, left);
  residual(systems, row, true, factor, k, u, left);
  for (int64_t j = threadIdx.x; j < k; j += kWarp) direction[j] = scale[j] * left[j];
  T square = dot(scale, left, left);
  const T enough = max(tolerance * tolerance * square, least);
  for (int64_t step = 0; step < steps && square > enough; ++step) {
    residual(systems, row, false, factor, k, direction, product);
    const T curvature = -dot(static_cast<const T*>(nullptr), direction, product);
    if (!(curvature > 0)) break;
    const T length = square / curvature, before = square;
    for (int64_t j = threadIdx.x; j < k; j += kWarp) {
      u[j] += length * direction[j];
      left[j] += length * product[j];
    }
    square = dot(scale, left, left);
    for (int64_t j = threadIdx.x; j < k; j += kWarp) direction[j] = scale[j] * left[j] + square / before * direction[j];
  }
  for (int64_t j = threadIdx.x; j < k; j += kWarp) solutions[row * k + j] = u[j];
}

// A block may have more than the usual 48 KiB of shared memory, if that is asked for.
template <typename Kernel>
void allow_shared(const Kernel& kernel, size_t bytes) {
  C10_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
}

}  // namespace

template <typename T>
void solve_rows_cuda(const RowSystems<T>& systems, const T* factor, int64_t k, T* solutions, T* intercepts,
                     bool* definite, void* stream) {
  if (systems.count == 0) return;
  const int64_t order = k + (intercepts != nullptr), width = order + 1;
  const size_t bytes = sizeof(T) * (kEntries * width + width * (width + 1) / 2 + order);
  allow_shared(solve_kernel<T>, bytes);
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(systems.count, 1 << 20));
  solve_kernel<T><<<blocks, kThreads, bytes, static_cast<cudaStream_t>(stream)>>>(
      systems, factor, static_cast<int>(k), intercepts != nullptr, solutions, intercepts, definite);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

template <typename T>
void solve_rows_by_gradients_cuda(const RowSystems<T>& systems, const T* factor, int64_t k, double tolerance,
                                  int64_t steps, T* solutions, void* stream) {
  if (systems.count == 0) return;
  const size_t bytes = sizeof(T) * kRowsOfBlock * 5 * k;
  allow_shared(gradients_kernel<T>, bytes);
  const auto blocks = static_cast<unsigned>((systems.count + kRowsOfBlock - 1) / kRowsOfBlock);
  gradients_kernel<T><<<blocks, dim3(kWarp, kRowsOfBlock), bytes, static_cast<cudaStream_t>(stream)>>>(
      systems, factor, k, static_cast<T>(tolerance), steps, solutions);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

template void solve_rows_cuda(const RowSystems<float>&, const float*, int64_t, float*, float*, bool*, void*);
template void solve_rows_cuda(const RowSystems<double>&, const double*, int64_t, double*, double*, bool*, void*);
template void solve_rows_by_gradients_cuda(const RowSystems<float>&, const float*, int64_t, double, int64_t, float*,
                                           void*);
template void solve_rows_by_gradients_cuda(const RowSystems<double>&, const double*, int64_t, double, int64_t, double*,
                                           void*);

}  // namespace fastlr::kernels
