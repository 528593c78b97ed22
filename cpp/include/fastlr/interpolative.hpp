// Interpolative decomposition by strong rank-revealing pivoting.
#pragma once

#include <ATen/core/Tensor.h>

namespace fastlr {

struct Interpolative {
  at::Tensor indices;       // `rank` distinct column numbers, int64
  at::Tensor coefficients;  // rank x n, identity at `indices`, every entry at most 2 in magnitude
  int64_t passes;
  double error;    // estimate of ‖A - A[:, indices] * coefficients‖_F
  int64_t probes;  // Gaussian vectors behind the estimate
};

// A (m x n) ≈ A[:, indices] * coefficients. Exact to rounding where rank = min(m, n).
//
// Sources: Gu, Eisenstat, "Efficient algorithms for computing a strong rank-revealing QR factorization", SISC 17
// (1996); Goreinov, Oseledets, Savostyanov, Tyrtyshnikov, Zamarashkin, "How to find a good submatrix" (2010) for the
// swaps on an exact-rank factor; Cheng, Gimbutas, Martinsson, Rokhlin, "On the compression of low rank matrices",
// SISC 26 (2005).
Interpolative interpolative(const at::Tensor& A, int64_t rank, int64_t seed);

}  // namespace fastlr
