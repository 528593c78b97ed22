// The truncated SVDs of a batch.
#include <ATen/ATen.h>

#include <algorithm>

#include <fastlr/randomized_svd.hpp>

#include "for_each.hpp"
#include "svd_parts.hpp"

namespace fastlr {
namespace {

// Bytes of the matrices that are iterated together, which stay in a core's cache; those of matrices that are not, since
// the products of one alone take longer than what goes on around them.
constexpr int64_t kGroupBytes = 2 << 20, kAloneBytes = 256 << 10;

void store(BatchedSvd& batch, int64_t first, BatchedSvd part, bool wide) {
  const int64_t count = part.U.size(0);
  auto U = batch.U.narrow(0, first, count), Vh = batch.Vh.narrow(0, first, count);
  const auto left = wide ? materialized_adjoint(part.Vh) : part.U,
             right = wide ? materialized_adjoint(part.U) : part.Vh;
  const auto phases = column_phases(left);
  at::mul_out(U, left, at::conj_physical(phases));
  at::mul_out(Vh, right, phases.mT());
  batch.S.narrow(0, first, count).copy_(part.S);
  std::copy(part.outcomes.begin(), part.outcomes.end(), batch.outcomes.begin() + first);
}

}  // namespace

BatchedSvd randomized_svd(const at::Tensor& A, const SvdOptions& options, bool centered) {
  const int64_t count = A.size(0), m = A.size(1), n = A.size(2);
  const auto alone = [&](const at::Tensor& matrix) {
    const auto op = as_operator(matrix);
    return randomized_svd(centered ? fastlr::centered(op) : op, options);
  };
  // One matrix says whether the options are right, and what shape the factors have.
  const auto first = alone(count > 0 ? A.select(0, 0) : at::ones({m, n}, A.options()));
  const auto like = [&](const at::Tensor& factor) {
    auto sizes = factor.sizes().vec();
    sizes.insert(sizes.begin(), count);
    return at::empty(sizes, factor.options());
  };
  BatchedSvd batch{like(first.U), like(first.S), like(first.Vh), std::vector<SvdOutcome>(count)};
  if (count == 0) return batch;
  store(batch, 0, first);

  const bool wide = m < n;
  const int64_t bytes = m * n * A.element_size();
  const bool together = first.method == SvdMethod::subspace && options.power_iters != 0 && !centered &&
                        (bytes <= kAloneBytes || !A.is_cpu());
  const int64_t group = !together ? 1 : A.is_cpu() ? std::max<int64_t>(1, kGroupBytes / bytes) : count;
  const auto run = [&](int64_t begin, int64_t end) {
    for (int64_t i = 1 + begin * group; i < std::min(count, 1 + end * group); i += group) {
      check_interrupt();
      if (!together) {
        store(batch, i, alone(A.select(0, i)));
        continue;
      }
      const auto some = A.narrow(0, i, std::min(group, count - i));
      store(batch, i, subspace_svds(wide ? some.mH() : some, options, options.rank + options.oversample), wide);
    }
  };
  for_ranges((count - 1 + group - 1) / group, 1, A.is_cpu(), run);
  return batch;
}

}  // namespace fastlr
