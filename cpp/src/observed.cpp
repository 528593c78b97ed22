#include "observed.hpp"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>

#include <cmath>
#include <utility>

#include "checks.hpp"
#include "csr_transpose.hpp"
#include "entry_products.hpp"

namespace fastlr {
namespace {

// U and V with biases in columns of their own: entries of their product are those of the model.
std::pair<at::Tensor, at::Tensor> with_biases(const RowFactor& U, const RowFactor& V) {
  if (!U.bias) return {U.U, V.U};
  const auto a = U.bias->unsqueeze(1), b = V.bias->unsqueeze(1);
  return {at::cat({U.U, a, at::ones_like(a)}, 1), at::cat({V.U, at::ones_like(b), b}, 1)};
}

}  // namespace

ObservedRows observed_rows(const at::Tensor& rows, const at::Tensor& columns, const at::Tensor& values,
                           const std::optional<at::Tensor>& weights, int64_t count, int64_t width) {
  const int64_t entries = rows.numel();
  const auto row = rows.contiguous(), place = at::arange(entries, rows.options());
  const auto offsets = at::empty({count + 1}, rows.options());
  const auto order = at::empty_like(row), unused = at::empty_like(row);
  // One row of all entries, whose transpose has them by what was its columns.
  const int64_t starts[] = {0, entries};
  kernels::csr_transpose<int64_t, int64_t>(
      {1, count, starts, row.const_data_ptr<int64_t>(), place.const_data_ptr<int64_t>()},
      offsets.mutable_data_ptr<int64_t>(), unused.mutable_data_ptr<int64_t>(), order.mutable_data_ptr<int64_t>());
  ObservedRows observed{offsets, columns.index_select(0, order), values.index_select(0, order), {}, width};
  if (weights) observed.weights = weights->index_select(0, order);
  return observed;
}

ObservedRows transposed(const ObservedRows& observed) {
  const auto rows = at::repeat_interleave(observed.offsets.diff());
  return observed_rows(observed.columns, rows, observed.values, observed.weights, observed.width, observed.count());
}

at::Tensor entry_products(const ObservedRows& observed, const at::Tensor& U, const at::Tensor& V) {
  const auto left = U.contiguous(), right = V.contiguous();
  const auto products = at::empty_like(observed.values);
  AT_DISPATCH_FLOATING_TYPES(U.scalar_type(), "entry_products", [&] {
    kernels::entry_products_cpu<scalar_t>(observed.offsets.const_data_ptr<int64_t>(),
                                          observed.columns.const_data_ptr<int64_t>(), observed.count(),
                                          left.const_data_ptr<scalar_t>(), right.const_data_ptr<scalar_t>(),
                                          left.size(1), products.mutable_data_ptr<scalar_t>());
  });
  return products;
}

double Squares::root_mean() const { return weight > 0 ? std::sqrt(sum / weight) : 0; }

Squares squares_left(const ObservedRows& observed, const RowFactor& U, const RowFactor& V) {
  const auto [left, right] = with_biases(U, V);
  auto rest = (observed.values - entry_products(observed, left, right)).square_();
  const double weight = observed.weights ? observed.weights->sum(at::kDouble).item<double>()
                                         : static_cast<double>(observed.values.numel());
  if (observed.weights) rest.mul_(*observed.weights);
  return {rest.sum(at::kDouble).item<double>(), weight};
}

ObservedRows with_values(ObservedRows observed, const at::Tensor& values) {
  observed.values = values;
  return observed;
}

int even_exponent(const at::Tensor& values) {
  const int exponent = exponent_in_range(values, largest_magnitude(values));
  return exponent % 2 == 0 ? exponent : exponent + 1;
}

}  // namespace fastlr
