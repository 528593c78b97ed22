// Subspace iteration, for one tall matrix or for a batch of them.
//
// P <- an orthonormal basis of AᴴA P: one product Z = AᴴA P a step, read in blocks of rows that serve both factors, and
// its basis on the short side. What the last step leaves, Y = A P and Z = AᴴY, is all that the factors need:
// with Y = Q R from an accurate Gram matrix of Y, AᴴQ = Z R^-1, and the long side is multiplied once, by a small
// matrix. Where A is too ill-conditioned for that (AᴴA squares its condition number), bases on both sides take over.
#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include <fastlr/orthonormalize.hpp>
#include <fastlr/random.hpp>

#include "first_product.hpp"
#include "small_matrices.hpp"
#include "svd_parts.hpp"
#include "tall.hpp"

namespace fastlr {
namespace {

// power_iters = "auto": at most this many iterations, until no leading Ritz value grows by more than 2 %.
constexpr int64_t kMostPowerIters = 8;
constexpr double kRitzTolerance = 0.02;

// Rounding of A P and AᴴA P may be amplified by so much on its way to the factors.
constexpr double kMostAmplification = 4;

// Whether no one of the leading `rank` Ritz values has grown by more than kRitzTolerance.
at::Tensor ritz_values_settled(const at::Tensor& before, const at::Tensor& now, int64_t rank, double u) {
  const auto top = now.narrow(-1, 0, rank);
  const auto growth = top - before.narrow(-1, 0, rank);
  return (growth <= at::maximum(top * kRitzTolerance, noise_level(now, u))).all(-1);
}

// ---- the quick way: matrices that are iterated together ----

// One matrix, or some of a batch.
struct Group {
  Operator A;
  at::Tensor which;    // their numbers in the batch
  at::Tensor P, Y, Z;  // Z = AᴴA P; Y = A P after the last step
  at::Tensor gram;     // ZᴴZ
  at::Tensor probe;    // A times the Gaussian vectors of the error estimate
  at::Tensor values;   // Ritz values, where they decide

