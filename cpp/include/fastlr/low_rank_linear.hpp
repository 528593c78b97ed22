// Layers whose weight is stored as factors, each in one call: what lies between the factors is never kept for all
// tokens.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <vector>

namespace fastlr {

// X (... x i) are the inputs, tokens. float16, bfloat16, float32 and float64; all tensors of a call have one type and
// one device. Few tokens on a CPU take one read of the factors, their sums in float32 at least; more are taken in tiles
// whose inner products stay in the cache. `bias` has o entries.

// X (B A)ᵀ + bias, for B (o x r) and A (r x i).
at::Tensor low_rank_linear(const at::Tensor& X, const at::Tensor& A, const at::Tensor& B,
                           const std::optional<at::Tensor>& bias);

// X Wᵀ + bias for an interpolative W. Of rows: W = (S; C S) with its rows in another order, of which output j is row
// order[j], S being r x i and C (o - r) x r. Of columns: W = (S, S C) with its columns in another order, of which
// column j is that of input order[j], S being o x r and C r x (i - r). `order`, int32, is a permutation.
at::Tensor interpolative_linear(const at::Tensor& X, const at::Tensor& skeleton, const at::Tensor& coefficients,
                                const at::Tensor& order, const std::optional<at::Tensor>& bias, bool of_rows);

// The gradients of X and of the two factors that are `wanted`, from that of the result (... x o). What lies between the
// factors is computed once more, tile by tile; sums over the tokens are in float32 at least.
std::vector<at::Tensor> low_rank_linear_backward(const at::Tensor& gradient, const at::Tensor& X, const at::Tensor& A,
                                                 const at::Tensor& B, std::array<bool, 3> wanted);
std::vector<at::Tensor> interpolative_linear_backward(const at::Tensor& gradient, const at::Tensor& X,
                                                      const at::Tensor& skeleton, const at::Tensor& coefficients,
                                                      const at::Tensor& order, bool of_rows,
                                                      std::array<bool, 3> wanted);

}  // namespace fastlr
