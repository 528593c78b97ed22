// Block Golub-Kahan bidiagonalization with full reorthogonalization and thick restarts.
#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include <fastlr/orthonormalize.hpp>

#include "orthonormal_beside.hpp"
#include "svd_parts.hpp"

namespace fastlr {
namespace {

// Without a given depth: residuals below this fraction of the largest singular value end the iteration, where
// the type can resolve them.
constexpr double kResidual = 1e-10;
// Blocks after which it gives up.
constexpr int64_t kMostBlocks = 300;

// Orthonormal U (m x p) and V (n x p) with Uᴴ A = T Vᴴ: the Rayleigh quotient of A on both spaces. All of Aᴴ U lies
// in span(V); A V = U T + F, where F is nonzero only for the last block of V.
struct Bidiagonalization {
  at::Tensor U, V, T;
  int64_t drawn = 0;  // columns of random completions

  int64_t width() const { return T.size(0); }
};

Bidiagonalization start(const LinearOperator& A, const at::Tensor& range) {
  const auto U = orthonormalize(range);
  const auto rows = A.rmatmat(U);
  const auto V = orthonormalize(rows);
  return {U, V, at::mm(rows.mH(), V), 0};
}

// What the last block of V does beyond span(U): A V_last = U (Uᴴ A V_last) + next coupling.
struct Extension {
  at::Tensor next;      // orthonormal, orthogonal to U
  at::Tensor coupling;  // nextᴴ A V_last
};

Extension extend_left(const LinearOperator& A, Bidiagonalization& space, int64_t block) {
  const auto product = A.matmat(space.V.narrow(1, space.width() - block, block));
  const auto next = orthonormal_beside(space.U, product, space.drawn);
  return {next, at::mm(next.mH(), product)};
}

Bidiagonalization extend_right(const LinearOperator& A, Bidiagonalization space, const at::Tensor& next) {
  const auto rows = A.rmatmat(next);
  const auto V = at::cat({space.V, orthonormal_beside(space.V, rows, space.drawn)}, 1);
  const auto below = at::mm(rows.mH(), V);
  const auto above = at::zeros({space.width(), next.size(1)}, below.options());
  return {at::cat({space.U, next}, 1), V, at::cat({at::cat({space.T, above}, 1), below}, 0), space.drawn};
}

struct Ritz {
  at::Tensor left, S, right;  // T = left diag(S) rightᴴ
};

Ritz ritz(const Bidiagonalization& space) {
  auto [left, S, right] = at::linalg_svd(space.T, /*full_matrices=*/false);
  return {left, S, materialized_adjoint(right)};
}

// ‖A v_i - s_i u_i‖ for the leading triplets; ‖Aᴴ u_i - s_i v_i‖ is rounding.
at::Tensor residuals(const Extension& extension, const Ritz& ritz, int64_t rank) {
  const int64_t block = extension.coupling.size(1), width = ritz.right.size(0);
  const auto last = ritz.right.narrow(0, width - block, block).narrow(1, 0, rank);
  return at::linalg_vector_norm(at::mm(extension.coupling, last), 2, 0);
}

// Thick restart: the space shrinks to its leading Ritz vectors; F keeps its range.
Bidiagonalization restarted(const Bidiagonalization& space, const Ritz& ritz, int64_t kept) {
  return {at::mm(space.U, ritz.left.narrow(1, 0, kept)), at::mm(space.V, ritz.right.narrow(1, 0, kept)),
          at::diag(ritz.S.narrow(0, 0, kept)).to(space.T.scalar_type()), space.drawn};
}

}  // namespace

RandomizedSvd krylov_svd(const Operator& A, const SvdOptions& options, int64_t width) {
  // As wide as the sketch: a narrower block would cost no less to multiply by, and miss copies of a value that is
  // repeated more often than it has columns.
  const bool to_target = !options.power_iters;
  const int64_t block = width, most_width = 4 * width;
  if (most_width + block > A->columns()) return dense_svd(A, options.rank);

  const auto sketch = sketch_range(A, block, options.seed);
  const auto& op = *sketch.A;
  const double u = unit_roundoff(sketch.range);
  const double target = std::max(kResidual, 40 * std::sqrt(static_cast<double>(width)) * u);
  const int64_t most_blocks = to_target ? kMostBlocks : *options.power_iters;

  auto space = start(op, sketch.range);
  auto values = ritz(space);
  int64_t blocks = 0;
  bool converged = !to_target;
  while (blocks < most_blocks) {
    const auto extension = extend_left(op, space, block);
    if (to_target && space.width() >= options.rank) {
      const auto worst = residuals(extension, values, options.rank).max().item<double>();
      converged = worst <= target * values.S[0].item<double>();
      if (converged) break;
    }
    if (space.width() + block > most_width) space = restarted(space, values, width);
    space = extend_right(op, std::move(space), extension.next);
    values = ritz(space);
    ++blocks;
  }
  const Triplets factors{
      orthonormalize(at::mm(space.U, values.left.narrow(1, 0, options.rank))),
      without_noise(values.S, u).narrow(0, 0, options.rank),
      materialized_adjoint(orthonormalize(at::mm(space.V, values.right.narrow(1, 0, options.rank)))),
  };
  const auto probed = residual_probe(sketch.probe, factors, options.seed, block);
  auto result = unscaled(factors, estimate_error(probed), sketch.exponent, SvdMethod::krylov);
  result.power_iters = blocks;
  result.converged = converged;
  return result;
}

}  // namespace fastlr
