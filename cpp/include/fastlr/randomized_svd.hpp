// Truncated SVD from random sketches, with a certified error.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include <fastlr/error_estimate.hpp>
#include <fastlr/linear_operator.hpp>

namespace fastlr {

enum class SvdMethod {
  dense,        // LAPACK's SVD of the whole matrix, where the sketch would be no smaller
  subspace,     // subspace iteration
  krylov,       // block Krylov space with thick restarts
  single_pass,  // range, co-range and core sketch of one read
  nystrom,      // generalized Nyström from one read
  blocked_qb    // blocks of a QB factorization until a tolerance is met
};

// Of the steps of a subspace iteration before the last one.
enum class Precision {
  full,       // that of A
  automatic,  // half of it, where the hardware is faster then and the result has the same error
  lowest      // half of it, on any hardware
};

struct SvdOptions {
  int64_t rank;
  int64_t oversample = 10;
  std::optional<int64_t> power_iters = std::nullopt;  // nothing: until the singular values have settled
  int64_t seed = 0;
  SvdMethod method = SvdMethod::subspace;
  Precision precision = Precision::automatic;
};

struct SvdOutcome {
  ErrorEstimate error;      // of A - U diag(S) Vh
  int64_t passes = 0;       // over A
  int64_t power_iters = 0;  // subspace iterations carried out, or blocks of the Krylov space beyond the first
  bool converged = true;    // false: a limit was met before the criterion
  bool lowered = false;     // all steps but the last one ran in half the precision of A
  SvdMethod method = SvdMethod::dense;  // that ran
};
struct RandomizedSvd : SvdOutcome {
  at::Tensor U, S, Vh;  // m x k, k (real), k x n; orthonormal columns and rows; S descending
};
struct BatchedSvd {
  at::Tensor U, S, Vh;  // the same, with a leading dimension
  std::vector<SvdOutcome> outcomes;
};

// The leading `rank` singular triplets. Signs: the largest entry of each column of U is real and positive.
//
// subspace, with l = rank + oversample: 2 + 2 q passes, 2 m n l flops each, and O((m + n) l^2); a tall source of
// row blocks takes 1 + q reads. power_iters = nothing iterates until no leading singular value grows by more than
// 2 %. krylov with q given: the space of all iterates, the same passes; otherwise until the residuals of all
// triplets are below 1e-10 (float64) of the largest singular value. single_pass and nystrom: one read.
//
// Sources: Halko, Martinsson, Tropp, SIAM Review 53 (2011), algorithms 4.4 and 5.1; Musco and Musco, NeurIPS 2015,
// and Baglama and Reichel, BIT 46 (2006), for the Krylov space and its restarts; Tropp, Yurtsever, Udell, Cevher,
// SISC 41 (2019), and Nakatsukasa, arXiv:2009.11392, for the single-pass methods.
RandomizedSvd randomized_svd(const Operator& A, const SvdOptions& options);

// The same for every matrix of A (b x m x n), with the same draws. Small matrices are iterated together, by batched
// products, some to a thread; large ones one after the other. `centered`: of each matrix minus the mean of its rows.
BatchedSvd randomized_svd(const at::Tensor& A, const SvdOptions& options, bool centered = false);

struct AdaptiveSvdOptions {
  double tol;
  std::optional<int64_t> most_rank = std::nullopt;  // nothing: min(m, n)
  int64_t oversample = 10;
  std::optional<int64_t> power_iters = std::nullopt;  // a block; nothing: 2
  int64_t seed = 0;
};

// The smallest rank, within the oversampling, with ‖A - U diag(S) Vh‖_F <= tol ‖A‖_F: blocks of a QB factorization
// until the projected norm meets the tolerance, or, where that cancels (tol below some sqrt(u)) or ‖A‖_F is not
// known, until a fresh random probe of the residual does. Where the tolerance asks for a width near min(m, n), one
// dense SVD. 2 + 2 q passes a block, the width of which grows with what has been found.
//
// Source: Yu, Gu, Li, "Efficient randomized algorithms for the fixed-precision low-rank matrix approximation",
// SIMAX 39 (2018).
RandomizedSvd adaptive_svd(const Operator& A, const AdaptiveSvdOptions& options);

}  // namespace fastlr
