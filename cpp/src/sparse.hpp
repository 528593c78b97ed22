// Sparse matrices in compressed rows.
#pragma once

#include <ATen/core/Tensor.h>

namespace fastlr {

// The conjugate transpose of a CSR matrix, as CSR: a counting sort, O(nnz + m + n). Duplicates are kept.
at::Tensor conjugate_transpose(const at::Tensor& csr);

}  // namespace fastlr
