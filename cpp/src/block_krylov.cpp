// Block Krylov spaces with full reorthogonalization and thick restarts.
//
// To ten digits of the larger singular values the space of M = AᴴA on the short side is enough, and cheaper: one basis,
// M read in blocks of rows that serve both factors. AᴴA squares the condition number; singular values too small for
// that are found by Golub-Kahan bidiagonalization, with bases on both sides.
#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include <fastlr/orthonormalize.hpp>
#include <fastlr/random.hpp>

#include "block_lanczos.hpp"
#include "first_product.hpp"
#include "orthonormal_beside.hpp"
#include "svd_parts.hpp"

namespace fastlr {
namespace {

// Widths of the sketch that a basis may have before it is restarted: on the short side alone, and on both.
constexpr int64_t kMostWidths = 6, kMostWidthsBeside = 4;

// ---- on the short side ----

// Nothing where the rounding of AᴴA, some 10 u S[0]^2, is no less than the target for the smallest triplet.
std::optional<RandomizedSvd> svd_on_the_short_side(const Operator& A, const SvdOptions& options, int64_t width) {
  const auto omega = gaussian(A->columns(), width + kProbes, options.seed, 0, A->options());
  NormalProduct first;
  const auto [op, exponent, probe] = first_product(A, "randomized_svd", [&](const Operator& op) {
    first = op->normal_matmat(omega, {width, width});
    return first.image;
  });
  // M is of moderate size: its residuals have squares too.
  const int shift = 2 * scale_exponent(largest_magnitude(probe));
  const auto normal = [&](const at::Tensor& X) {
    return scaled(op->normal_matmat(X, {X.size(1), X.size(1)}).co, shift);
  };
  const double target = residual_target(omega, width), u = unit_roundoff(omega);
  const int64_t most_width = std::min(kMostWidths, A->columns() / width - 1) * width;

  BlockLanczos space(normal, first.co, most_width);
  first = {};
  bool within_reach = true;
  const auto settled = [&](const RitzPairs& pairs) {
    const auto S = pairs.values.clamp_min(0).sqrt();
    const double largest = S[0].item<double>(), smallest = S[options.rank - 1].item<double>();
    within_reach = smallest * target > 10 * u * largest;
    // ‖AᴴA v - s² v‖ = s ‖Aᴴu - s v‖ for u = A v / s.
    const auto residuals = pairs.residuals.narrow(0, 0, options.rank);
    return !within_reach || at::all(residuals <= target * largest * S.narrow(0, 0, options.rank)).item<bool>();
  };
  const auto [ritz, blocks, converged] = run(space, settled);
  if (!within_reach) return std::nullopt;

  const auto V = polish(at::mm(space.basis(), ritz.vectors.narrow(1, 0, options.rank)));
  // A ≈ (A V) Vᴴ
  const auto adjoint = triplets_of_rows(V, op->matmat(V), options.rank);
  const Triplets factors{materialized_adjoint(adjoint.Vh), adjoint.S, materialized_adjoint(adjoint.U)};
  return probed_result(factors, probe, exponent, blocks, converged, options, width);
}

// ---- on both sides ----

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

// What the last columns of V do beyond span(U): A V = U T + next coupling there.
struct Extension {
  at::Tensor next;      // orthonormal, orthogonal to U
  at::Tensor coupling;  // nextᴴ A V for these columns; for the others it is zero
};

// Uᴴ A V_last = T_last: Aᴴ of all but the last block of U lies in the span of the earlier V.
Extension extend_left(const LinearOperator& A, Bidiagonalization& space, int64_t block) {
  const int64_t first = space.width() - block;
  const auto product = A.matmat(space.V.narrow(1, first, block));
  const auto within = space.T.narrow(0, first, block).narrow(1, first, block);
  const auto remainder = at::addmm(product, space.U.narrow(1, first, block), within, 1, -1);
  const auto next = orthonormal_beside(space.U, remainder, space.drawn);
  return {next, at::mm(next.mH(), remainder)};
}

Bidiagonalization extend_right(const LinearOperator& A, Bidiagonalization space, const Extension& extension) {
  const auto& [next, coupling] = extension;
  const int64_t width = space.width(), block = next.size(1), coupled = coupling.size(1);
  const auto rows = A.rmatmat(next);
  const auto remainder = at::addmm(rows, space.V.narrow(1, width - coupled, coupled), coupling.mH(), 1, -1);
  const auto V = orthonormal_beside(space.V, remainder, space.drawn);
  const auto above = at::zeros({width, block}, rows.options());
  const auto before = at::zeros({block, width - coupled}, rows.options());
  const auto below = at::cat({before, coupling, at::mm(remainder.mH(), V)}, 1);
  return {at::cat({space.U, next}, 1), at::cat({space.V, V}, 1), at::cat({at::cat({space.T, above}, 1), below}, 0),
          space.drawn};
}

struct Ritz {
  at::Tensor left, S, right;  // T = left diag(S) rightᴴ
};

Ritz ritz(const Bidiagonalization& space) {
  auto [left, S, right] = at::linalg_svd(space.T, /*full_matrices=*/false);
  return {left, S, materialized_adjoint(right)};
}

// F Y, Y the right vectors of T: what A V Y has beyond U X diag(S).
at::Tensor coupling_of_ritz_vectors(const Extension& extension, const Ritz& ritz) {
  const int64_t coupled = extension.coupling.size(1);
  return at::mm(extension.coupling, ritz.right.narrow(0, ritz.right.size(0) - coupled, coupled));
}

// Thick restart: the space shrinks to its leading Ritz vectors; F keeps its range.
void restart(Bidiagonalization& space, Extension& extension, const Ritz& ritz, int64_t kept) {
  extension.coupling = coupling_of_ritz_vectors(extension, ritz).narrow(1, 0, kept);
  space = {at::mm(space.U, ritz.left.narrow(1, 0, kept)), at::mm(space.V, ritz.right.narrow(1, 0, kept)),
           at::diag(ritz.S.narrow(0, 0, kept)).to(space.T.scalar_type()), space.drawn};
}

}  // namespace

RandomizedSvd krylov_svd(const Operator& A, const SvdOptions& options, int64_t width) {
  // Blocks are as wide as the sketch: narrower ones would miss copies of a value that is repeated more often than they
  // have columns.
  const bool to_target = !options.power_iters;
  const int64_t most_width = kMostWidthsBeside * width;
  if (most_width + width > A->columns()) return dense_svd(A, options.rank);
  if (to_target)
    if (auto result = svd_on_the_short_side(A, options, width)) return std::move(*result);

  const auto sketch = sketch_range(A, width, options.seed);
  const auto& op = *sketch.A;
  const double u = unit_roundoff(sketch.range), target = residual_target(sketch.range, width);
  const int64_t most_blocks = to_target ? kMostBlocks : *options.power_iters;

  auto space = start(op, sketch.range);
  auto values = ritz(space);
  int64_t blocks = 0;
  bool converged = !to_target;
  for (; blocks < most_blocks; ++blocks) {
    auto extension = extend_left(op, space, width);
    if (to_target) {
      // ‖A v - s u‖; ‖Aᴴu - s v‖ is rounding.
      const auto residuals = at::linalg_vector_norm(coupling_of_ritz_vectors(extension, values), 2, 0);
      const auto worst = residuals.narrow(0, 0, options.rank).max().item<double>();
      converged = worst <= target * values.S[0].item<double>();
      if (converged) break;
    }
    if (space.width() + width > most_width) restart(space, extension, values, width);
    space = extend_right(op, std::move(space), extension);
    values = ritz(space);
  }
  const Triplets factors{
      orthonormalize(at::mm(space.U, values.left.narrow(1, 0, options.rank))),
      without_noise(values.S, u).narrow(0, 0, options.rank),
      materialized_adjoint(orthonormalize(at::mm(space.V, values.right.narrow(1, 0, options.rank)))),
  };
  return probed_result(factors, sketch.probe, sketch.exponent, blocks, converged, options, width);
}

}  // namespace fastlr
