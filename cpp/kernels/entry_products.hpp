// Single entries of a product of two factors.
#pragma once

#include <cstdint>

namespace fastlr::kernels {

// out[e] = U[i] . V[columns[e]] for the entries [offsets[i], offsets[i + 1]) of row i < count, factors row-major with
// rows of length k. 2 nnz k flops.
template <typename T>
void entry_products_cpu(const int64_t* offsets, const int64_t* columns, int64_t count, const T* U, const T* V,
                        int64_t k, T* out);

// The same on a GPU; `stream` is a cudaStream_t.
template <typename T>
void entry_products_cuda(const int64_t* offsets, const int64_t* columns, int64_t count, const T* U, const T* V,
                         int64_t k, T* out, void* stream);

}  // namespace fastlr::kernels
