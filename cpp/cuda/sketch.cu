// CUDA products with sketching matrices, which are drawn where they are needed: the entries are those of the CPU. Sums
// over rows of A come in any order, by atomic additions.
#include <c10/cuda/CUDAException.h>

#include <algorithm>

#include <fastlr/sketch_draws.hpp>

#include "../kernels/sketch.hpp"

namespace fastlr::kernels {
namespace {

constexpr int kLanes = 32, kWarps = 8;
// Rows of A that a warp takes one after the other, and how many blocks a dimension of a grid may have.
constexpr int64_t kRowsOfWarp = 64, kMostBlocks = 65535;

int64_t cover(int64_t size, int64_t part) { return (size + part - 1) / part; }

template <typename T>
__device__ T signed_value(T value, bool negative) {
  return negative ? -value : value;
}

// Calls work(entry) for the entries of a column of S.
template <typename Work>
__device__ void for_entries(const SparseSigns& S, int64_t column, const Work& work) {
  for (int64_t j = 0; j < S.nonzeros; j += 4) {
    const auto words = sketch_draws::draw(S.seed, column, static_cast<uint32_t>(j / 4), sketch_draws::kSparseSign);
    for (int64_t k = j; k < j + 4 && k < S.nonzeros; ++k)
      work(sketch_draws::sparse_sign_entry(sketch_draws::word_of(words, static_cast<int>(k - j)), k, S.size,
                                           S.nonzeros));
  }
}

// A lane has a column of A, a warp some rows; blocks go on with the rows that are beyond the grid.
template <typename T>
__global__ void add_sparse_sign_kernel(SparseSigns S, RowMajor<const T> A, int64_t first, RowMajor<T> Y) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kLanes + threadIdx.x;
  if (column >= A.columns) return;
  const int64_t step = static_cast<int64_t>(gridDim.y) * kWarps * kRowsOfWarp;
  const int64_t begin = (static_cast<int64_t>(blockIdx.y) * kWarps + threadIdx.y) * kRowsOfWarp;
  for (int64_t from = begin; from < A.rows; from += step)
    for (int64_t row = from; row < A.rows && row < from + kRowsOfWarp; ++row) {
      const T value = A.entries[row * A.stride + column];
      for_entries(S, first + row, [&](const sketch_draws::Entry& entry) {
        atomicAdd(Y.entries + entry.row * Y.stride + column, signed_value(value, entry.negative));
      });
    }
}

template <typename T>
__global__ void sparse_sign_adjoint_kernel(SparseSigns S, RowMajor<const T> Y, int64_t first, RowMajor<T> X) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kLanes + threadIdx.x;
  if (column >= X.columns) return;
  const int64_t step = static_cast<int64_t>(gridDim.y) * kWarps;
  for (int64_t row = static_cast<int64_t>(blockIdx.y) * kWarps + threadIdx.y; row < X.rows; row += step) {
    T sum = T(0);
    for_entries(S, first + row, [&](const sketch_draws::Entry& entry) {
      sum += signed_value(Y.entries[entry.row * Y.stride + column], entry.negative);
    });
    X.entries[row * X.stride + column] = sum;
  }
}

// ---- Hadamard: a block of threads transforms 2^bits rows of a few columns in shared memory ----

constexpr int kThreads = 256, kSharedBytes = 32 << 10;

template <typename T>
__device__ void transform(T* rows, int bits, int width) {
  for (int level = 0; level < bits; ++level) {
    __syncthreads();
    for (int pair = threadIdx.x; pair < width << (bits - 1); pair += blockDim.x) {
      const int column = pair % width, index = pair / width, low = index & ((1 << level) - 1);
      const int upper = ((index >> level) << (level + 1)) + low, lower = upper + (1 << level);
      const T a = rows[upper * width + column], b = rows[lower * width + column];
      rows[upper * width + column] = a + b;
      rows[lower * width + column] = a - b;
    }
  }
  __syncthreads();
}

// The sign of row `pick` of the Hadamard matrix in the block of rows from `row` on.
__device__ bool block_negative(int64_t pick, int64_t row, int bits) {
  return __popcll(static_cast<unsigned long long>((pick & row) >> bits)) % 2 != 0;
}

template <typename T>
__device__ T* shared_rows() {
  extern __shared__ unsigned char memory[];
  return reinterpret_cast<T*>(memory);
}

template <typename T>
__global__ void add_hadamard_kernel(HadamardRows S, RowMajor<const T> A, int64_t first, RowMajor<T> Y, int bits,
                                    int width) {
  T* rows = shared_rows<T>();
  const int64_t height = int64_t{1} << bits, panel = static_cast<int64_t>(blockIdx.x) * width;
  const int64_t begin = first / height * height + static_cast<int64_t>(blockIdx.y) * height;
  for (int64_t row = begin; row < first + A.rows; row += height * gridDim.y) {
    __syncthreads();
    for (int64_t at = threadIdx.x; at < height * width; at += blockDim.x) {
      const int64_t own = row + at / width - first, column = panel + at % width;
      const bool inside = own >= 0 && own < A.rows && column < A.columns;
      rows[at] = inside ? signed_value(A.entries[own * A.stride + column],
                                       sketch_draws::hadamard_negative(S.seed, first + own))
                        : T(0);
    }
    transform(rows, bits, width);
    for (int64_t at = threadIdx.x; at < S.size * width; at += blockDim.x) {
      const int64_t i = at / width, column = panel + at % width;
      if (column >= A.columns) continue;
      const T value = rows[(S.picks[i] & (height - 1)) * width + at % width];
      atomicAdd(Y.entries + i * Y.stride + column, signed_value(value, block_negative(S.picks[i], row, bits)));
    }
  }
}

