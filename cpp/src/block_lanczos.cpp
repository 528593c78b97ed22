#include "block_lanczos.hpp"

#include <ATen/ATen.h>

#include <utility>

#include <fastlr/orthonormalize.hpp>

#include "orthonormal_beside.hpp"

namespace fastlr {
BlockLanczos::BlockLanczos(Product product, const at::Tensor& start)
    : product_(std::move(product)),
      block_(start.size(1)),
      V_(at::empty({start.size(0), 0}, start.options())),
      T_(at::empty({0, 0}, start.options())),
      coupling_(at::empty({0, 0}, start.options())) {
  append(orthonormalize(start));
}

void BlockLanczos::append(const at::Tensor& Q) {
  const auto product = product_(Q);
  const auto beside = at::mm(V_.mH(), product), within = at::mm(Q.mH(), product);
  T_ = at::cat({at::cat({T_, beside}, 1), at::cat({beside.mH(), within}, 1)}, 0);
  V_ = at::cat({V_, Q}, 1);
  next_ = orthonormal_beside(V_, product, drawn_);
  // The older columns of F are in the span of Q, thus in that of V now.
  coupling_ = at::cat({at::zeros({block_, width() - block_}, Q.options()), at::mm(next_.mH(), product)}, 1);
}

void BlockLanczos::extend() { append(std::exchange(next_, {})); }

RitzPairs BlockLanczos::ritz() const {
  const auto [values, vectors] = at::linalg_eigh((T_ + T_.mH()) / 2);
  const auto order = values.abs().argsort(/*dim=*/0, /*descending=*/true);
  const auto X = vectors.index_select(1, order);
  return {values.index_select(0, order), X, at::linalg_vector_norm(at::mm(coupling_, X), 2, 0)};
}

void BlockLanczos::restart(const RitzPairs& ritz, int64_t kept) {
  const auto X = ritz.vectors.narrow(1, 0, kept);
  V_ = polish(at::mm(V_, X));
  T_ = at::diag(ritz.values.narrow(0, 0, kept)).to(V_.scalar_type());
  extend();
}

}  // namespace fastlr
