// Krylov methods for well-conditioned systems with several right-hand sides, each with step sizes of its own.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>

#include <fastlr/linear_operator.hpp>

namespace fastlr {

struct KrylovRun {
  at::Tensor solution;
  int64_t iterations;
};

// Whether what is left is small enough, for residuals of all right-hand sides.
using Enough = std::function<bool(const at::Tensor& residual)>;

// Z with QᴴQ Z = C, by conjugate gradients from zero; `enough` sees C - QᴴQ Z.
KrylovRun conjugate_gradients(const LinearOperator& Q, const at::Tensor& C, int64_t max_iters, const Enough& enough);

// Z that minimises ‖Q Z - B‖, the shortest one, by LSQR (C. C. Paige, M. A. Saunders, TOMS 8 (1982)); `enough` sees
// the residual Qᴴ(B - Q Z) of the normal equations, or with `consistent` B - Q Z.
KrylovRun lsqr(const LinearOperator& Q, const at::Tensor& B, bool consistent, int64_t max_iters, const Enough& enough);

}  // namespace fastlr
