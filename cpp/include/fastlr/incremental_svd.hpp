// Truncated SVDs of matrices that grow, shrink and change: A ≈ left core rightᴴ with orthonormal left and a right that
// is nearly so.
#pragma once

#include <ATen/core/Tensor.h>

#include <limits>
#include <optional>

namespace fastlr {

// What most blocks are, copied in one call: lines that are dense, in the memory of the host, of this type and width, no
// more than `most`, and finite. Nothing for any other block. Lines are the rows of a block for axis 0, its columns for
// axis 1 (conjugated, which only real ones are without a closer look), or the entries of a vector.
std::optional<at::Tensor> copy_of_plain_lines(const at::Tensor& block, int64_t axis, at::ScalarType type, int64_t width,
                                              int64_t most);

// ‖A - left core rightᴴ‖_F is at most settled + running + rounding.
struct ErrorBound {
  double settled = 0.0;   // of steps whose errors may point anywhere
  double running = 0.0;   // of appended rows: orthogonal to each other and to `left`, so that their squares add up
  double rounding = 0.0;  // independent of step to step: squares are added
};

// How much of a decomposition is kept: as few directions as `tol` ‖A‖_F allows of them, but no more than `most`;
// rounding noise is never kept.
struct Truncation {
  int64_t most = std::numeric_limits<int64_t>::max();
  double tol = 0.0;
};

struct AppendedRows {
  // left becomes [left 0; 0 I] rotation: (l + c) x k, in double precision. It is not formed, so that rows appended
  // before cost nothing.
  at::Tensor rotation;
  at::Tensor core;   // k x k, in double precision
  at::Tensor right;  // n x k, orthonormal to 1e-3 or better, by columns in memory
  ErrorBound error;
};

// [A; rows] from A ≈ left core rightᴴ, core l x l in double precision, and lines = [rightᴴ; rows], rows c x n. The
// singular vectors of the (l + c) x n matrix M = [core rightᴴ; rows] are eigenvectors of M Mᴴ where that shows both
// what is kept and what is dropped, which takes 2 n (l + c)(2 l + c) flops and O((l + c)³). Elsewhere rows are split
// into their parts along and across `right`.
//
// Sources: Brand, "Fast low-rank modifications of the thin singular value decomposition", Linear Algebra Appl. 415
// (2006); Zha and Simon, "On updating problems in latent semantic indexing", SISC 21 (1999).
AppendedRows append_rows(const at::Tensor& core, const at::Tensor& lines, const Truncation& truncation,
                         ErrorBound error);

// The factor that blocks and rotations X0, T1, X1, T2, X2, ... make up: X0, T1 from the right, X1 below, T2 from the
// right, and so on. O(m l²).
at::Tensor compose(at::TensorList chain);

struct CompressedSvd {
  at::Tensor U, S, Vh;  // S in double precision
  ErrorBound error;     // that of left core rightᴴ and what was dropped here
  double dropped;       // the largest singular value that was dropped
};

// The truncated SVD of left core rightᴴ, whose factors need not be orthonormal, but have columns of length one or
// less. At least `least` triplets, of singular value zero beyond the rank. O((m + n) l²).
CompressedSvd compress(const at::Tensor& left, const at::Tensor& core, const at::Tensor& right, int64_t least,
                       const Truncation& truncation, ErrorBound error);

}  // namespace fastlr