  Group select(const at::Tensor& index) const {
    const auto some = [&](const at::Tensor& part) { return part.defined() ? part.index_select(0, index) : part; };
    // The first P is shared.
    return {A->select(index), some(which), P.dim() > 2 ? some(P) : P, some(Y), some(Z), some(gram),
            some(probe),      some(values)};
  }
};

using MaybeGroup = std::optional<Group>;

// Those for which `mask` holds, and the others.
std::pair<MaybeGroup, MaybeGroup> partition(Group group, const at::Tensor& mask) {
  if (mask.all().item<bool>()) return {std::move(group), std::nullopt};
  if (!mask.any().item<bool>()) return {std::nullopt, std::move(group)};
  return {group.select(mask.nonzero().squeeze(1)), group.select(mask.logical_not().nonzero().squeeze(1))};
}

struct Finished {
  Group group;
  Triplets factors;
  at::Tensor values;  // all Ritz values of the last step
  int64_t power_iters;
  bool converged;
};
// Matrices on which a Cholesky factorization broke down: before Z had a basis, or with all steps done.
struct Stopped {
  Group group;
  int64_t power_iters;
  bool iterated, converged;
};
struct Iterated {
  std::vector<Finished> finished;
  std::vector<Stopped> stopped;
};

// Zeros for matrices on which a factorization has failed.
at::Tensor zero_unless(const at::Tensor& valid, const at::Tensor& matrices) {
  if (valid.all().item<bool>()) return matrices;
  return at::where(valid.unsqueeze(-1).unsqueeze(-1), matrices, 0.0);
}

// The singular values of QᴴA, Q = orth(A P), from P and Z = AᴴA P alone: PᴴZ = (A P)ᴴ(A P) = RᴴR, AᴴQ = Z R^-1; and
// whether rounding allows that.
std::pair<at::Tensor, at::Tensor> ritz_values(const Group& group) {
  const auto wide = double_type(group.Z);
  const auto factors = cholesky_factors(at::matmul(group.P.to(wide).mH(), group.Z.to(wide)));
  const auto valid = at::logical_and(factors.valid, factors.amplification < 1 / unit_roundoff(group.Z));
  const auto T = zero_unless(valid, factors.T);
  const auto squares = at::linalg_eigvalsh(at::matmul(T.mH(), at::matmul(group.gram, T)));
  return {squares.clamp_min(0).sqrt().flip(-1), valid};
}

// Those of A P for orthonormal P, which the rounding of a lower precision leaves defined.
std::pair<at::Tensor, at::Tensor> rough_ritz_values(const Group& group) {
  const auto squares = at::linalg_eigvalsh(at::matmul(group.P.mH(), group.Z));
  return {squares.clamp_min(0).sqrt().flip(-1), at::ones({}, at::kBool)};
}

// Small vectors as factors of the long ones. In double precision those of float32 are orthonormal enough as LAPACK
// leaves them.
at::Tensor leading(const at::Tensor& vectors, int64_t rank, at::ScalarType of) {
  const auto part = vectors.narrow(-1, 0, rank);
  return part.scalar_type() == of ? polish(part) : part;
}

// The SVD of rows = V diag(S) Wᴴ, V = rows X.
struct RowsSvd {
  at::Tensor W, X;  // l x rank
  at::Tensor S;     // all l
  at::Tensor mask;  // for which matrices rows X is accurate to rounding
};

// From rows = P R and the SVD of R.
RowsSvd svd_by_cholesky(const at::Tensor& rows, const at::Tensor& gram, int64_t rank) {
  const auto factors = cholesky_factors(gram);
  const auto mask = at::logical_and(factors.valid, factors.amplification <= kMostAmplification);
  const auto core = at::where(mask.unsqueeze(-1).unsqueeze(-1), factors.R, at::eye(gram.size(-1), gram.options()));
  const auto [left, S, right] = small_svd(core);
  const auto type = rows.scalar_type();
  return {leading(right, rank, type), at::matmul(factors.T, leading(left, rank, type)), S, mask};
}

// From the eigenvectors W of the Gram matrix of rows, in twice the precision, at less than half of the cost; nothing
// where that loses the orthogonality of one of the V = rows W diag(S)^-1 to more than the rounding of rows.
std::optional<RowsSvd> svd_by_eigenvectors(const at::Tensor& rows, const at::Tensor& gram, int64_t rank) {
  if (gram.scalar_type() == rows.scalar_type()) return std::nullopt;
  const auto [squares, vectors] = small_eigenvectors(gram);
  const auto S = squares.sqrt(), kept = S.narrow(-1, 0, rank);
  const double smallest = std::sqrt(unit_roundoff(gram) / unit_roundoff(rows));
  if (!(kept.narrow(-1, rank - 1, 1) > smallest * kept.narrow(-1, 0, 1)).all().item<bool>()) return std::nullopt;
  const auto W = vectors.narrow(-1, 0, rank), X = W / kept.unsqueeze(-2);
  // As in cholesky_factors, relative to the lengths of the columns.
  const auto lengths = at::real(gram.diagonal(0, -2, -1)).sqrt().unsqueeze(-1);
  const auto amplification = at::linalg_vector_norm(lengths * X, 2, at::IntArrayRef({-2, -1}));
  return RowsSvd{W, X, S, amplification <= kMostAmplification * std::sqrt(static_cast<double>(rank))};
}

// A ≈ Q (AᴴQ)ᴴ for Q = orth(Y), Y = A P.
struct LastStep {
  Triplets factors;
  at::Tensor values;  // all singular values of QᴴA
  at::Tensor mask;    // for which matrices this is accurate to rounding
};
LastStep triplets_of_step(const at::Tensor& Y, const at::Tensor& Z, int64_t rank) {
  const auto left = cholesky_factors(accurate_gram(Y));
  const auto accurate = at::logical_and(left.valid, left.amplification <= kMostAmplification);
  if (!accurate.any().item<bool>()) return {{}, {}, accurate};
  const auto T = zero_unless(accurate, left.T);
  const auto rows = tall_product(Z, T), gram = accurate_gram(rows);
  auto svd = svd_by_eigenvectors(rows, gram, rank);
  if (!svd) svd = svd_by_cholesky(rows, gram, rank);
  const auto& [W, X, S, right_mask] = *svd;
  return {Triplets{tall_product(Y, at::matmul(T, W)),
                   without_noise(S, unit_roundoff(Z)).narrow(-1, 0, rank).to(c10::toRealValueType(Z.scalar_type())),
                   materialized_adjoint(tall_product(rows, X))},
          S, at::logical_and(accurate, right_mask)};
}

// The last step is that of `last`, in the full precision, where it is not that of the group itself.
class QuickIteration {
 public:
  QuickIteration(int64_t rank, std::optional<int64_t> power_iters, Operator last, at::Tensor probe_vectors)
      : rank_(rank), power_iters_(power_iters), last_(std::move(last)), probe_vectors_(std::move(probe_vectors)) {}

