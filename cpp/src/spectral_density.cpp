#include <fastlr/spectral_density.hpp>

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include <fastlr/random.hpp>

#include "checks.hpp"
#include "first_product.hpp"
#include "hermitian_checks.hpp"

namespace fastlr {
namespace {

constexpr const char* kCaller = "spectral_density";

// Rows w, each without its part in the span of its own orthonormal vectors (count x j x n); returns the coefficients of
// the first round, of which the second only removes the rounding.
at::Tensor orthogonalize_(at::Tensor& w, const at::Tensor& vectors) {
  at::Tensor coefficients;
  for (int round = 0; round < 2; ++round) {
    const auto c = at::bmm(vectors.conj(), w.unsqueeze(2));
    w = w - at::bmm(vectors.mT(), c).squeeze(2);
    if (round == 0) coefficients = c.squeeze(2);
  }
  return coefficients;
}

}  // namespace

SpectralDensity spectral_density(const Operator& A, int64_t n_vectors, int64_t steps, int64_t seed) {
  check_square(*A, kCaller);
  TORCH_CHECK_VALUE(n_vectors >= 1, kCaller, ": n_vectors must be positive, got ", n_vectors);
  TORCH_CHECK_VALUE(steps >= 1, kCaller, ": steps must be positive, got ", steps);
  const int64_t n = A->rows(), before = A->passes();
  TORCH_CHECK_VALUE(n >= 1, kCaller, ": A must have rows, got shape (0, 0)");
  steps = std::min(steps, n);

  auto start = gaussian(n, n_vectors, seed, 0, A->options());
  start /= at::linalg_vector_norm(start, 2, 0);
  const auto first = first_product(A, kCaller, [&](const Operator& op) { return op->matmat(start); });
  check_hermitian(first.product, start, kCaller);

  const double noise = 10 * std::sqrt(static_cast<double>(n)) * unit_roundoff(start);
  const auto basis = at::zeros({n_vectors, steps, n}, start.options());
  const auto T = at::zeros({n_vectors, steps, steps}, start.options().dtype(at::kDouble));
  auto largest = at::zeros({n_vectors}, T.options());
  auto exact = at::zeros({n_vectors}, T.options().dtype(at::kBool));
  auto v = start.mT().contiguous();
  auto w = first.product.mT().contiguous();
  for (int64_t j = 0;; ++j) {
    basis.select(1, j).copy_(v);
    const auto coefficients = orthogonalize_(w, basis.narrow(1, 0, j + 1));
    const auto alpha = at::real(coefficients.select(1, j)).to(at::kDouble);
    auto beta = at::linalg_vector_norm(w, 2, 1).to(at::kDouble);
    if (j == 0) T.diagonal(0, 1, 2).copy_(alpha.unsqueeze(1));
    T.select(1, j).select(1, j).copy_(at::where(exact, T.select(1, 0).select(1, 0), alpha));
    largest = at::maximum(largest, at::maximum(alpha.abs(), beta));
    // An invariant space: the recurrence of this vector has ended. Zero vectors follow, and nodes of no weight at the
    // vector's mean.
    const auto ended = beta <= noise * largest;
    exact = exact.logical_or(ended);
    if (j + 1 == steps) break;
    beta = at::where(exact, 0.0, beta);
    if (at::all(exact).item<bool>()) break;
    T.select(1, j).select(1, j + 1).copy_(beta);
    T.select(1, j + 1).select(1, j).copy_(beta);
    v = at::where(exact.unsqueeze(1), 0.0,
                  w / at::where(exact, 1.0, beta).to(c10::toRealValueType(w.scalar_type())).unsqueeze(1));
    w = first.A->matmat(v.mT().contiguous()).mT().contiguous();
  }
  const auto [nodes, vectors] = at::linalg_eigh(T);
  const auto resolution = at::where(exact, noise * largest, std::numeric_limits<double>::quiet_NaN());
  return {scaled(nodes, -first.exponent), vectors.select(1, 0).square(), scaled(resolution, -first.exponent),
          A->passes() - before};
}

}  // namespace fastlr
