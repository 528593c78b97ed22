#include "row_systems.hpp"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>

#include <fastlr/completion.hpp>

#include "checks.hpp"

#ifdef FASTLR_WITH_CUDA
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace fastlr {
namespace {

template <typename T>
const T* data_of(const std::optional<at::Tensor>& tensor) {
  return tensor ? tensor->const_data_ptr<T>() : nullptr;
}

template <typename T>
kernels::RowSystems<T> systems_of(const ObservedRows& observed, const std::optional<at::Tensor>& shifts,
                                  const Ridge& ridge) {
  return {observed.count(),
          observed.offsets.const_data_ptr<int64_t>(),
          observed.columns.const_data_ptr<int64_t>(),
          observed.values.const_data_ptr<T>(),
          data_of<T>(observed.weights),
          data_of<T>(shifts),
          ridge.rows.const_data_ptr<T>(),
          ridge.unknowns.const_data_ptr<T>()};
}

// With a bias the factor has a column of ones, the last.
at::Tensor with_ones(const RowFactor& V) {
  return V.bias ? at::cat({V.U, at::ones_like(*V.bias).unsqueeze(1)}, 1) : V.U;
}

RowFactor split(const at::Tensor& solutions, bool bias) {
  const int64_t k = solutions.size(1) - bias;
  RowFactor result{solutions.narrow(1, 0, k).contiguous(), {}};
  if (bias) result.bias = solutions.select(1, k).contiguous();
  return result;
}

// The shortest least-squares solution of a row whose normal equations are singular to rounding.
at::Tensor shortest(const ObservedRows& observed, int64_t row, const RowFactor& V, const Ridge& ridge) {
  const int64_t first = observed.offsets[row].item<int64_t>(), last = observed.offsets[row + 1].item<int64_t>();
  const auto part = [&](const at::Tensor& entries) { return entries.narrow(0, first, last - first); };
  const auto columns = part(observed.columns);
  auto X = V.U.index_select(0, columns).to(at::kDouble), y = part(observed.values).to(at::kDouble);
  if (V.bias) {
    X = at::cat({X, at::ones({X.size(0), 1}, X.options())}, 1);
    y = y - V.bias->index_select(0, columns).to(at::kDouble);
  }
  if (observed.weights) {
    const auto roots = part(*observed.weights).to(at::kDouble).sqrt();
    X = X * roots.unsqueeze(1);
    y = y * roots;
  }
  const auto penalties = (ridge.rows[row] * ridge.unknowns).to(at::kDouble).sqrt();
  const double rounding = 4 * static_cast<double>(X.size(1)) * unit_roundoff(V.U);
  return at::mv(at::linalg_pinv(at::cat({X, at::diag(penalties)}), rounding), at::cat({y, at::zeros_like(penalties)}))
      .to(V.U.scalar_type());
}

template <typename T>
void solve(const kernels::RowSystems<T>& systems, const at::Tensor& factor, const RowFactor& result,
           const at::Tensor& definite) {
  const int64_t k = factor.size(1);
  T* intercepts = result.bias ? result.bias->mutable_data_ptr<T>() : nullptr;
#ifdef FASTLR_WITH_CUDA
  if (factor.is_cuda()) {
    const c10::cuda::CUDAGuard guard(factor.device());
    kernels::solve_rows_cuda<T>(systems, factor.const_data_ptr<T>(), k, result.U.mutable_data_ptr<T>(), intercepts,
                                definite.mutable_data_ptr<bool>(), c10::cuda::getCurrentCUDAStream().stream());
    return;
  }
#endif
  kernels::solve_rows_cpu<T>(systems, factor.const_data_ptr<T>(), k, result.U.mutable_data_ptr<T>(), intercepts,
                             definite.mutable_data_ptr<bool>());
}

template <typename T>
void descend(const kernels::RowSystems<T>& systems, const at::Tensor& factor, const RowOptions& options,
             const at::Tensor& solutions) {
#ifdef FASTLR_WITH_CUDA
  if (factor.is_cuda()) {
    const c10::cuda::CUDAGuard guard(factor.device());
    kernels::solve_rows_by_gradients_cuda<T>(systems, factor.const_data_ptr<T>(), factor.size(1), options.tolerance,
                                             options.steps, solutions.mutable_data_ptr<T>(),
                                             c10::cuda::getCurrentCUDAStream().stream());
    return;
  }
#endif
  kernels::solve_rows_by_gradients_cpu<T>(systems, factor.const_data_ptr<T>(), factor.size(1), options.tolerance,
                                          options.steps, solutions.mutable_data_ptr<T>());
}

RowFactor solve_by_cholesky(const ObservedRows& observed, const RowFactor& V, const Ridge& ridge) {
  const int64_t count = observed.count(), k = V.U.size(1);
  const auto factor = V.U.contiguous();
  RowFactor result{at::empty({count, k}, factor.options()), {}};
  if (V.bias) result.bias = at::empty({count}, factor.options());
  const auto definite = at::empty({count}, factor.options().dtype(at::kBool));
  AT_DISPATCH_FLOATING_TYPES(factor.scalar_type(), "solve_rows", [&] {
    solve<scalar_t>(systems_of<scalar_t>(observed, V.bias, ridge), factor, result, definite);
  });
  const auto open = definite.logical_not().nonzero().squeeze(1);
  for (int64_t i = 0; i < open.size(0); ++i) {
    check_interrupt();
    const int64_t row = open[i].item<int64_t>();
    const auto solution = shortest(observed, row, V, ridge);
    result.U[row].copy_(solution.narrow(0, 0, k));
    if (result.bias) (*result.bias)[row].copy_(solution[k]);
  }
  return result;
}

// Rows as long as the vectors of the kernel; zeros added to them stay zero.
at::Tensor padded(const at::Tensor& rows) {
  const int64_t k = rows.size(-1), added = (k + kernels::kLine - 1) / kernels::kLine * kernels::kLine - k;
  return at::constant_pad_nd(rows, {0, added}).contiguous();
}

RowFactor solve_by_gradients(const ObservedRows& observed, const RowFactor& V, const Ridge& ridge,
                             const RowOptions& options, const at::Tensor& start) {
  const auto factor = padded(with_ones(V)), solutions = padded(start);
  const Ridge penalties{ridge.rows, padded(ridge.unknowns)};
  AT_DISPATCH_FLOATING_TYPES(factor.scalar_type(), "solve_rows", [&] {
    descend<scalar_t>(systems_of<scalar_t>(observed, V.bias, penalties), factor, options, solutions);
  });
  return split(solutions.narrow(1, 0, start.size(1)), V.bias.has_value());
}

}  // namespace

Ridge ridge_of(const ObservedRows& observed, int64_t rank, double ridge, std::optional<double> bias_ridge,
               bool weighted) {
  const auto type = observed.values.options();
  auto unknowns = at::full({rank}, ridge, type);
  if (bias_ridge) unknowns = at::cat({unknowns, at::full({1}, *bias_ridge, type)});
  if (!weighted) return {at::ones({observed.count()}, type), unknowns};
  const auto counts = observed.offsets.diff();
  if (!observed.weights) return {counts.to(type.dtype().toScalarType()), unknowns};
  const auto sums = at::zeros({observed.count()}, type.dtype(at::kDouble));
  sums.index_add_(0, at::repeat_interleave(counts), observed.weights->to(at::kDouble));
  return {sums.to(observed.values.scalar_type()), unknowns};
}

RowFactor solve_rows(const ObservedRows& observed, const RowFactor& V, const Ridge& ridge, const RowOptions& options,
                     const RowFactor* start) {
  if (options.solver == RowSolver::kCholesky) return solve_by_cholesky(observed, V, ridge);
  const int64_t k = V.U.size(1) + V.bias.has_value();
  const auto begin = !start        ? at::zeros({observed.count(), k}, V.U.options())
                     : start->bias ? at::cat({start->U, start->bias->unsqueeze(1)}, 1)
                                   : start->U;
  return solve_by_gradients(observed, V, ridge, options, begin);
}

}  // namespace fastlr
