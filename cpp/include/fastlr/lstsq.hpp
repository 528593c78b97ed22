// Linear least squares by random sketches, and by QR.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>

#include <fastlr/linear_operator.hpp>
#include <fastlr/sketch_operator.hpp>

namespace fastlr {

enum class LstsqMethod { automatic, sketch_and_solve, precondition, iterative, refined, direct, lsqr };

LstsqMethod parse_lstsq_method(std::string_view name);

struct LstsqOptions {
  LstsqMethod method;
  SketchKind sketch;
  std::optional<int64_t> sketch_rows;
  int64_t nonzeros;  // of a column of a sparse_sign sketch
  double damp;
  std::optional<double> tol;  // on the backward error
  std::optional<int64_t> max_iters;
  int64_t seed;
};

struct Lstsq {
  at::Tensor x, residual;     // B - A x
  at::Tensor backward_error;  // of every column: relative, in double precision
  double condition = 1.0;     // as the sketch sees it, of A with columns (rows, if it has more columns) of unit length
  int64_t rank = 0, sketch_rows = 0, iterations = 0, passes = 0;
  LstsqMethod method = LstsqMethod::direct;  // that ran last
  bool recovered = false;                    // another one had run before
  bool converged = true;
};

// The x of least ‖x‖ among those that minimise ‖A x - B‖² + damp² ‖x‖², for every column of B.
//
// Sources: V. Rokhlin, M. Tygert, "A fast randomized algorithm for overdetermined linear least-squares regression",
// PNAS 105 (2008); H. Avron, P. Maymounkov, S. Toledo, "Blendenpik: supercharging LAPACK's least-squares solver", SISC
// 32 (2010); X. Meng, M. A. Saunders, M. W. Mahoney, "LSRN: a parallel iterative solver for strongly over- or
// underdetermined systems", SISC 36 (2014); E. N. Epperly, "Fast and forward stable randomized algorithms for linear
// least-squares problems", SIMAX 45 (2024); E. N. Epperly, M. Meier, Y. Nakatsukasa, "Fast randomized least-squares
// solvers can be just as accurate and stable as classical direct solvers", CPAM (2025).
Lstsq lstsq(const Operator& A, const at::Tensor& B, const LstsqOptions& options);

}  // namespace fastlr
