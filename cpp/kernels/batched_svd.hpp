// Singular value decompositions of the small matrices of a batch.
#pragma once

#include <cstdint>

namespace fastlr::kernels {

// For `count` size x size matrices core = U diag(S) Vᵀ, all row-major, S in descending order; V only where it is
// wanted. Columns of U of zero singular values are zero.
void svd_cpu(const double* core, int64_t count, int64_t size, double* U, double* S, double* V);

}  // namespace fastlr::kernels
