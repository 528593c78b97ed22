#include <fastlr/nonnegative_rows.hpp>

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>

#include <cmath>
#include <vector>

#include "checks.hpp"
#include "nonnegative_rows.hpp"

namespace fastlr {
namespace {

constexpr const char* kCaller = "nonnegative_rows";

void check_operand(const at::Tensor& operand, const at::Tensor& X, int64_t rows, const char* name) {
  TORCH_CHECK_VALUE(operand.dim() == 2 && operand.size(0) == rows && operand.size(1) == X.size(1), kCaller, ": ", name,
                    " must have shape (", rows, ", ", X.size(1), "), got ", operand.sizes());
  TORCH_CHECK_TYPE(operand.scalar_type() == X.scalar_type(), kCaller, ": ", name, " must be ", X.scalar_type(),
                   ", got ", operand.scalar_type());
  TORCH_CHECK_VALUE(operand.device() == X.device(), kCaller, ": ", name, " must be on ", X.device(), ", got ",
                    operand.device());
}

NonnegativeRows on_host(const at::Tensor& X, const at::Tensor& G, const at::Tensor& B,
                        const NonnegativeRowsOptions& options) {
  const auto gram = G.to(at::kDouble).contiguous(), right = B.contiguous();
  auto solution = X.clone(at::MemoryFormat::Contiguous);
  std::vector<kernels::RowDescent> descents(X.size(0));
  AT_DISPATCH_FLOATING_TYPES(X.scalar_type(), kCaller, [&] {
    kernels::nonnegative_rows_cpu(gram.const_data_ptr<double>(), right.const_data_ptr<scalar_t>(), X.size(0), X.size(1),
                                  options.penalty, options.passes, options.tol, solution.mutable_data_ptr<scalar_t>(),
                                  descents.data());
  });
  // One after the other, so that the sums do not depend on the number of threads.
  kernels::RowDescent sum{0.0, 0.0, 0.0};
  for (const auto& descent : descents) {
    sum.decrease += descent.decrease;
    sum.before += descent.before;
    sum.after += descent.after;
  }
  return {solution, sum.decrease, std::sqrt(sum.before), std::sqrt(sum.after)};
}

// The same steps for all rows at once.
NonnegativeRows by_tensors(const at::Tensor& X, const at::Tensor& G, const at::Tensor& B,
                           const NonnegativeRowsOptions& options) {
  const auto gram = G.to(at::kDouble), squares = gram.diagonal(), seen = squares > 0;
  const auto roots = at::where(seen, squares, 0).sqrt(), inverse_roots = at::where(seen, 1 / roots, 0);
  const auto reciprocals = at::where(seen, 1 / squares, 0);
  auto x = at::where(seen, X.to(at::kDouble).clamp_min(0), 0);
  auto gradient = at::matmul(x, gram) - B.to(at::kDouble) + options.penalty;
  const auto residual = [&] {
    return at::linalg_vector_norm(at::minimum(x * roots, gradient * inverse_roots)).item<double>();
  };
  const double before = residual();
  const auto total = at::zeros({X.size(0)}, x.options());
  auto active = at::ones({X.size(0)}, x.options().dtype(at::kBool));
  at::Tensor enough;
  for (int64_t count = 0; count < options.passes; ++count) {
    const auto decrease = at::zeros_like(total);
    for (int64_t j = 0; j < x.size(1); ++j) {
      auto entry = x.select(1, j);
      const auto slope = gradient.select(1, j);
      const auto next = at::where(active, (entry - slope * reciprocals[j]).clamp_min(0), entry), step = next - entry;
      decrease.sub_(step * (slope + 0.5 * squares[j] * step));
      entry.copy_(next);
      gradient.addr_(step, gram.select(0, j));
    }
    total.add_(decrease);
    if (count == 0) enough = options.tol * decrease;
    active = active.logical_and(decrease > enough);
    if (!active.any().item<bool>()) break;
  }
  return {x.to(X.scalar_type()), total.sum().item<double>(), before, residual()};
}

}  // namespace

NonnegativeRows nonnegative_rows(const at::Tensor& X, const at::Tensor& G, const at::Tensor& B,
                                 const NonnegativeRowsOptions& options) {
  check_matrix(X, kCaller, "X");
  TORCH_CHECK_TYPE(!X.is_complex(), kCaller, ": X must be real, got ", X.scalar_type());
  check_operand(G, X, X.size(1), "G");
  check_operand(B, X, X.size(0), "B");
  TORCH_CHECK_VALUE(options.penalty >= 0 && std::isfinite(options.penalty), kCaller,
                    ": penalty must be non-negative and finite, got ", options.penalty);
  TORCH_CHECK_VALUE(options.passes >= 0, kCaller, ": passes must be non-negative, got ", options.passes);
  TORCH_CHECK_VALUE(options.tol >= 0, kCaller, ": tol must be non-negative, got ", options.tol);
  return X.is_cpu() ? on_host(X, G, B, options) : by_tensors(X, G, B, options);
}

}  // namespace fastlr
