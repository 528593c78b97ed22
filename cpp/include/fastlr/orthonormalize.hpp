// Orthonormal bases by Cholesky QR with verification, Householder QR where that breaks down.
#pragma once

#include <ATen/core/Tensor.h>

namespace fastlr {

// Q, m x min(m, k), with orthonormal columns whose span holds that of Y (m x k), for any condition number
// and rank of Y. Y is never written to. Cost: 4 m k^2 flops and two passes over Y where cond(Y) < u^-1/2,
// 6 m k^2 and three where it is below 1/u; 4 m k^2 more where Householder QR has to step in.
//
// Sources: Yamamoto, Nakatsukasa, Yanagisawa, Fukaya, "Roundoff error analysis of the CholeskyQR2
// algorithm", ETNA 44 (2015); Fukaya, Kannan, Nakatsukasa, Yamamoto, Yanagisawa, "Shifted Cholesky QR for
// computing the QR factorization of ill-conditioned matrices", SISC 42 (2020).
at::Tensor orthonormalize(const at::Tensor& Y);

// Q with columns orthonormal to rounding, from ones that are nearly so, as LAPACK's are: one Newton-Schulz step or
// Cholesky QR pass, 4 m k^2 flops; `orthonormalize` where they are further away. Leading dimensions are a batch.
at::Tensor polish(const at::Tensor& Q);

// A well-conditioned, not quite orthonormal basis of the same span for the inner steps of a subspace
// iteration: one Cholesky QR pass, 2 m k^2 flops, where that does not break down; `orthonormalize` elsewhere.
at::Tensor stabilize(const at::Tensor& Y);

}  // namespace fastlr
