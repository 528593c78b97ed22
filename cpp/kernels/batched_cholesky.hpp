// Cholesky factors of the small matrices of a batch, and their inverses.
#pragma once

#include <cstdint>

namespace fastlr::kernels {

// For `count` size x size matrices G, row-major like R and T: G = RᵀR with R upper triangular, T = R^-1, after a
// scaling of G to a unit diagonal; where that breaks down valid is false, and R and T are nothing. amplification is the
// Frobenius norm of the inverse of the scaled factor, over sqrt(size).
template <typename T>
void cholesky_cpu(const T* G, int64_t count, int64_t size, T* R, T* inverse, bool* valid, T* amplification);

}  // namespace fastlr::kernels
