// A QB factorization that grows by blocks.
#pragma once

#include <ATen/ATen.h>

#include <fastlr/linear_operator.hpp>

namespace fastlr {

// Columns of the first block; later ones are half as wide as what is there.
constexpr int64_t kFirstBlock = 16;

// A ≈ Q rowsᴴ with orthonormal Q and rows = Aᴴ Q.
struct QB {
  at::Tensor Q, rows;
  double captured = 0.0;  // ‖Qᴴ A‖_F
  int64_t completed = 0;  // directions of Q that no block had

  int64_t width() const { return Q.size(1); }
  // (I - Q Qᴴ) Y for Y = A X
  at::Tensor deflated(const at::Tensor& Y, const at::Tensor& X) const { return Y - at::mm(Q, at::mm(rows.mH(), X)); }
};

// `block` more columns from a sketch of what is left of A, draws [width, width + block) of the seed, and power_iters
// subspace iterations of them: 2 + 2 power_iters passes.
void extend(const LinearOperator& A, QB& qb, int64_t block, int64_t power_iters, int64_t seed);

}  // namespace fastlr
