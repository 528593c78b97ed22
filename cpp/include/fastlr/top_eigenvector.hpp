// The leading eigenvector of AᴴA from one read of the rows of A.
#pragma once

#include <ATen/core/Tensor.h>

#include <fastlr/linear_operator.hpp>

#include <string_view>

namespace fastlr {

struct TopEigenvector {
  at::Tensor vector;      // of length n, norm 1, of the type of A; the largest entry real and positive
  double singular_value;  // estimate of σ_1(A), the square of which may be out of range
  double std_error;       // of its square ρ, relative, from the rows that it was seen on; NaN where there are none
  double residual;        // ‖M v - ρ v‖ / ρ, M v and ρ as seen on those rows; NaN where there are none
  double growth, rate;    // of Oja's vector, logarithm, and its rate times ‖A‖_F^2; NaN elsewhere
  int64_t rows, blocks;   // read; products that the vector went through
  int64_t heavy;          // rows that have to be kept, and are
  bool complete;          // no row that has to be kept is not; or, for Oja's method, the growth suffices
};

// Rows in random order: a power iteration over blocks of rows, each with the mass of all before it. Rows of squared
// norm ‖A‖_F^2 / (n log2 n) and more are kept, the `most_heavy` largest ones, and take part in every iteration. 4 n
// flops a row, memory of n (most_heavy + some) numbers beside the block that is read.
//
// Source: Kacham, Woodruff, "Approximating the top eigenvector in random order streams", NeurIPS 2024.
TopEigenvector random_order_eigenvector(const RowBlocks& rows, int64_t most_heavy, int64_t seed);

// Rows in any order: v <- v + η aᴴ (a v) for a geometric sequence of rates η at once, which follows ‖A‖_F as it grows;
// of those whose vectors have grown enough the one with the smallest rate. O(n log n) flops a row and numbers of
// memory.
//
// Source: Price, Xun, "Spectral guarantees for adversarial streaming PCA", FOCS 2024; Oja (1982).
TopEigenvector oja_eigenvector(const RowBlocks& rows, int64_t seed);

}  // namespace fastlr