template <typename T>
__global__ void hadamard_adjoint_kernel(HadamardRows S, RowMajor<const T> Y, int64_t first, RowMajor<T> X, int bits,
                                        int width) {
  T* rows = shared_rows<T>();
  const int64_t height = int64_t{1} << bits, panel = static_cast<int64_t>(blockIdx.x) * width;
  const int64_t begin = first / height * height + static_cast<int64_t>(blockIdx.y) * height;
  for (int64_t row = begin; row < first + X.rows; row += height * gridDim.y) {
    __syncthreads();
    for (int64_t at = threadIdx.x; at < height * width; at += blockDim.x) rows[at] = T(0);
    __syncthreads();
    // Picks may share a row of the block.
    for (int64_t at = threadIdx.x; at < S.size * width; at += blockDim.x) {
      const int64_t i = at / width, column = panel + at % width;
      if (column < X.columns)
        atomicAdd(rows + (S.picks[i] & (height - 1)) * width + at % width,
                  signed_value(Y.entries[i * Y.stride + column], block_negative(S.picks[i], row, bits)));
    }
    transform(rows, bits, width);
    for (int64_t at = threadIdx.x; at < height * width; at += blockDim.x) {
      const int64_t own = row + at / width - first, column = panel + at % width;
      if (own >= 0 && own < X.rows && column < X.columns)
        X.entries[own * X.stride + column] =
            signed_value(rows[at], sketch_draws::hadamard_negative(S.seed, first + own));
    }
  }
}

dim3 sparse_grid(int64_t columns, int64_t groups) {
  return dim3(static_cast<unsigned>(cover(columns, kLanes)), static_cast<unsigned>(std::min(groups, kMostBlocks)));
}

// Launches a kernel of blocks of rows from `first` on, some columns each.
template <typename T, typename Kernel, typename... Arguments>
void launch_hadamard(const Kernel& kernel, const HadamardRows& S, int64_t rows, int64_t columns, int64_t first,
                     void* stream, const Arguments&... arguments) {
  if (rows == 0 || columns == 0) return;
  const int bits = hadamard_block_bits(S.size, rows);
  const int width = std::max(1, (kSharedBytes / static_cast<int>(sizeof(T))) >> bits);
  const int64_t height = int64_t{1} << bits, blocks = cover(first + rows, height) - first / height;
  const dim3 grid(static_cast<unsigned>(cover(columns, width)), static_cast<unsigned>(std::min(blocks, kMostBlocks)));
  const auto bytes = (sizeof(T) * static_cast<size_t>(width)) << bits;
  kernel<<<grid, kThreads, bytes, static_cast<cudaStream_t>(stream)>>>(S, arguments..., bits, width);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace

template <typename T>
void add_sparse_sign_cuda(const SparseSigns& S, const RowMajor<const T>& A, int64_t first, const RowMajor<T>& Y,
                          void* stream) {
  if (A.rows == 0 || A.columns == 0) return;
  add_sparse_sign_kernel<T><<<sparse_grid(A.columns, cover(A.rows, kWarps * kRowsOfWarp)), dim3(kLanes, kWarps), 0,
                              static_cast<cudaStream_t>(stream)>>>(S, A, first, Y);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

template <typename T>
void sparse_sign_adjoint_cuda(const SparseSigns& S, const RowMajor<const T>& Y, int64_t first, const RowMajor<T>& X,
                              void* stream) {
  if (X.rows == 0 || X.columns == 0) return;
  sparse_sign_adjoint_kernel<T>
      <<<sparse_grid(X.columns, cover(X.rows, kWarps)), dim3(kLanes, kWarps), 0, static_cast<cudaStream_t>(stream)>>>(
          S, Y, first, X);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

template <typename T>
void add_hadamard_cuda(const HadamardRows& S, const RowMajor<const T>& A, int64_t first, const RowMajor<T>& Y,
                       void* stream) {
  launch_hadamard<T>(add_hadamard_kernel<T>, S, A.rows, A.columns, first, stream, A, first, Y);
}

template <typename T>
void hadamard_adjoint_cuda(const HadamardRows& S, const RowMajor<const T>& Y, int64_t first, const RowMajor<T>& X,
                           void* stream) {
  launch_hadamard<T>(hadamard_adjoint_kernel<T>, S, X.rows, X.columns, first, stream, Y, first, X);
}

#define FASTLR_INSTANTIATE(T)                                                                                         \
  template void add_sparse_sign_cuda(const SparseSigns&, const RowMajor<const T>&, int64_t, const RowMajor<T>&,       \
                                     void*);                                                                          \
  template void sparse_sign_adjoint_cuda(const SparseSigns&, const RowMajor<const T>&, int64_t, const RowMajor<T>&,   \
                                         void*);                                                                      \
  template void add_hadamard_cuda(const HadamardRows&, const RowMajor<const T>&, int64_t, const RowMajor<T>&, void*); \
  template void hadamard_adjoint_cuda(const HadamardRows&, const RowMajor<const T>&, int64_t, const RowMajor<T>&,     \
                                      void*);
FASTLR_INSTANTIATE(float)
FASTLR_INSTANTIATE(double)

}  // namespace fastlr::kernels
