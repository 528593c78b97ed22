#include "tucker_parts.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <tuple>
#include <utility>

#include <fastlr/orthonormalize.hpp>
#include <fastlr/random.hpp>

#include "checks.hpp"
#include "orthonormal_beside.hpp"
#include "svd_parts.hpp"
#include "tensor_modes.hpp"

namespace fastlr {
namespace {

// Squares of singular values are known to u of the largest: below this many of them QR has to tell.
constexpr double kSquaresNoise = 1e4;
// Factors of fewer rows than this, or more columns than this share of them, are found by a dense SVD.
constexpr int64_t kDense = 48;
constexpr double kDenseShare = 0.5;
// A step of subspace iteration that captures less than this much of what was missing is the last one.
constexpr double kStepGain = 0.05;
constexpr int kMostSteps = 4;
// A sweep that adds no more than so many u ‖X‖² to the energy of the core is the last one: that is rounding.
constexpr double kSweepNoise = 8;
// Of the draws that complete factors, apart from those of small seeds.
constexpr int64_t kCompletionSeed = 0x7475636b6572;

Spectrum of_svd(const at::Tensor& A) {
  const auto [U, S, Vh] = at::linalg_svd(A, /*full_matrices=*/false);
  return {S.to(at::kDouble).square(), U};
}

// From the n x n factor R of the unfolding's adjoint, block of columns by block: accurate to u of the values.
Spectrum spectrum_by_qr(const at::Tensor& X, int64_t mode) {
  at::Tensor R;
  for_unfolding_blocks(X, mode, X.scalar_type(), [&](const at::Tensor& columns) {
    const auto rows = materialized_adjoint(columns);
    R = std::get<1>(at::linalg_qr(R.defined() ? at::cat({R, rows}) : rows, "r"));
  });
  return of_svd(R.mH());
}

Spectrum spectrum_by_gram(const at::Tensor& X, int64_t mode) {
  const auto type = double_type(X);
  const int64_t n = X.size(mode);
  auto G = at::zeros({n, n}, X.options().dtype(type));
  for_unfolding_blocks(X, mode, type, [&](const at::Tensor& columns) { G.addmm_(columns, columns.mH()); });
  auto [values, vectors] = at::linalg_eigh(G);
  return {values.clamp_min(0).flip(0), vectors.flip(1).to(X.scalar_type())};
}

// Of at least `rank` orthonormal columns: what the unfolding lacks is drawn at random.
at::Tensor completed(const at::Tensor& U, int64_t rank) {
  if (U.size(1) >= rank) return U;
  int64_t drawn = 0;
  const auto more = gaussian(U.size(0), rank - U.size(1), kCompletionSeed, 0, U.options());
  return at::cat({U, orthonormal_beside(U, more, drawn)}, 1);
}

}  // namespace

double energy(const at::Tensor& X) {
  const double norm = frobenius_norm(X);
  return norm * norm;
}

Spectrum spectrum(const at::Tensor& X, int64_t mode, int64_t rank, std::optional<double> needed) {
  const int64_t n = X.size(mode), others = X.numel() / n;
  if (n >= others) {
    // Tall: the small side decides.
    const auto [Q, R] = at::linalg_qr(unfolding(X, mode));
    const auto small = of_svd(R);
    return {small.squares, completed(at::mm(Q, small.vectors), rank)};
  }
  const double noise = kSquaresNoise * unit_roundoff(double_type(X));
  if (needed && *needed < noise) return spectrum_by_qr(X, mode);
  auto found = spectrum_by_gram(X, mode);
  if (!needed && found.squares[rank - 1].item<double>() < noise * found.squares[0].item<double>())
    return spectrum_by_qr(X, mode);
  return found;
}

at::Tensor leading_vectors(const at::Tensor& X, int64_t mode, const at::Tensor& U) {
  const int64_t n = U.size(0), r = U.size(1), others = X.numel() / n;
  if (n <= kDense || others <= r || static_cast<double>(r) > kDenseShare * static_cast<double>(n))
    return spectrum(X, mode, r, {}).vectors.narrow(1, 0, r).contiguous();
  const auto Y = unfolding(X, mode);
  auto Q = U;
  double captured = 0;
  const double all = energy(Y);
  for (int step = 0; step < kMostSteps; ++step) {
    // Orthonormal in between: products with YYᴴ would square the range of singular values.
    const auto rows = at::mm(Y.mH(), Q);
    const double before = std::exchange(captured, energy(rows));
    if (step > 0 && captured - before <= kStepGain * (all - captured)) break;
    Q = orthonormalize(at::mm(Y, orthonormalize(rows)));
  }
  return Q;
}

Sweeps sweep_to_the_end(const std::function<at::Tensor()>& sweep, at::Tensor& core, double total, int64_t most,
                        double gain) {
  Sweeps done;
  double captured = energy(core);
  for (int64_t i = 0; i < most && !done.converged; ++i) {
    core = sweep();
    const double before = std::exchange(captured, energy(core)), rest = std::max(total - captured, 0.0);
    done.errors.push_back(std::sqrt(rest));
    // To the first order, errors fall by half as much of themselves as their squares do.
    done.converged = captured - before <= std::max(2 * gain * rest, kSweepNoise * unit_roundoff(core) * total);
  }
  return done;
}

void canonical(at::Tensor& core, const std::vector<int64_t>& modes, std::vector<at::Tensor>& factors) {
  for (size_t i = 0; i < modes.size(); ++i) {
    const auto rotation = spectrum(core, modes[i], core.size(modes[i]), 0.0).vectors;
    core = mode_product(core, modes[i], materialized_adjoint(rotation));
    factors[i] = at::mm(factors[i], rotation);
  }
  for (size_t i = 0; i < modes.size(); ++i) {
    const auto phases = column_phases(factors[i]).view({-1});
    factors[i] = polish(factors[i] * phases.conj());
    core = mode_product(core, modes[i], at::diag(phases.resolve_conj()));
  }
}

Tucker unscaled(Tucker result, int exponent) {
  const double unit = std::ldexp(1.0, -exponent);
  result.core = scaled(result.core, -exponent);
  result.norm *= unit;
  result.error *= unit;
  for (double& error : result.errors) error *= unit;
  return result;
}

void drop_slices(at::Tensor& core, const std::vector<int64_t>& modes, std::vector<at::Tensor>& factors,
                 double allowed) {
  for (;;) {
    size_t best = modes.size();
    double least = allowed;
    for (size_t i = 0; i < modes.size(); ++i) {
      const int64_t r = core.size(modes[i]);
      const double lost = r > 1 ? energy(core.select(modes[i], r - 1)) : INFINITY;
      if (lost <= least) std::tie(best, least) = std::pair(i, lost);
    }
    if (best == modes.size()) return;
    const int64_t r = core.size(modes[best]) - 1;
    core = core.narrow(modes[best], 0, r).contiguous();
    factors[best] = factors[best].narrow(1, 0, r).contiguous();
    allowed -= least;
  }
}

}  // namespace fastlr
