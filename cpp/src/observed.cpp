#include "observed.hpp"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "checks.hpp"
#include "entry_products.hpp"

#ifdef FASTLR_WITH_CUDA
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace fastlr {
namespace {

// U and V with biases in columns of their own: entries of their product are those of the model.
std::pair<at::Tensor, at::Tensor> with_biases(const RowFactor& U, const RowFactor& V) {
  if (!U.bias) return {U.U, V.U};
  const auto a = U.bias->unsqueeze(1), b = V.bias->unsqueeze(1);
  return {at::cat({U.U, a, at::ones_like(a)}, 1), at::cat({V.U, at::ones_like(b), b}, 1)};
}

template <typename T>
struct Entry {
  int64_t column;
  T value, weight;
};

// By a counting sort. What belongs to an entry is moved together: every place is far from the last one.
template <typename T>
void sort_by_rows(const at::Tensor& rows, const ObservedRows& entries, const ObservedRows& sorted) {
  const int64_t size = rows.numel(), count = sorted.count();
  const auto *row = rows.const_data_ptr<int64_t>(), *columns = entries.columns.const_data_ptr<int64_t>();
  const T* values = entries.values.const_data_ptr<T>();
  const T* weights = entries.weights ? entries.weights->const_data_ptr<T>() : nullptr;
  auto* offsets = sorted.offsets.mutable_data_ptr<int64_t>();
  std::fill_n(offsets, count + 1, 0);
  for (int64_t e = 0; e < size; ++e) ++offsets[row[e] + 1];
  std::partial_sum(offsets, offsets + count + 1, offsets);

  std::vector<int64_t> next(offsets, offsets + count);
  const auto places = std::make_unique_for_overwrite<Entry<T>[]>(size);
  for (int64_t e = 0; e < size; ++e) places[next[row[e]]++] = {columns[e], values[e], weights ? weights[e] : T(1)};
  auto* sorted_columns = sorted.columns.mutable_data_ptr<int64_t>();
  T* sorted_values = sorted.values.mutable_data_ptr<T>();
  T* sorted_weights = sorted.weights ? sorted.weights->mutable_data_ptr<T>() : nullptr;
  for (int64_t e = 0; e < size; ++e) {
    sorted_columns[e] = places[e].column;
    sorted_values[e] = places[e].value;
    if (sorted_weights) sorted_weights[e] = places[e].weight;
  }
}

template <typename T>
void multiply(const ObservedRows& observed, const at::Tensor& U, const at::Tensor& V, const at::Tensor& products) {
  const auto *offsets = observed.offsets.const_data_ptr<int64_t>(),
             *columns = observed.columns.const_data_ptr<int64_t>();
#ifdef FASTLR_WITH_CUDA
  if (U.is_cuda()) {
    const c10::cuda::CUDAGuard guard(U.device());
    kernels::entry_products_cuda<T>(offsets, columns, observed.count(), U.const_data_ptr<T>(), V.const_data_ptr<T>(),
                                    U.size(1), products.mutable_data_ptr<T>(),
                                    c10::cuda::getCurrentCUDAStream().stream());
    return;
  }
#endif
  kernels::entry_products_cpu<T>(offsets, columns, observed.count(), U.const_data_ptr<T>(), V.const_data_ptr<T>(),
                                 U.size(1), products.mutable_data_ptr<T>());
}

void check_device(const at::Tensor& entries) {
#ifdef FASTLR_WITH_CUDA
  if (entries.is_cuda()) return;
#endif
  TORCH_CHECK_VALUE(entries.is_cpu(), "complete: this build of fastlr has no kernel for device ", entries.device(),
                    "; rebuild it where torch and nvcc have CUDA");
}

}  // namespace

ObservedRows observed_rows(const at::Tensor& rows, const at::Tensor& columns, const at::Tensor& values,
                           const std::optional<at::Tensor>& weights, int64_t count, int64_t width) {
  check_device(values);
  const auto row = rows.contiguous(), column = columns.contiguous(), value = values.contiguous();
  const auto weight = weights ? std::optional(weights->contiguous()) : std::nullopt;
  if (row.diff().ge(0).all().item<bool>()) {
    const auto offsets = at::zeros({count + 1}, row.options());
    offsets.narrow(0, 1, count).copy_(at::bincount(row, {}, count).cumsum(0));
    return {offsets, column, value, weight, width};
  }
  if (!row.is_cpu()) {
    const auto order = at::argsort(row, /*stable=*/true);
    return observed_rows(row.index_select(0, order), column.index_select(0, order), value.index_select(0, order),
                         weight ? std::optional(weight->index_select(0, order)) : std::nullopt, count, width);
  }
  ObservedRows observed{
      at::empty({count + 1}, row.options()), at::empty_like(column), at::empty_like(value), {}, width};
  if (weight) observed.weights = at::empty_like(*weight);
  AT_DISPATCH_FLOATING_TYPES(value.scalar_type(), "observed_rows",
                             [&] { sort_by_rows<scalar_t>(row, {{}, column, value, weight, width}, observed); });
  return observed;
}

ObservedRows transposed(const ObservedRows& observed) {
  const auto rows = at::repeat_interleave(observed.offsets.diff());
  return observed_rows(observed.columns, rows, observed.values, observed.weights, observed.width, observed.count());
}

at::Tensor entry_products(const ObservedRows& observed, const at::Tensor& U, const at::Tensor& V) {
  const auto products = at::empty_like(observed.values);
  AT_DISPATCH_FLOATING_TYPES(U.scalar_type(), "entry_products",
                             [&] { multiply<scalar_t>(observed, U.contiguous(), V.contiguous(), products); });
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
