#include <fastlr/randomized_svd.hpp>

#include <ATen/ATen.h>

#include <algorithm>
#include <utility>

#include <fastlr/orthonormalize.hpp>

#include "svd_parts.hpp"

namespace fastlr {
namespace {

RandomizedSvd finished(RandomizedSvd result) {
  result.U = result.U.contiguous();
  result.Vh = result.Vh.contiguous();
  fix_signs(result.U, result.Vh);
  return result;
}

// Runs a method for tall matrices on A or on its adjoint: the short side is sketched, which takes fewer draws and
// gives A and its adjoint the same factors.
template <typename Method>
RandomizedSvd on_the_tall_side(const Operator& A, const Method& method) {
  const bool wide = A->rows() < A->columns();
  const int64_t before = A->passes();
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
