#include <fastlr/tucker.hpp>

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include <fastlr/linear_operator.hpp>
#include <fastlr/orthonormalize.hpp>
#include <fastlr/random.hpp>

#include "checks.hpp"
#include "tensor_rows.hpp"
#include "tucker_parts.hpp"

namespace fastlr {
namespace {

// The entries in the order of each mode.
class SparseTensor {
 public:
  SparseTensor(const at::Tensor& indices, const at::Tensor& values, std::vector<int64_t> sizes)
      : indices_(indices), values_(values), sizes_(std::move(sizes)) {
    for (int64_t mode = 0; mode < dimensions(); ++mode) {
      const auto index = indices_[mode];
      order_.push_back(at::argsort(index, /*stable=*/true, /*dim=*/0, /*descending=*/false));
      auto offsets = at::zeros({size(mode) + 1}, index.options());
      offsets.narrow(0, 1, size(mode)).copy_(at::bincount(index, {}, size(mode)).cumsum(0));
      offsets_.push_back(offsets);
      check_interrupt();
    }
  }

  int64_t dimensions() const { return static_cast<int64_t>(sizes_.size()); }
  int64_t size(int64_t mode) const { return sizes_[static_cast<size_t>(mode)]; }
  const at::Tensor& values() const { return values_; }

  // X times the adjoints of all other factors, unfolded along the mode: n x the product of the other ranks.
  at::Tensor rows(int64_t mode, const std::vector<at::Tensor>& factors) const {
    check_interrupt();
    return values_.scalar_type() == at::kFloat ? rows_of<float>(mode, factors) : rows_of<double>(mode, factors);
  }

 private:
  template <typename T>
  at::Tensor rows_of(int64_t mode, const std::vector<at::Tensor>& factors) const {
    kernels::TensorRows<T> rows{offsets_[static_cast<size_t>(mode)].const_data_ptr<int64_t>(),
                                order_[static_cast<size_t>(mode)].const_data_ptr<int64_t>(),
                                size(mode),
                                values_.const_data_ptr<T>(),
                                {},
                                {},
                                {}};
    int64_t width = 1;
    for (int64_t other = 0; other < dimensions(); ++other) {
      if (other == mode) continue;
      const auto& F = factors[static_cast<size_t>(other)];
      rows.indices.push_back(indices_.const_data_ptr<int64_t>() + other * indices_.size(1));
      rows.factors.push_back(F.const_data_ptr<T>());
      rows.ranks.push_back(F.size(1));
      width *= F.size(1);
    }
    const auto out = at::empty({size(mode), width}, values_.options());
    kernels::tensor_rows_cpu(rows, out.mutable_data_ptr<T>());
    return out;
  }

  at::Tensor indices_, values_;
  std::vector<int64_t> sizes_;
  std::vector<at::Tensor> order_, offsets_;
};

// Every factor anew, one after the other, and the core.
at::Tensor sweep(const SparseTensor& X, std::vector<at::Tensor>& factors) {
  at::Tensor core;
  const int64_t last = X.dimensions() - 1;
  for (int64_t mode = 0; mode <= last; ++mode) {
    auto& U = factors[static_cast<size_t>(mode)];
    const auto Y = X.rows(mode, factors);
    U = leading_vectors(Y, 0, U).contiguous();
    if (mode == last) core = at::mm(U.t(), Y);
  }
  std::vector<int64_t> sizes{core.size(0)};
  for (int64_t mode = 0; mode < last; ++mode) sizes.push_back(factors[static_cast<size_t>(mode)].size(1));
  return core.view(sizes).movedim(0, -1).contiguous();
}

}  // namespace

Tucker sparse_tucker(const at::Tensor& indices, const at::Tensor& values, const std::vector<int64_t>& sizes,
                     const std::vector<int64_t>& ranks, int64_t most_sweeps, int64_t seed) {
  const int exponent = scale_exponent(frobenius_norm(values));
  const SparseTensor X(indices.contiguous(), scaled(values, exponent).contiguous(), sizes);
  const double size = frobenius_norm(X.values()), total = size * size;
  std::vector<at::Tensor> factors;
  std::vector<int64_t> modes;
  for (int64_t mode = 0; mode < X.dimensions(); ++mode) {
    modes.push_back(mode);
    factors.push_back(
        orthonormalize(gaussian(X.size(mode), ranks[static_cast<size_t>(mode)], seed + mode, 0, values.options())));
  }
  // From random factors the first sweep is a sketch of every mode.
  at::Tensor core = sweep(X, factors);
  const double start = std::sqrt(std::max(total - energy(core), 0.0));
  auto done = sweep_to_the_end([&] { return sweep(X, factors); }, core, total, most_sweeps, kSweepGain);
  done.errors.insert(done.errors.begin(), start);
  canonical(core, modes, factors);
  // Of less than this ‖X‖² - ‖core‖² says nothing: the error is at most that.
  const double error = std::sqrt(std::max(total - energy(core), unit_roundoff(values) * total));
  done.errors.back() = error;
  return unscaled({core, factors, size, error, done.errors, done.converged}, exponent);
}

}  // namespace fastlr
