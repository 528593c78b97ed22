// Truncated SVD of data that can be read once: a sketch of the range, one of the co-range, and a core between them.
#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include <fastlr/orthonormalize.hpp>
#include <fastlr/sketch.hpp>

#include "svd_parts.hpp"

namespace fastlr {
namespace {

// Independent of the draws of the right-hand side.
constexpr int64_t kLeftStream = 0x5deece66d;

// The least-squares solution of M X = B, M tall.
at::Tensor least_squares(const at::Tensor& M, const at::Tensor& B) {
  const auto [Q, R] = at::linalg_qr(M);
  return at::linalg_solve_triangular(R, at::mm(Q.mH(), B), /*upper=*/true);
}

// Psiᴴ Q for the columns [column0, column0 + k) of the Gaussian Psi of `seed`.
at::Tensor left_sketch(const at::Tensor& Q, int64_t k, int64_t seed, int64_t column0) {
  return gaussian_product(Q.mH(), Q.size(0), k, seed, /*transposed=*/false, column0).mH();
}

// Tropp, Yurtsever, Udell, Cevher 2019: A ≈ Q C Pᴴ with (Phiᴴ Q) C (Pᴴ Gamma) ≈ Phiᴴ A Gamma.
Triplets three_sketches(const TwoSidedSketch& sketch, int64_t width, int64_t rank, int64_t seed, int64_t left_seed) {
  const int64_t core = sketch.core.size(0);
  const auto Q = orthonormalize(sketch.right.narrow(1, 0, width)), P = orthonormalize(sketch.left);
  const auto half = least_squares(left_sketch(Q, core, left_seed, sketch.left.size(1)), sketch.core);
  const auto C = least_squares(left_sketch(P, core, seed, sketch.right.size(1)), half.mH()).mH();
  return triplets_of_core(Q, C, P, rank);
}

// Generalized Nyström, Nakatsukasa 2020: A ≈ Q (Psiᴴ Q)^+ Psiᴴ A.
Triplets nystrom(const TwoSidedSketch& sketch, int64_t width, int64_t rank, int64_t left_seed) {
  const auto Q = orthonormalize(sketch.right.narrow(1, 0, width));
  const auto rows = least_squares(left_sketch(Q, sketch.left.size(1), left_seed, 0), sketch.left.mH()).mH();
  return triplets_of_rows(Q, rows, rank);
}

}  // namespace

RandomizedSvd one_read_svd(const Operator& A, const SvdOptions& options) {
  const auto before = A->passes();
  TORCH_CHECK_VALUE(options.rank >= 1 && (options.rank <= A->columns() || A->columns() == 0),
                    "randomized_svd: rank must be between 1 and the ", A->columns(), " columns of A, got ",
                    options.rank);
  // One read leaves no second look at the co-range: the sketches are twice as wide as for a second one.
  const int64_t width = std::min(2 * options.rank + options.oversample, A->columns());
  const bool nystrom_method = options.method == SvdMethod::nystrom;
  const TwoSidedWidths widths{width + kProbes, nystrom_method ? (3 * width + 1) / 2 : width,
                              nystrom_method ? 0 : 2 * width + 1};
  const int64_t left_seed = options.seed ^ kLeftStream;
  const auto sketch = A->two_sided_sketch(widths, options.seed, left_seed);
  const int64_t shorter = std::min(sketch.right.size(0), A->columns());
  TORCH_CHECK_VALUE(options.rank <= shorter || shorter == 0,
                    "randomized_svd: rank must be between 1 and min(m, n) = ", shorter, ", got ", options.rank);
  if (!std::isfinite(largest_magnitude(sketch.right))) {
    A->check_finite("randomized_svd");
    TORCH_CHECK_VALUE(false, "randomized_svd: the products of A must be finite");
  }
  const int64_t rank = std::min(options.rank, shorter);
  auto factors = nystrom_method ? nystrom(sketch, width, rank, left_seed)
                                : three_sketches(sketch, width, rank, options.seed, left_seed);
  const auto probe = sketch.right.narrow(1, width, kProbes);
  const auto error = estimate_error(residual_probe(probe, factors, options.seed, width));
  auto result = unscaled(std::move(factors), error, 0, options.method);
  result.passes = A->passes() - before;
  return result;
}

}  // namespace fastlr
