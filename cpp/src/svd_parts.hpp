// Steps that the truncated SVDs share. All operators here are tall: m >= n.
#pragma once

#include <optional>

#include <fastlr/randomized_svd.hpp>

#include "checks.hpp"

namespace fastlr {

// Where the rounding noise of computed singular values begins: a few sqrt(k) u of the largest, which is the first.
at::Tensor noise_level(const at::Tensor& S, double u);

// Singular values that are rounding noise are zero: their vectors are then any orthonormal completion.
at::Tensor without_noise(const at::Tensor& S, double u);

// What rounding may add to ‖A - U diag(S) Vh‖_F: some sqrt(k) u ‖S‖.
double svd_rounding(const at::Tensor& S, double u);

// A with its products in range of the type, a random sketch and, independent of it, the probe of the error estimate.
struct Sketch {
  Operator A;  // times 2^exponent
  int exponent;
  at::Tensor range;  // A * Omega
  at::Tensor probe;  // A * Omega', Omega' the kProbes columns that follow those of Omega
};
Sketch sketch_range(const Operator& A, int64_t width, int64_t seed);

// U diag(S) Vh with orthonormal factors, of a matrix Q core Pᴴ, Q and P orthonormal.
struct Triplets {
  at::Tensor U, S, Vh;
};
Triplets triplets_of_core(const at::Tensor& Q, const at::Tensor& core, const at::Tensor& P, int64_t rank);

// The leading triplets of Q rowsᴴ, Q and not `rows` orthonormal.
Triplets triplets_of_rows(const at::Tensor& Q, const at::Tensor& rows, int64_t rank);

// E * Omega' for E = A - U diag(S) Vh from A * Omega', the columns of Omega' beginning at column0.
at::Tensor residual_probe(const at::Tensor& probe, const Triplets& factors, int64_t seed, int64_t column0);

// A dense SVD, truncated to `rank`.
RandomizedSvd dense_svd(const Operator& A, int64_t rank);

// The phase of the largest entry of each column.
at::Tensor column_phases(const at::Tensor& U);

// Makes the largest entry of each column of U real and positive.
void fix_signs(at::Tensor& U, at::Tensor& Vh);

// Makes `one` the i-th of a batch.
void store(BatchedSvd& batch, int64_t i, const RandomizedSvd& one);

// A result for A, of the triplets and the error of A * 2^exponent.
RandomizedSvd unscaled(Triplets factors, ErrorEstimate error, int exponent, SvdMethod method);

// The same for one matrix with its error from `probe`, the squares of which are in range; the method is that asked for.
RandomizedSvd probed_result(const Triplets& factors, const at::Tensor& probe, int exponent, int64_t power_iters,
                            bool converged, const SvdOptions& options, int64_t width);

// ---- one file each ----
RandomizedSvd subspace_svd(const Operator& A, const SvdOptions& options, int64_t width);
BatchedSvd subspace_svds(const at::Tensor& A, const SvdOptions& options, int64_t width);  // signs are not fixed yet
RandomizedSvd krylov_svd(const Operator& A, const SvdOptions& options, int64_t width);
RandomizedSvd blocked_qb_svd(const Operator& A, const AdaptiveSvdOptions& options);
RandomizedSvd one_read_svd(const Operator& A, const SvdOptions& options);  // A of any shape

}  // namespace fastlr
