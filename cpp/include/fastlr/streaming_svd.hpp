// Truncated SVDs of matrices whose rows arrive in blocks, from a state whose size does not depend on their number. All
// sums are in double precision. Blocks are dense or CSR; `weights` (one for each row of a block, real) multiply its
// rows, and row0 is the number of the block's first row, for messages.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include <fastlr/error_estimate.hpp>

namespace fastlr {

struct RowBlock {
  at::Tensor rows;
  std::optional<at::Tensor> weights;
  int64_t row0;
};

// The leading singular values and right vectors of A.
struct StreamedSvd {
  at::Tensor S, Vh;
  ErrorEstimate error;  // of A - A VhᴴVh
  double bound;         // of ‖AᴴA - BᴴB‖_2, B what the state stands for: the squares of S are as near to those of A
};

// ---- one pass: with Q an orthonormal basis of Y = A Omega, Qᴴ A from YᴴA and YᴴY ----

// Of A * 2^exponent.
struct OnePassSketch {
  at::Tensor co;    // YᴴA, width x n, Omega the Gaussian matrix of the seed; the upper triangle of AᴴA where width = n
  at::Tensor gram;  // of [Y Y'], Y' of the kProbes columns of the Gaussian matrix that follow; empty where width = n
  int64_t exponent = 0;
};

// Of no rows yet.
OnePassSketch empty_sketch(int64_t columns, int64_t width, const at::TensorOptions& options);

// That of the block. 4 n width flops a row, n^2 where width = n.
OnePassSketch one_pass_sketch(const RowBlock& block, int64_t width, int64_t seed, const char* caller);

// That of the rows of both, those of the first times `weight`; into the memory of the first.
OnePassSketch together(OnePassSketch first, double weight, const OnePassSketch& second);

// `seen`: how many rows; `type`: in which they were multiplied.
StreamedSvd one_pass_svd(const OnePassSketch& sketch, int64_t rank, int64_t seed, int64_t seen, at::ScalarType type);

// ---- frequent directions: deterministic ----

// Of A * 2^exponent.
struct FrequentDirections {
  at::Tensor rows;     // 2 l x n: 0 <= AᴴA - rowsᴴ rows <= shrunk
  int64_t filled = 0;  // how many of them are in use
  double shrunk = 0.0;
  double energy = 0.0;  // ‖A‖_F^2
  int64_t exponent = 0;
};

// Of no rows yet.
FrequentDirections empty_directions(int64_t columns, int64_t width, const at::TensorOptions& options);

// The rows of the block below, everything before times `weight`. Some 12 n l flops a row. The state is left as it is
// unless the block fits into rows that are not in use.
FrequentDirections appended(FrequentDirections state, double weight, const RowBlock& block, const char* caller);

// That of the rows of both, those of the first times `weight`.
FrequentDirections together(const FrequentDirections& first, double weight, const FrequentDirections& second);

StreamedSvd frequent_directions_svd(const FrequentDirections& state, int64_t rank, at::ScalarType type);

}  // namespace fastlr
