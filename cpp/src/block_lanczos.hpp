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

  // From the span of `start`.
  BlockLanczos(Product product, const at::Tensor& start);

  int64_t width() const { return T_.size(0); }
  int64_t block() const { return block_; }
  const at::Tensor& basis() const { return V_; }
  RitzPairs ritz() const;

  void extend();
  // Thick restart: the span shrinks to the leading `kept` Ritz vectors, and is extended.
  void restart(const RitzPairs& ritz, int64_t kept);

 private:
  void append(const at::Tensor& Q);

  Product product_;
  int64_t block_;
  at::Tensor V_, T_;
  at::Tensor next_;      // orthonormal, orthogonal to V
  at::Tensor coupling_;  // F = next_ coupling_
  int64_t drawn_ = 0;    // directions where the space was invariant
};

}  // namespace fastlr
