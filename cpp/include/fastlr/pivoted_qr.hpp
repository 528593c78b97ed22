// QR with column pivoting.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

namespace fastlr {

struct PivotedQrOptions {
  std::optional<int64_t> rank = std::nullopt;   // at most so many columns of Q; all of them by default
  double tol = 0.0;                             // as few columns as leave ‖A[:, pivots] - Q R‖_F <= tol ‖A‖_F
  std::optional<double> strong = std::nullopt;  // Gu and Eisenstat's f
  int64_t seed = 0;
};

enum class PivotedQrMethod : int64_t { blocked, preconditioned };

// A[:, pivots] ≈ Q R: Q (m x k) with orthonormal columns, R (k x n) upper triangular with a diagonal that is real and
// not negative.
struct PivotedQr {
  at::Tensor Q, R, pivots;
  double error;  // ‖A[:, pivots] - Q R‖_F but for rounding
  int64_t exchanges;
  bool converged;  // whether `tol` is met
  PivotedQrMethod method;
};

// Blocks of columns are chosen by the pivots of a sketch of what is left, which is carried along: A is worked on by
// products alone. A long matrix is preconditioned by the pivoted QR of one sketch, and orthonormalized by Cholesky QR.
//
// Sources: Duersch, Gu, "Randomized QR with column pivoting", SISC 39 (2017); Martinsson, Quintana-Ortí, Heavner, van
// de Geijn, "Householder QR factorization with randomization for column pivoting", SISC 39 (2017); Melnichenko,
// Balabanov, Murray, Demmel, Mahoney, Luszczek, "CholeskyQR with randomization and pivoting for tall matrices" (2024);
// Gu, Eisenstat, "Efficient algorithms for computing a strong rank-revealing QR factorization", SISC 17 (1996).
PivotedQr pivoted_qr(const at::Tensor& A, const PivotedQrOptions& options);

// Of every matrix of A (b x m x n), some to a thread.
std::vector<PivotedQr> pivoted_qr_batch(const at::Tensor& A, const PivotedQrOptions& options);

}  // namespace fastlr
