#include <fastlr/randomized_svd.hpp>

#include <ATen/ATen.h>

#include <algorithm>
#include <utility>

#include <fastlr/orthonormalize.hpp>

#include "svd_parts.hpp"

namespace fastlr {
namespace {

// power_iters = "auto": at most this many iterations, until no leading Ritz value grows by more than 2 %.
constexpr int64_t kMostPowerIters = 8;
constexpr double kRitzTolerance = 0.02;

// True when no one of the leading `rank` Ritz values has grown by more than kRitzTolerance.
bool ritz_values_settled(const at::Tensor& before, const at::Tensor& now, int64_t rank) {
  const auto top = now.narrow(0, 0, rank);
  const auto growth = top - before.narrow(0, 0, rank);
  const auto allowed = (top * kRitzTolerance).clamp_min(noise_level(now, unit_roundoff(now)));
  return at::all(growth <= allowed).item<bool>();
}

// Y = A X, and Aᴴ Y where one pass gives both.
struct Iterate {
  at::Tensor Y;
  std::optional<at::Tensor> co;
};

class SubspaceIteration {
 public:
  explicit SubspaceIteration(Operator A) : A_(std::move(A)) {}

  Iterate apply(const at::Tensor& X) const {
    if (!A_->fuses_normal()) return {A_->matmat(X), std::nullopt};
    auto [Y, co] = A_->normal_matmat(X);
    return {std::move(Y), std::move(co)};
  }

  // A well-conditioned basis of the range of AᴴY. The long side is left as it is while that costs no accuracy:
  // AᴴY loses directions only where its condition number nears 1/u, which its own basis shows.
  at::Tensor co_range(Iterate iterate) {
    if (iterate.co || !stabilize_long_side_) {
      const auto W = iterate.co ? std::move(*iterate.co) : A_->rmatmat(iterate.Y);
      const auto P = stabilize(W);
      if (A_->fuses_normal() || well_conditioned(at::mm(P.mH(), W))) return P;
      stabilize_long_side_ = true;
    }
    return stabilize(A_->rmatmat(stabilize(iterate.Y)));
  }

 private:
  static bool well_conditioned(const at::Tensor& R) {
    const auto scale = at::linalg_vector_norm(R, 2, 0, true);
    const auto values = at::linalg_svdvals(at::where(scale > 0, R / scale, 0.0));
    return values[-1].item<double>() > 1000 * unit_roundoff(R) * values[0].item<double>();
  }

