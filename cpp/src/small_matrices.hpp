// Gram matrices and factorizations of the small matrices of a batch: by kernels in memory of the host, elsewhere and
// for larger ones by ATen.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <utility>

#include "tall.hpp"

namespace fastlr {

// YᴴY of the type `of`, for a batch of real matrices on the host, of few columns; nothing for all others.
std::optional<at::Tensor> batched_gram(const at::Tensor& Y, at::ScalarType of);

// As cholesky_factors, for the same.
std::optional<CholeskyFactors> batched_cholesky(const at::Tensor& G);

// core = U diag(S) Vᴴ for square nonsingular matrices.
struct SmallSvd {
  at::Tensor U, S, V;
};
SmallSvd small_svd(const at::Tensor& core);

// Eigenvalues in descending order, not below zero, and eigenvectors of positive semidefinite matrices.
std::pair<at::Tensor, at::Tensor> small_eigenvectors(const at::Tensor& G);

}  // namespace fastlr
