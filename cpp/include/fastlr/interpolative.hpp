// Interpolative decomposition by strong rank-revealing pivoting.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include <fastlr/error_estimate.hpp>
#include <fastlr/linear_operator.hpp>

namespace fastlr {

struct InterpolativeOptions {
  std::optional<int64_t> rank;  // with `tol` the most, min(m, n) by default
  std::optional<double> tol;    // as few columns as leave ‖A - A[:, indices] * coefficients‖_F <= tol ‖A‖_F
  int64_t seed = 0;
  bool of_rows = false;  // A ≈ coefficients * A[indices] instead
};

struct Interpolative {
  at::Tensor indices;       // distinct column numbers, int64
  at::Tensor coefficients;  // rank x n, identity at `indices`, every entry at most 2 in magnitude; of rows m x rank
  ErrorEstimate error;      // of A - A[:, indices] * coefficients
  int64_t passes;
  bool converged;  // whether `tol` is met
};

// A (m x n) ≈ A[:, indices] * coefficients. The columns are those that QR with strong pivoting chooses from the
// projection of A on the range of a sketch, or from a triangle where that would be no smaller; the coefficients are
// those of least squares. Exact to rounding where rank = min(m, n).
//
// Sources: Gu, Eisenstat, "Efficient algorithms for computing a strong rank-revealing QR factorization", SISC 17
// (1996); Voronin, Martinsson, "Efficient algorithms for CUR and interpolative matrix decompositions", Adv. Comput.
// Math. 43 (2017), for the choice from a projection; Goreinov, Oseledets, Savostyanov, Tyrtyshnikov, Zamarashkin, "How
// to find a good submatrix" (2010) for the swaps on an exact-rank factor.
Interpolative interpolative(const Operator& A, const InterpolativeOptions& options);

// Of every matrix of A (b x m x n), some to a thread.
std::vector<Interpolative> interpolative_batch(const at::Tensor& A, const InterpolativeOptions& options);

}  // namespace fastlr
