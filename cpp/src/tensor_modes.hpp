// A tensor seen along one of its modes. It is never permuted in memory as a whole.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>

namespace fastlr {

// X, contiguous, as (before, n, after): the entries before, along and after the mode.
at::Tensor around(const at::Tensor& X, int64_t mode);

// The p x n matrix A times every fibre along the mode: 2 p X.numel() flops.
at::Tensor mode_product(const at::Tensor& X, int64_t mode, const at::Tensor& A);

// The unfolding, n x (before * after), times a matrix of l columns: 2 l X.numel() flops.
at::Tensor unfolding_product(const at::Tensor& X, int64_t mode, const at::Tensor& Y);

// The unfolding itself, n x (before * after).
at::Tensor unfolding(const at::Tensor& X, int64_t mode);

// Visits blocks of columns of the unfolding, converted to a type.
using ColumnVisitor = std::function<void(const at::Tensor& columns)>;
void for_unfolding_blocks(const at::Tensor& X, int64_t mode, at::ScalarType type, const ColumnVisitor& visit);

}  // namespace fastlr
