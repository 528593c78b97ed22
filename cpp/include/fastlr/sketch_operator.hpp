// Random matrices S of few rows that keep the geometry of what they are applied to. Never stored: a seed.
#pragma once

#include <ATen/core/Tensor.h>

#include <string_view>

namespace fastlr {

enum class SketchKind { gaussian, rademacher, sparse_sign, srht, uniform };

SketchKind parse_sketch_kind(std::string_view name);

// S is rows x columns and real, E[SᵀS] = I:
//   gaussian      independent entries N(0, 1/rows);
//   rademacher    independent entries ±1/√rows;
//   sparse_sign   `nonzeros` entries ±1/√nonzeros a column, one in each of as many parts of the rows; with one nonzero
//                 a column that is a CountSketch;
//   srht          distinct random rows of the Hadamard matrix of the next power of two, its columns with random signs,
//                 entries ±1/√rows;
//   uniform       rows of √(columns/rows)·I, drawn with replacement.
struct SketchOperator {
  SketchKind kind;
  int64_t rows, columns, seed, nonzeros;

  // Raises ValueError where the sizes do not go together.
  void check(const char* caller) const;

  // S[:, first : first + m] A for m x n A: float32, float64, complex64 or complex128; dense, or sparse in CSR layout.
  // The products of blocks of rows add up to that of the whole.
  at::Tensor apply(const at::Tensor& A, int64_t first = 0) const;

  // S[:, first : first + count]ᵀ Y for dense rows x n Y.
  at::Tensor apply_adjoint(const at::Tensor& Y, int64_t first, int64_t count) const;
};

}  // namespace fastlr
