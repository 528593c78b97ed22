// A low-rank matrix from some of its entries, by least squares for the rows of one factor after the other.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

namespace fastlr {

// Entries of a matrix by rows: row i has [offsets[i], offsets[i + 1]) of `columns` (both int64), `values` and
// `weights` (nothing: all 1). An entry that comes twice is observed twice.
struct ObservedRows {
  at::Tensor offsets, columns, values;
  std::optional<at::Tensor> weights;
  int64_t width;

  int64_t count() const { return offsets.size(0) - 1; }
};

// From entries in any order, in O(entries + count); those of a row keep their order.
ObservedRows observed_rows(const at::Tensor& rows, const at::Tensor& columns, const at::Tensor& values,
                           const std::optional<at::Tensor>& weights, int64_t count, int64_t width);

// Of the transpose.
ObservedRows transposed(const ObservedRows& observed);

// Entries of U Vᵀ where others are observed. 2 nnz k flops.
at::Tensor entry_products(const ObservedRows& observed, const at::Tensor& U, const at::Tensor& V);

enum class RowSolver {
  kCholesky,   // nnz k^2 + count k^3 / 3 flops
  kGradients,  // 4 nnz k flops a step of conjugate gradients
};

struct RowOptions {
  RowSolver solver = RowSolver::kCholesky;
  // Of conjugate gradients: the residual of the normal equations beside what it is at the start.
  double tolerance = 0;
  int64_t steps = 0;
};

// The ridge of unknown j of row i is rows[i] unknowns[j]; a bias is the last unknown.
struct Ridge {
  at::Tensor rows, unknowns;
};

// `ridge` for the unknowns of a row of U (rank of them) and `bias_ridge` for a bias; where it is weighted, times the
// weight of all entries of the row.
Ridge ridge_of(const ObservedRows& observed, int64_t rank, double ridge, std::optional<double> bias_ridge,
               bool weighted);

// The rows of a factor, and what is added to all entries of a row (count), where it is wanted.
struct RowFactor {
  at::Tensor U;
  std::optional<at::Tensor> bias;
};

// For V (width x k) and biases of the columns: row i minimises
//   sum_e weight_e (value_e - column bias - bias_i - u_i . v_e)^2 + the ridge,
// and where that leaves directions open it is the shortest one. There is a bias where V has one. `start` is where
// conjugate gradients begin.
//
// Source: Zhou, Wilkinson, Schreiber, Pan, "Large-scale parallel collaborative filtering for the Netflix prize" (2008).
RowFactor solve_rows(const ObservedRows& observed, const RowFactor& V, const Ridge& ridge, const RowOptions& options,
                     const RowFactor* start = nullptr);

// The weighted sum of squares of what U and V leave of the entries, and the weight of these.
struct Squares {
  double sum, weight;

  double root_mean() const;
};
Squares squares_left(const ObservedRows& observed, const RowFactor& U, const RowFactor& V);

struct Sweep {
  double objective;   // weighted squares and ridge
  double training;    // root of the weighted mean of squares
  double validation;  // NaN without any
};

// mean + row bias + column bias + U Vᵀ
struct Completion {
  RowFactor rows, columns;
  double mean = 0;
  double ridge = 0, bias_ridge = 0;  // with which the rows were found for the columns, last
  std::vector<Sweep> sweeps;
  bool converged = false;
};

struct AlsOptions {
  int64_t rank;
  int64_t most_sweeps;
  std::optional<double> tol;  // nothing: all sweeps are made
  int64_t seed = 0;
  double ridge = 0;
  bool weighted = false;
  std::optional<double> bias_ridge = std::nullopt;  // nothing: no biases
  RowSolver solver = RowSolver::kCholesky;
  std::optional<at::Tensor> start = std::nullopt;  // U, in the place of random rows
};

// Alternating least squares from random rows: V for U, then U for V, until a sweep lowers the objective by no more
// than `tol` of it. `validation` is measured only.
Completion als(const ObservedRows& observed, const std::optional<ObservedRows>& validation, const AlsOptions& options);

struct AltminOptions {
  int64_t rank;
  int64_t most_sweeps;
  double tol;  // of what is left beside the entries
  int64_t seed = 0;
  RowSolver solver = RowSolver::kCholesky;
};

// Alternating minimization from the leading singular vectors of the observed entries, until what is left of these is
// `tol` of them, or a sweep changes it by nothing that would show. See docs/theory/completion.md.
//
// Source: Gu, Song, Yin, Zhang, "Low rank matrix completion via robust alternating minimization in nearly linear time"
// (2023), for the spectral start and approximate solutions of growing accuracy.
Completion altmin(const ObservedRows& observed, const std::optional<ObservedRows>& validation,
                  const AltminOptions& options);

}  // namespace fastlr