  Operator A_;
  bool stabilize_long_side_ = false;
};

struct Iterated {
  Triplets factors;
  int64_t power_iters;
  bool converged;
};

Iterated iterate_fixed(const Operator& A, Iterate iterate, int64_t rank, int64_t power_iters) {
  SubspaceIteration iteration(A);
  for (int64_t i = 0; i < power_iters; ++i) {
    const auto P = iteration.co_range(std::exchange(iterate, {}));
    iterate = i + 1 < power_iters ? iteration.apply(P) : Iterate{A->matmat(P), std::nullopt};
  }
  const auto Q = orthonormalize(std::exchange(iterate, {}).Y);
  return {triplets_of_rows(Q, A->rmatmat(Q), rank), power_iters, true};
}

// The product that would end the iteration also gives the Ritz values that decide whether it does.
Iterated iterate_until_settled(const Operator& A, Iterate iterate, int64_t rank) {
  auto Q = orthonormalize(std::exchange(iterate, {}).Y);
  auto rows = A->rmatmat(Q);
  auto P = orthonormalize(rows);
  auto core = at::mm(rows.mH(), P);
  auto values = at::linalg_svdvals(core);
  for (int64_t i = 1;; ++i) {
    Q = orthonormalize(A->matmat(P));
    rows = A->rmatmat(Q);
    P = orthonormalize(rows);
    core = at::mm(rows.mH(), P);
    const auto now = at::linalg_svdvals(core);
    const bool settled = ritz_values_settled(values, now, rank);
    if (settled || i == kMostPowerIters) return {triplets_of_core(Q, core, P, rank), i, settled};
    values = now;
  }
}

// The same for row blocks, one read an iteration: Ritz values are the singular values of A P.
Iterated iterate_blocks_until_settled(const Operator& A, Iterate iterate, int64_t rank) {
  SubspaceIteration iteration(A);
  at::Tensor values;
  for (int64_t i = 1;; ++i) {
    iterate = iteration.apply(iteration.co_range(std::exchange(iterate, {})));
    const auto gram = at::mm(iterate.Y.mH(), iterate.Y);
    const auto now = at::linalg_eigvalsh(gram).clamp_min(0).sqrt().flip(0);
    const bool settled = values.defined() && ritz_values_settled(values, now, rank);
    if (settled || i == kMostPowerIters) {
      const auto Q = orthonormalize(std::exchange(iterate, {}).Y);
      return {triplets_of_rows(Q, A->rmatmat(Q), rank), i, settled};
    }
    values = now;
  }
}

RandomizedSvd subspace_svd(const Operator& A, const SvdOptions& options, int64_t width) {
  auto sketch = sketch_range(A, width, options.seed, /*with_co=*/options.power_iters != 0);
  Iterate first{std::move(sketch.range), std::move(sketch.co)};
  const auto iterated = options.power_iters
                            ? iterate_fixed(sketch.A, std::move(first), options.rank, *options.power_iters)
                        : first.co.has_value() ? iterate_blocks_until_settled(sketch.A, std::move(first), options.rank)
                                               : iterate_until_settled(sketch.A, std::move(first), options.rank);
  const auto probed = residual_probe(sketch.probe, iterated.factors, options.seed, width);
  auto result = unscaled(iterated.factors, estimate_error(probed), sketch.exponent, SvdMethod::subspace);
  result.power_iters = iterated.power_iters;
  result.converged = iterated.converged;
  return result;
}

void fix_signs(at::Tensor& U, at::Tensor& Vh) {
  if (U.numel() == 0) return;
  const auto largest = U.gather(0, U.abs().argmax(0, /*keepdim=*/true));
  const auto phase = U.is_complex() ? at::sgn(largest) : at::where(largest < 0, -1.0, 1.0).to(U.scalar_type());
  U.mul_(at::conj_physical(phase));
  Vh.mul_(phase.mT());
}

// Runs a method for tall matrices on A or on its adjoint: the short side is sketched, which takes fewer draws and
// gives A and its adjoint the same factors.
RandomizedSvd finished(RandomizedSvd result) {
  result.U = result.U.contiguous();
  result.Vh = result.Vh.contiguous();
  fix_signs(result.U, result.Vh);
  return result;
}

template <typename Method>
RandomizedSvd on_the_tall_side(const Operator& A, const Method& method) {
  const bool wide = A->rows() < A->columns();
  const auto before = A->passes();
  auto result = method(wide ? adjoint(A) : A);
  if (wide)
    std::tie(result.U, result.Vh) = std::make_tuple(materialized_adjoint(result.Vh), materialized_adjoint(result.U));
  result.passes = A->passes() - before;
  return finished(std::move(result));
}

void check_options(const LinearOperator& A, int64_t oversample, std::optional<int64_t> power_iters) {
  check_operator(A, "randomized_svd");
  TORCH_CHECK_VALUE(oversample >= 0, "randomized_svd: oversample must be non-negative, got ", oversample);
  TORCH_CHECK_VALUE(!power_iters || *power_iters >= 0,
                    "randomized_svd: power_iters must be \"auto\" or a non-negative integer, got ",
                    power_iters.value_or(0));
}

}  // namespace

RandomizedSvd randomized_svd(const Operator& A, const SvdOptions& options) {
  check_options(*A, options.oversample, options.power_iters);
  if (options.method == SvdMethod::single_pass || options.method == SvdMethod::nystrom)
    return finished(one_read_svd(A, options));
  const int64_t shorter = std::min(A->rows(), A->columns());
  TORCH_CHECK_VALUE(options.rank >= 1 && (options.rank <= shorter || shorter == 0),
                    "randomized_svd: rank must be between 1 and min(m, n) = ", shorter, ", got ", options.rank);
  const int64_t width = std::min(options.rank + options.oversample, shorter);
  return on_the_tall_side(A, [&](const Operator& tall) {
    if (width == shorter) return dense_svd(tall, std::min(options.rank, shorter));
    return options.method == SvdMethod::krylov ? krylov_svd(tall, options, width) : subspace_svd(tall, options, width);
  });
}

RandomizedSvd adaptive_svd(const Operator& A, const AdaptiveSvdOptions& options) {
  check_options(*A, options.oversample, options.power_iters);
  TORCH_CHECK_VALUE(options.tol > 0 && options.tol < 1, "randomized_svd: tol must be between 0 and 1, got ",
                    options.tol);
  return on_the_tall_side(A, [&](const Operator& tall) { return blocked_qb_svd(tall, options); });
}

}  // namespace fastlr
