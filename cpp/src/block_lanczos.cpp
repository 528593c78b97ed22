#include "block_lanczos.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include <fastlr/orthonormalize.hpp>

#include "checks.hpp"
#include "orthonormal_beside.hpp"

namespace fastlr {

BlockLanczos::BlockLanczos(Product product, const at::Tensor& start, int64_t most_width)
    : product_(std::move(product)),
      block_(start.size(1)),
      storage_(at::empty({most_width, start.size(0)}, start.options())),
      T_(at::empty({0, 0}, start.options())),
      coupling_(at::empty({block_, 0}, start.options())) {
  append(orthonormalize(start));
}

at::Tensor BlockLanczos::basis() const { return storage_.narrow(0, 0, width()).t(); }

void BlockLanczos::append(const at::Tensor& Q) {
  const int64_t before = width(), coupled = coupling_.size(1);
  const auto product = product_(Q);
  const auto within = at::mm(Q.mH(), product);
  // M V = V T + F says what V has of M Q: (QᴴM V)ᴴ, the coupling of Q.
  auto beside = at::zeros({before, block_}, Q.options());
  beside.narrow(0, before - coupled, coupled).copy_(coupling_.mH());
  auto remainder = at::addmm(product, Q, within, 1, -1);
  if (coupled > 0) remainder.addmm_(basis().narrow(1, before - coupled, coupled), coupling_.mH(), 1, -1);

  T_ = at::cat({at::cat({T_, beside}, 1), at::cat({beside.mH(), within}, 1)}, 0);
  storage_.narrow(0, before, block_).copy_(Q.t());
  next_ = orthonormal_beside(basis(), remainder, drawn_);
  coupling_ = at::mm(next_.mH(), remainder);
}

void BlockLanczos::extend(int64_t blocks) {
  for (; blocks > 0; --blocks) append(std::exchange(next_, {}));
}

RitzPairs BlockLanczos::ritz() const {
  const auto [values, vectors] = at::linalg_eigh((T_ + T_.mH()) / 2);
  const auto order = values.abs().argsort(/*dim=*/0, /*descending=*/true);
  const auto X = vectors.index_select(1, order);
  const auto last = X.narrow(0, width() - coupling_.size(1), coupling_.size(1));
  return {values.index_select(0, order), X, at::linalg_vector_norm(at::mm(coupling_, last), 2, 0)};
}

void BlockLanczos::restart(const RitzPairs& ritz, int64_t kept) {
  const auto X = ritz.vectors.narrow(1, 0, kept);
  const int64_t coupled = coupling_.size(1);
  coupling_ = at::mm(coupling_, X.narrow(0, width() - coupled, coupled));
  const auto V = polish(at::mm(basis(), X));
  T_ = at::diag(ritz.values.narrow(0, 0, kept)).to(V.scalar_type());
  basis().copy_(V);
  extend();
}

double residual_target(const at::Tensor& like, int64_t width) {
  return std::max(1e-10, 40 * std::sqrt(static_cast<double>(width)) * unit_roundoff(like));
}

LanczosRun run(BlockLanczos& space, const std::function<bool(const RitzPairs&)>& settled) {
  for (int64_t blocks = 0;; ++blocks) {
    auto ritz = space.ritz();
    const bool done = settled(ritz);
    if (done || blocks == kMostBlocks) return {std::move(ritz), blocks, done};
    if (space.full()) {
      space.restart(ritz, space.block());
    } else {
      space.extend();
    }
  }
}

}  // namespace fastlr
