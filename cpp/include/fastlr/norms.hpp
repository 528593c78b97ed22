// Norms and ranks of matrices known by their products, as intervals.
#pragma once

#include <fastlr/linear_operator.hpp>

#include <optional>

namespace fastlr {

enum class NormMethod {
  dense,    // LAPACK's singular values
  entries,  // a sum over the entries
  lanczos,  // block Krylov space of a random start
  probes    // products with Gaussian vectors
};

struct NormEstimate {
  double value, lower, upper;
  double failure;  // the probability with which the norm may be outside of [lower, upper]
  int64_t passes;  // over A
  NormMethod method;
};

// ‖A‖_2: the square root of a Ritz value of AᴴA is a lower bound but for rounding; the norm is above (1 + rtol) times
// it with probability `failure` at most. The number of steps follows from the bound: some log(n / failure) /
// sqrt(rtol), two passes each, with four vectors.
//
// Source: Kuczyński and Woźniakowski, "Estimating the largest eigenvalue by the power and Lanczos algorithms with a
// random start", SIMAX 13 (1992), theorem 4.2.
NormEstimate spectral_norm(const Operator& A, double rtol, double failure, int64_t seed);

// ‖A‖_F: exact in one pass where the entries can be seen; elsewhere from 64 Gaussian probes.
NormEstimate frobenius_norm_estimate(const Operator& A, double failure, int64_t seed);

struct RankEstimate {
  int64_t rank;          // singular values found above tol ‖A‖_2
  int64_t lower, upper;  // bounds of the number that there are
  double norm;           // ‖A‖_2
  double residual;       // bound of the spectral norm of what was not captured
  double failure;        // the probability with which `upper` may be too low
  int64_t passes;
  bool converged;  // false: `most` columns were not enough
  bool dense;      // LAPACK's singular values
};

// The number of singular values above tol ‖A‖_2 (nothing: tol = max(m, n) 2 u), from blocks of a QB factorization until
// what is left is below half of that. 6 passes a block, the width of which grows with what has been found; where that
// would reach two thirds of the short side, LAPACK's singular values. Stops at `most` columns.
//
// Sources: Meier and Nakatsukasa, "Fast randomized numerical rank estimation for numerically low-rank matrices",
// Linear Algebra Appl. 686 (2024); Yu, Gu, Li, SIMAX 39 (2018), for the blocks.
RankEstimate estimate_rank(const Operator& A, std::optional<double> tol, std::optional<int64_t> most, int64_t seed);

}  // namespace fastlr
