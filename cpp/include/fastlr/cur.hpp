// CUR decompositions: a matrix from some of its own columns and rows.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>

#include <fastlr/error_estimate.hpp>
#include <fastlr/linear_operator.hpp>

namespace fastlr {

enum class CurMiddle {
  projection,   // U = C^+ A R^+
  intersection  // U = A[rows, columns]^+, with more rows than columns
};
CurMiddle parse_cur_middle(std::string_view name);

struct CurOptions {
  int64_t rank;                             // columns of C
  std::optional<at::Tensor> columns, rows;  // `rank` distinct numbers each; nothing: by strong pivots
  CurMiddle middle = CurMiddle::projection;
  int64_t seed = 0;
};

// A ≈ C U R with C = A[:, columns] (m x k) and R = A[rows] (k' x n), k' = k, or min(2 k, m) for the intersection.
struct Cur {
  at::Tensor C, U, R, rows, columns;
  int64_t kept;  // the rank of U: directions of C and R that rounding would blow up are left out
  int64_t passes;
  ErrorEstimate error;  // of C U R as it is, rounded factors and rounded products, from fresh probes
};

// Columns by the strong pivots of a sketch Omegaᴴ A with rank + 10 rows, rows by exchanges in an orthonormal basis of
// C. Two passes over A, 4 m n k flops, and O((m + n) k^2); what is not in memory is read twice more, for C and for R.
//
// Sources: Voronin, Martinsson, "Efficient algorithms for CUR and interpolative matrix decompositions", Adv. Comput.
// Math. 43 (2017); Dong, Martinsson, "Simpler is better: a comparative study of randomized pivoting algorithms for CUR
// and interpolative decompositions", Adv. Comput. Math. 49 (2023); Gu, Eisenstat, SISC 17 (1996), for the pivots;
// Goreinov, Tyrtyshnikov, Zamarashkin, "A theory of pseudoskeleton approximations", Linear Algebra Appl. 261 (1997);
// Park, Nakatsukasa, "Accuracy and stability of CUR decompositions with oversampling", SIMAX 46 (2025), for the rows
// beyond the columns.
Cur cur(const Operator& A, const CurOptions& options);

}  // namespace fastlr
