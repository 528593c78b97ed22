// Block Lanczos with full reorthogonalization.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>

namespace fastlr {

struct RitzPairs {
  at::Tensor values;     // of T, real, by descending magnitude
  at::Tensor vectors;    // of T, in the same order
  at::Tensor residuals;  // ‖M V x - θ V x‖ of every pair
};

// An orthonormal basis V of the Krylov space of a Hermitian M from a block of vectors, and T = Vᴴ M V. One product
// with M a step; memory for V alone, since M V = V T + F, where the columns of F lie in the span of `next_`, the block
// to come.
class BlockLanczos {
 public:
  using Product = std::function<at::Tensor(const at::Tensor&)>;

  // From the span of `start`. V has room for `most_width` columns.
  BlockLanczos(Product product, const at::Tensor& start, int64_t most_width);

  int64_t width() const { return T_.size(0); }
  int64_t block() const { return block_; }
  at::Tensor basis() const;
  RitzPairs ritz() const;

  bool full() const { return width() + block_ > storage_.size(0); }
  void extend(int64_t blocks = 1);
  // Thick restart: the span shrinks to the leading `kept` Ritz vectors, and is extended.
  void restart(const RitzPairs& ritz, int64_t kept);

 private:
  void append(const at::Tensor& Q);

  Product product_;
  int64_t block_;
  at::Tensor storage_;  // V, by columns
  at::Tensor T_;
  at::Tensor next_;      // orthonormal, orthogonal to V
  at::Tensor coupling_;  // next_ᴴ F of the last columns of V; F is zero, to rounding, for the others
  int64_t drawn_ = 0;    // directions where the space was invariant
};

// Blocks after which a Krylov iteration to a target gives up.
constexpr int64_t kMostBlocks = 300;

// Residuals below this fraction of the largest value end it: 1e-10, where the type can resolve that for blocks of
// `width` columns.
double residual_target(const at::Tensor& like, int64_t width);

struct LanczosRun {
  RitzPairs ritz;
  int64_t blocks;  // beyond the first
  bool settled;
};

// Extends, and restarts with as many Ritz vectors as the first block has columns, until `settled` or kMostBlocks.
LanczosRun run(BlockLanczos& space, const std::function<bool(const RitzPairs&)>& settled);

}  // namespace fastlr
