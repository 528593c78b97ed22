// Batches of matrices: their leading dimensions become one for the core, and are restored.
#pragma once

#include <ATen/ATen.h>

namespace fastlr::bindings {

inline at::IntArrayRef batch_of(const at::Tensor& A) { return A.sizes().slice(0, A.dim() - 2); }

inline at::Tensor flattened(const at::Tensor& A) {
  return A.reshape({c10::multiply_integers(batch_of(A)), A.size(-2), A.size(-1)});
}

inline at::Tensor unflattened(const at::Tensor& stacked, at::IntArrayRef batch) {
  auto sizes = batch.vec();
  sizes.insert(sizes.end(), stacked.sizes().begin() + 1, stacked.sizes().end());
  return stacked.reshape(sizes);
}

}  // namespace fastlr::bindings
