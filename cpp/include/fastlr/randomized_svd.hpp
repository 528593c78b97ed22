// Truncated SVD by randomized subspace iteration, with an error estimate from a fresh probe.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace fastlr {

struct RandomizedSvd {
  at::Tensor U, S, Vh;  // m x rank, rank, rank x n; orthonormal columns and rows; S descending
  int64_t power_iters;  // subspace iterations carried out
  int64_t passes;       // products with A or its transpose, and scans of it
  double error;         // estimate of ‖A - U diag(S) Vh‖_F; unbiased when squared
  int64_t probes;       // Gaussian vectors behind the estimate; 0: the error comes from the full spectrum
  bool converged;       // false: the rule of power_iters = nullopt met its limit of iterations
};

// A is m x n, float32 or float64. power_iters = nullopt iterates until no leading singular value grows by more
// than 2 %. Signs: the largest entry of each column of U is positive.
//
// Cost: (2 + 2 q) passes over A, 2 m n (rank + oversample) flops each, and O((m + n) (rank + oversample)^2).
// One pass and O(m n min(m, n)) flops where rank + oversample reaches min(m, n).
//
// Sources: Halko, Martinsson, Tropp, "Finding structure with randomness", SIAM Review 53 (2011), algorithms 4.4
// and 5.1; the error estimate is the Girard-Hutchinson estimator of ‖A - U diag(S) Vh‖_F^2.
RandomizedSvd randomized_svd(const at::Tensor& A, int64_t rank, int64_t oversample, std::optional<int64_t> power_iters,
                             int64_t seed);

// Gaussian vectors of an error estimate.
constexpr int64_t kProbes = 10;

// The estimate of ‖E‖_F from E * Omega (m x probes), Omega Gaussian: ‖E * Omega‖_F / sqrt(probes).
double frobenius_estimate(const at::Tensor& probed);

}  // namespace fastlr
