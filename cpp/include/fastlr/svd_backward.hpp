// Gradients through a truncated SVD.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace fastlr {

// The gradient with respect to A (m x n, or a batch) of a loss of U, S, Vh, taken for exact leading triplets of A, of
// A - 1 μᵀ with `center`, whose phases are fixed by the largest entry of each column of U. Gradients that are nothing
// are zero, in torch's convention for complex numbers: dL = Re tr(gUᴴ dU) + gSᵀ dS + Re tr(gVhᴴ dVh).
//
// With gS alone no pass over A. Otherwise conjugate residuals for all columns at once, on the shorter side: two passes
// an iteration and six besides, 2 m n k flops each, and O((m + n) k) memory; where that would cost more than the
// eigenvalues of a Gram matrix of the shorter side, these are taken. Where values coincide to rounding, the solution of
// least norm: right for losses that do not depend on the choice of vectors, finite for all. Warns where singular
// values beyond the rank are no smaller than kept ones and the loss depends on what has no derivative then.
//
// Sources: Townsend, "Differentiating the singular value decomposition" (2016); Wan, Zhang, arXiv:1909.02659, for
// complex matrices; Francuz, Schuch, Vanhecke, arXiv:2311.11894, for the truncated SVD; Stiefel, Comment. Math. Helv.
// 29 (1955), for conjugate residuals.
at::Tensor svd_backward(const at::Tensor& A, const at::Tensor& U, const at::Tensor& S, const at::Tensor& Vh,
                        const std::optional<at::Tensor>& gU, const std::optional<at::Tensor>& gS,
                        const std::optional<at::Tensor>& gVh, bool center);

}  // namespace fastlr