  Iterated run(Group start) {
    const int64_t most = power_iters_.value_or(kMostPowerIters);
    MaybeGroup active = std::move(start);
    for (int64_t i = 0; active; ++i) {
      if (i == most && (power_iters_ || last_)) {
        finish(std::move(*active), i, power_iters_.has_value());
        break;
      }
      active->gram = power_iters_ ? quick_gram(active->Z) : accurate_gram(active->Z);
      if (!power_iters_) active = without_settled(std::move(*active), i, most);
      if (active) active = advanced(std::move(*active), i, /*to_last=*/i + 1 == most);
    }
    return std::move(result_);
  }

 private:
  // Takes out those whose Ritz values have settled.
  MaybeGroup without_settled(Group group, int64_t i, int64_t most) {
    const auto [now, valid] = last_ ? rough_ritz_values(group) : ritz_values(group);
    const auto before = std::exchange(group.values, now);
    auto [usable, broken] = partition(std::move(group), valid);
    if (broken) result_.stopped.push_back({std::move(*broken), i, false, false});
    if (!usable || !before.defined()) return std::move(usable);
    const auto settled = ritz_values_settled(valid.dim() ? before.index({valid}) : before, usable->values, rank_,
                                             unit_roundoff(usable->Z));
    auto [done, others] = partition(std::move(*usable), settled);
    if (done) {
      if (!last_)
        finish(std::move(*done), i, true);
      else if (auto next = advanced(std::move(*done), i, true))
        finish(std::move(*next), i + 1, true);
    }
    if (others && i == most) {
      finish(std::move(*others), i, false);
      return std::nullopt;
    }
    return std::move(others);
  }

  // One step; Y is kept where it may be the last one.
  MaybeGroup advanced(Group group, int64_t i, bool to_last) {
    const auto factors = cholesky_factors(group.gram);
    auto [usable, broken] = partition(std::move(group), factors.valid);
    if (broken) result_.stopped.push_back({std::move(*broken), i, false, false});
    if (!usable) return std::nullopt;
    const auto T = broken ? factors.T.index({factors.valid}) : factors.T;
    const int64_t width = usable->Z.size(-1);
    usable->P = tall_product(usable->Z, T);
    if (to_last && last_) {
      const auto X = at::cat({usable->P, probe_vectors_}, 1);
      const auto product = last_->normal_matmat(X, {0, width});
      usable->Y = product.image.narrow(1, 0, width);
      usable->probe = product.image.narrow(1, width, kProbes);
      usable->Z = product.co;
    } else {
      const bool keep = to_last || (!power_iters_ && !last_);
      auto product = usable->A->normal_matmat(usable->P, {keep ? 0 : width, width});
      usable->Y = std::move(product.image);
      usable->Z = std::move(product.co);
    }
    return usable;
  }

  void finish(Group group, int64_t power_iters, bool converged) {
    auto [factors, values, mask] = triplets_of_step(group.Y, group.Z, rank_);
    auto [done, broken] = partition(std::move(group), mask);
    if (done && broken) {
      const auto good = mask.nonzero().squeeze(1);
      factors = {factors.U.index_select(0, good), factors.S.index_select(0, good), factors.Vh.index_select(0, good)};
    }
    if (broken) result_.stopped.push_back({std::move(*broken), power_iters, true, converged});
    if (done) result_.finished.push_back({std::move(*done), std::move(factors), values, power_iters, converged});
  }

