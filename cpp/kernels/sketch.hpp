// Products with sketching matrices that are drawn as they are needed: a sparse sign matrix, and rows of a Hadamard
// matrix with random signs. Both without their scale: entries are 0, 1 and -1.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

namespace fastlr::kernels {

// A row-major matrix, `stride` elements from row to row.
template <typename T>
struct RowMajor {
  T* entries;
  int64_t rows, columns, stride;
};

// `size` rows; columns have `nonzeros` entries each.
struct SparseSigns {
  uint64_t seed;
  int64_t size, nonzeros;
};

// Row i is row picks[i] of the Hadamard matrix, its columns times random signs.
struct HadamardRows {
  uint64_t seed;
  int64_t size;
  const int64_t* picks;
};

// The number of rows of a block, 2^bits, with the fewest additions; blocks of more would leave the cache, or the shared
// memory of a GPU.
inline int hadamard_block_bits(int64_t size, int64_t rows) {
  constexpr int kLeast = 4, kMost = 10;
  const int most = std::clamp(static_cast<int>(std::bit_width(static_cast<uint64_t>(std::max<int64_t>(1, rows - 1)))),
                              kLeast, kMost);
  int best = kLeast;
  const auto additions = [&](int bits) { return bits + static_cast<double>(size) / static_cast<double>(1 << bits); };
  for (int bits = kLeast; bits <= most; ++bits)
    if (additions(bits) < additions(best)) best = bits;
  return best;
}

// Y += S[:, first : first + A.rows] A.
template <typename T>
void add_sparse_sign_cpu(const SparseSigns& S, const RowMajor<const T>& A, int64_t first, const RowMajor<T>& Y);
template <typename T>
void add_hadamard_cpu(const HadamardRows& S, const RowMajor<const T>& A, int64_t first, const RowMajor<T>& Y);

// The same for rows of a compressed sparse matrix: `starts` has rows + 1 entries.
template <typename T, typename Index>
struct SparseRows {
  const Index *starts, *columns;
  const T* values;
  int64_t rows;
};
template <typename T, typename Index>
void add_sparse_sign_cpu(const SparseSigns& S, const SparseRows<T, Index>& A, int64_t first, const RowMajor<T>& Y);

// X = S[:, first : first + X.rows]ᵀ Y.
template <typename T>
void sparse_sign_adjoint_cpu(const SparseSigns& S, const RowMajor<const T>& Y, int64_t first, const RowMajor<T>& X);
template <typename T>
void hadamard_adjoint_cpu(const HadamardRows& S, const RowMajor<const T>& Y, int64_t first, const RowMajor<T>& X);

// The same on a GPU, where `picks` is in its memory; `stream` is a cudaStream_t.
template <typename T>
void add_sparse_sign_cuda(const SparseSigns& S, const RowMajor<const T>& A, int64_t first, const RowMajor<T>& Y,
                          void* stream);
template <typename T>
void sparse_sign_adjoint_cuda(const SparseSigns& S, const RowMajor<const T>& Y, int64_t first, const RowMajor<T>& X,
                              void* stream);
template <typename T>
void add_hadamard_cuda(const HadamardRows& S, const RowMajor<const T>& A, int64_t first, const RowMajor<T>& Y,
                       void* stream);
template <typename T>
void hadamard_adjoint_cuda(const HadamardRows& S, const RowMajor<const T>& Y, int64_t first, const RowMajor<T>& X,
                           void* stream);

}  // namespace fastlr::kernels
