#include <fastlr/randomized_svd.hpp>

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include <fastlr/orthonormalize.hpp>
#include <fastlr/random.hpp>
#include <fastlr/sketch.hpp>

#include "checks.hpp"

namespace fastlr {
namespace {

// power_iters = "auto": at most this many iterations, until no leading Ritz value grows by more than 2 %.
constexpr int64_t kMostPowerIters = 8;
constexpr double kRitzTolerance = 0.02;

// A ≈ Q core Pᵀ with orthonormal Q (m x l) and P (n x l): the best approximation with columns in span(Q).
struct Projection {
  at::Tensor Q, P, core;
};

Projection project(const at::Tensor& A, const at::Tensor& range) {
  const auto Q = orthonormalize(range);
  const auto rows = at::mm(A.mT(), Q);
  const auto P = orthonormalize(rows);
  return {Q, P, at::mm(rows.mT(), P)};
}

// Where the rounding noise of computed singular values begins: a few sqrt(k) u of the largest.
double noise_level(const at::Tensor& S, double u) {
  const auto k = static_cast<double>(S.numel());
  return k > 0 ? 4 * std::sqrt(k) * u * S[0].item<double>() : 0.0;
}

// True when no one of the leading `rank` Ritz values has grown by more than kRitzTolerance.
bool ritz_values_settled(const at::Tensor& before, const at::Tensor& now, int64_t rank) {
  const auto top = now.narrow(0, 0, rank);
  const auto growth = top - before.narrow(0, 0, rank);
  const auto allowed = (top * kRitzTolerance).clamp_min(noise_level(now, unit_roundoff(now)));
  return at::all(growth <= allowed).item<bool>();
}

struct Iterated {
  Projection projection;
  int64_t power_iters;
  bool converged;
};

Iterated iterate_fixed(const at::Tensor& A, at::Tensor range, int64_t power_iters) {
  for (int64_t i = 0; i < power_iters; ++i) range = at::mm(A, stabilize(at::mm(A.mT(), stabilize(range))));
  return {project(A, range), power_iters, true};
}

// The projection that ends an iteration also yields the Ritz values that decide whether it was the last.
Iterated iterate_until_settled(const at::Tensor& A, const at::Tensor& range, int64_t rank) {
  auto projection = project(A, range);
  auto values = at::linalg_svdvals(projection.core);
  for (int64_t i = 1; i <= kMostPowerIters; ++i) {
    projection = project(A, at::mm(A, projection.P));
    const auto now = at::linalg_svdvals(projection.core);
    if (ritz_values_settled(values, now, rank)) return {projection, i, true};
    values = now;
  }
  return {projection, kMostPowerIters, false};
}

void fix_signs(at::Tensor& U, at::Tensor& Vh) {
  if (U.numel() == 0) return;
  const auto largest = U.abs().argmax(0, /*keepdim=*/true);
  const auto sign = at::where(U.gather(0, largest) < 0, -1.0, 1.0).to(U.scalar_type());
  U = U * sign;
  Vh = Vh * sign.mT();
}

// Singular values that are rounding noise are zero: their vectors are then any orthonormal completion.
at::Tensor without_noise(const at::Tensor& S, double u) { return at::where(S > noise_level(S, u), S, 0.0); }

// LAPACK's singular vectors are orthonormal to some ten times what the Cholesky passes reach.
at::Tensor polished(const at::Tensor& vectors) { return orthonormalize(vectors); }

// The estimate of ‖A - U diag(S) Vh‖_F from A * Omega, for the Omega in columns [column0, column0 + kProbes).
double residual_estimate(const at::Tensor& probe, const at::Tensor& U, const at::Tensor& S, const at::Tensor& Vh,
                         int64_t seed, int64_t column0) {
  const auto omega = at::empty({Vh.size(1), kProbes}, Vh.options());
  fill_random(omega, RandomKind::gaussian, seed, 0, column0);
  return frobenius_estimate(probe - at::mm(U, S.unsqueeze(1) * at::mm(Vh, omega)));
}

RandomizedSvd exact_svd(const at::Tensor& A, int64_t rank) {
  check_finite(A, "randomized_svd");
  auto [U, S, Vh] = at::linalg_svd(A, /*full_matrices=*/false);
  const double tail = frobenius_norm(S.narrow(0, rank, S.size(0) - rank));
  // Where nothing of the spectrum is left out, LAPACK's backward error is: some sqrt(k) units of roundoff.
  const double rounding = 10 * std::sqrt(static_cast<double>(S.size(0))) * unit_roundoff(A) * frobenius_norm(S);
  U = polished(U.narrow(1, 0, rank));
  Vh = polished(Vh.narrow(0, 0, rank).mT()).mT();
  fix_signs(U, Vh);
  return {U.contiguous(),
          without_noise(S, unit_roundoff(A)).narrow(0, 0, rank).contiguous(),
          Vh.contiguous(),
          0,
          1,
          tail + rounding,
          0,
          true};
}

// The random sketch of A and, behind its `width` columns, the probe A * Omega of the error estimate.
struct Sketched {
  at::Tensor A;  // times 2^exponent, which keeps all squares within range
  int exponent;
  at::Tensor range;  // A * Omega
  at::Tensor probe;  // A * Omega', Omega' independent of Omega
  int64_t passes;
};

Sketched sketch_with_probe(const at::Tensor& A, int64_t width, int64_t seed, bool transposed) {
  const auto split = [&](const at::Tensor& scaled_A, int exponent, const at::Tensor& product, int64_t passes) {
    return Sketched{scaled_A, exponent, product.narrow(1, 0, width), product.narrow(1, width, kProbes), passes};
  };
  const auto product = gaussian_product(A, A.size(1), width + kProbes, seed);
  if (squares_in_range(product, largest_magnitude(product))) return split(A, 0, product, 1);

  check_finite(transposed ? A.mT() : A, "randomized_svd");
  const int exponent = scale_exponent(largest_magnitude(A));
  const auto scaled_A = scaled(A, exponent);
  return split(scaled_A, exponent, gaussian_product(scaled_A, A.size(1), width + kProbes, seed), 4);
}

// `transposed`: A is the transpose of the caller's matrix, which errors have to name.
RandomizedSvd randomized_svd_tall(const at::Tensor& A, int64_t rank, int64_t width, std::optional<int64_t> power_iters,
                                  int64_t seed, bool transposed) {
  const auto sketched = sketch_with_probe(A, width, seed, transposed);
  const auto iterated = power_iters ? iterate_fixed(sketched.A, sketched.range, *power_iters)
                                    : iterate_until_settled(sketched.A, sketched.range, rank);
  const auto& [Q, P, core] = iterated.projection;
  auto [left, values, right] = at::linalg_svd(core, /*full_matrices=*/false);
  const auto S = without_noise(values, unit_roundoff(A)).narrow(0, 0, rank);
  auto U = at::mm(Q, polished(left.narrow(1, 0, rank)));
  auto Vh = at::mm(polished(right.narrow(0, 0, rank).mT()).mT(), P.mT());

  const double error = residual_estimate(sketched.probe, U, S, Vh, seed, width);
  return {U,
          scaled(S, -sketched.exponent),
          Vh,
          iterated.power_iters,
          sketched.passes + 1 + 2 * iterated.power_iters,
          std::ldexp(error, -sketched.exponent),
          kProbes,
          iterated.converged};
}

}  // namespace

double frobenius_estimate(const at::Tensor& probed) {
  return frobenius_norm(probed) / std::sqrt(static_cast<double>(probed.size(1)));
}

RandomizedSvd randomized_svd(const at::Tensor& A, int64_t rank, int64_t oversample, std::optional<int64_t> power_iters,
                             int64_t seed) {
  check_matrix(A, "randomized_svd");
  const int64_t shorter = std::min(A.size(0), A.size(1));
  TORCH_CHECK_VALUE(rank >= 1 && (rank <= shorter || shorter == 0),
                    "randomized_svd: rank must be between 1 and min(m, n) = ", shorter, ", got ", rank);
  TORCH_CHECK_VALUE(oversample >= 0, "randomized_svd: oversample must be non-negative, got ", oversample);
  TORCH_CHECK_VALUE(!power_iters || *power_iters >= 0,
                    "randomized_svd: power_iters must be \"auto\" or a non-negative integer, got ",
                    power_iters.value_or(0));
  const int64_t width = std::min(rank + oversample, shorter);
  if (width == shorter) return exact_svd(A, std::min(rank, shorter));

  // The short side is sketched: fewer draws, and A and its transpose get the same factors.
  const bool wide = A.size(0) < A.size(1);
  auto result = randomized_svd_tall(wide ? A.mT() : A, rank, width, power_iters, seed, wide);
  if (wide) {
    auto U = result.Vh.mT(), Vh = result.U.mT();
    result.U = U;
    result.Vh = Vh;
  }
  fix_signs(result.U, result.Vh);
  result.U = result.U.contiguous();
  result.Vh = result.Vh.contiguous();
  return result;
}

}  // namespace fastlr