  int64_t rank_;
  std::optional<int64_t> power_iters_;
  Operator last_;
  at::Tensor probe_vectors_;
  Iterated result_;
};

// ---- the careful way: bases on both sides ----

struct Careful {
  Triplets factors;
  int64_t power_iters;
  bool converged;
};

// `power_iters` more iterations from a basis P of the short side; nothing: until the Ritz values have settled. The
// product that would end an iteration also gives the Ritz values that decide whether it does.
Careful iterate_carefully(const Operator& A, at::Tensor P, int64_t rank, std::optional<int64_t> power_iters) {
  const int64_t most = power_iters.value_or(kMostPowerIters);
  at::Tensor values;
  for (int64_t i = 1;; ++i) {
    const bool may_end = !power_iters || i == most;
    const auto Y = A->matmat(P);
    const auto Q = may_end ? orthonormalize(Y) : stabilize(Y);
    const auto rows = A->rmatmat(Q);
    if (!may_end) {
      P = stabilize(rows);
      continue;
    }
    P = orthonormalize(rows);
    const auto core = at::mm(rows.mH(), P);
    const auto now = at::linalg_svdvals(core);
    const bool settled =
        power_iters || (values.defined() && ritz_values_settled(values, now, rank, unit_roundoff(now)).item<bool>());
    if (settled || i == most) return {triplets_of_core(Q, core, P, rank), i, settled};
    values = now;
  }
}

Careful carry_on(const Operator& A, const Stopped& stopped, const SvdOptions& options) {
  if (!stopped.iterated) {
    // One more, since the last step has lost what lies below √u of the largest singular value.
    const auto left =
        options.power_iters ? std::optional(*options.power_iters - stopped.power_iters + 1) : std::nullopt;
    auto rest = iterate_carefully(A, orthonormalize(stopped.group.Z), options.rank, left);
    rest.power_iters += stopped.power_iters;
    return rest;
  }
  const auto Q = orthonormalize(stopped.group.Y);
  return {triplets_of_rows(Q, A->rmatmat(Q), options.rank), stopped.power_iters, stopped.converged};
}

// ---- one matrix ----

RandomizedSvd without_iterations(const Operator& A, const SvdOptions& options, int64_t width) {
  const auto sketch = sketch_range(A, width, options.seed);
  const auto Q = orthonormalize(sketch.range);
  const auto factors = triplets_of_rows(Q, sketch.A->rmatmat(Q), options.rank);
  return probed_result(factors, sketch.probe, sketch.exponent, 0, true, options, width);
}

Group first_step(const Operator& A, const at::Tensor& omega, int64_t width) {
  auto product = A->normal_matmat(omega, {width, width});
  return {A, {}, omega.narrow(1, 0, width), {}, std::move(product.co), {}, std::move(product.image), {}};
}

// Ritz values are those of orthonormal columns.
at::Tensor with_orthonormal_columns(const at::Tensor& omega, int64_t width) {
  return at::cat({orthonormalize(omega.narrow(1, 0, width)), omega.narrow(1, width, kProbes)}, 1);
}

// Whether the rounding of a lower precision, some u_low ‖A‖_F / sqrt(m) in a column of AᴴA P of unit length, leaves the
// result as good as the full one does, from the Ritz values of the sketch. It turns the k-th right vector by rho = that
// over σ_k. The last step, in full precision, multiplies this by the tail of A, so that ‖A - Q QᴴA‖_F^2 grows by
// k rho^2 / n of itself at most: by less than 0.25 % where k <= n / 4 and rho <= 1 / 10. The vectors are as good where
// rho is below what they miss for want of iterations, (σ_l / σ_k)^(2 q) or so.
bool rounding_is_hidden(const at::Tensor& values, int64_t rank, int64_t power_iters, double noise) {
  const double kept = values[rank - 1].item<double>(), last = values[-1].item<double>();
  return kept >= 10 * noise && std::pow(last / kept, 2 * power_iters) >= 10 * noise / kept;
}

std::optional<RandomizedSvd> svd_in_lower_precision(const Operator& A, const SvdOptions& options, int64_t width,
                                                    const at::Tensor& omega) {
  if (options.precision == Precision::full || 4 * width > A->columns()) return std::nullopt;
  const auto low = A->lowered(options.precision == Precision::lowest);
  if (!low.A) return std::nullopt;
  auto group = first_step(low.A, with_orthonormal_columns(omega, width), width);
  // float32's range, which bfloat16 shares.
  if (!squares_in_range(at::empty({0}), largest_magnitude(group.probe))) return std::nullopt;
  const double noise = 2 * low.roundoff * frobenius_estimate(group.probe) / std::sqrt(static_cast<double>(A->rows()));
  // What the first step shows already is not carried on in vain.
  const auto [values, valid] = rough_ritz_values(group);
  if (!rounding_is_hidden(values, options.rank, options.power_iters.value_or(1), noise)) return std::nullopt;
  QuickIteration iteration(options.rank, options.power_iters, A, omega.narrow(1, width, kProbes));
  auto iterated = iteration.run(std::move(group));
  if (iterated.finished.empty()) return std::nullopt;
  const auto& done = iterated.finished.front();
  if (!rounding_is_hidden(done.values, options.rank, done.power_iters, noise)) return std::nullopt;
  auto result = probed_result(done.factors, done.group.probe, 0, done.power_iters, done.converged, options, width);
  result.lowered = true;
  return result;
}

// Which matrices of a batch have squares that are far from overflow and underflow.
at::Tensor in_range(const at::Tensor& probe) {
  const auto magnitudes = squared_magnitude(probe).amax({-2, -1}).sqrt().to(at::kCPU, at::kDouble);
  auto mask = at::empty(magnitudes.sizes(), at::kBool);
  for (int64_t i = 0; i < magnitudes.numel(); ++i)
    mask.mutable_data_ptr<bool>()[i] = squares_in_range(probe, magnitudes.const_data_ptr<double>()[i]);
  return mask.to(probe.device());
}

}  // namespace

RandomizedSvd subspace_svd(const Operator& A, const SvdOptions& options, int64_t width) {
  if (options.power_iters == 0) return without_iterations(A, options, width);
  const auto omega = gaussian(A->columns(), width + kProbes, options.seed, 0, A->options());
  if (auto result = svd_in_lower_precision(A, options, width, omega)) return std::move(*result);

  Group group;
  const auto [op, exponent, probe] = first_product(A, "randomized_svd", [&](const Operator& op) {
    group = first_step(op, omega, width);
    return group.probe;
  });
  QuickIteration iteration(options.rank, options.power_iters, nullptr, {});
  auto iterated = iteration.run(std::move(group));
  if (!iterated.finished.empty()) {
    const auto& done = iterated.finished.front();
    return probed_result(done.factors, done.group.probe, exponent, done.power_iters, done.converged, options, width);
  }
  const auto& stopped = iterated.stopped.front();
  const auto rest = carry_on(op, stopped, options);
  return probed_result(rest.factors, stopped.group.probe, exponent, rest.power_iters, rest.converged, options, width);
}

BatchedSvd subspace_svds(const at::Tensor& A, const SvdOptions& options, int64_t width) {
  const int64_t count = A.size(0), m = A.size(1), n = A.size(2), rank = options.rank;
  const auto real = A.options().dtype(c10::toRealValueType(A.scalar_type()));
  BatchedSvd result{at::empty({count, m, rank}, A.options()), at::empty({count, rank}, real),
                    at::empty({count, rank, n}, A.options()), std::vector<SvdOutcome>(count)};

  const auto omega = gaussian(n, width + kProbes, options.seed, 0, A.options());
  auto group = first_step(as_operator(A), omega, width);
  group.which = at::arange(count, A.options().dtype(at::kLong));
  auto [usable, rest] = partition(std::move(group), in_range(group.probe));
  QuickIteration iteration(rank, options.power_iters, nullptr, {});
  auto iterated = usable ? iteration.run(std::move(*usable)) : Iterated{};
  for (const auto& [done, factors, values, power_iters, converged] : iterated.finished) {
    const auto place = [&](at::Tensor& all, const at::Tensor& part) {
      if (done.which.size(0) == count) {
        all = part;
      } else {
        all.index_copy_(0, done.which, part);
      }
    };
    place(result.U, factors.U);
    place(result.S, factors.S);
    place(result.Vh, factors.Vh);
    const auto errors = estimate_errors(residual_probe(done.probe, factors, options.seed, width));
    const auto numbers = done.which.to(at::kCPU);
    for (int64_t i = 0; i < numbers.numel(); ++i)
      result.outcomes[numbers.const_data_ptr<int64_t>()[i]] = {.error = errors[i],
                                                               .passes = 2 + 2 * power_iters,
                                                               .power_iters = power_iters,
                                                               .converged = converged,
                                                               .method = SvdMethod::subspace};
  }
  // What cannot be iterated with the others is computed alone.
  std::vector<at::Tensor> alone;
  if (rest) alone.push_back(rest->which);
  for (const auto& stopped : iterated.stopped) alone.push_back(stopped.group.which);
  for (const auto& numbers : alone) {
    const auto on_cpu = numbers.to(at::kCPU);
    for (int64_t j = 0; j < on_cpu.numel(); ++j) {
      const int64_t i = on_cpu.const_data_ptr<int64_t>()[j];
      const auto matrix = as_operator(A.select(0, i));
      store(result, i, subspace_svd(matrix, options, width));
      result.outcomes[i].passes = matrix->passes();
    }
  }
  return result;
}

}  // namespace fastlr
