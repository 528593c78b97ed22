// The interpolative decomposition as Python calls it, for tensors (ops.cpp) and for operators (module.cpp).
#pragma once

#include <ATen/ATen.h>

#include <memory>
#include <optional>
#include <tuple>

#include <fastlr/interpolative.hpp>

#include "batches.hpp"

namespace fastlr::bindings {

// indices, coefficients, info
using Interpolated = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

constexpr int64_t kInterpolativeNumbers = 5;

inline at::Tensor numbers(const Interpolative& r) {
  return at::tensor({static_cast<double>(r.passes), r.error.estimate, r.error.upper, r.error.failure,
                     static_cast<double>(r.converged)},
                    at::kDouble);
}

inline Interpolated interpolative(const std::shared_ptr<const LinearOperator>& A, std::optional<int64_t> rank,
                                  std::optional<double> tol, bool of_rows, int64_t seed) {
  const auto r = fastlr::interpolative(A, {rank, tol, seed, of_rows});
  return {r.indices, r.coefficients, numbers(r)};
}

// Of a batch, with its leading dimensions.
inline Interpolated interpolative_batch(const at::Tensor& A, int64_t rank, bool of_rows, int64_t seed) {
  const auto flat = flattened(A);
  const auto results = fastlr::interpolative_batch(flat, {rank, {}, seed, of_rows});
  const int64_t count = flat.size(0), m = flat.size(1), n = flat.size(2);
  const auto indices = at::empty({count, rank}, A.options().dtype(at::kLong));
  const auto coefficients = at::empty({count, of_rows ? m : rank, of_rows ? rank : n}, A.options());
  const auto info = at::empty({count, kInterpolativeNumbers}, at::kDouble);
  for (int64_t i = 0; i < count; ++i) {
    indices[i].copy_(results[i].indices);
    coefficients[i].copy_(results[i].coefficients);
    info[i].copy_(numbers(results[i]));
  }
  const auto batch = batch_of(A);
  return {unflattened(indices, batch), unflattened(coefficients, batch), unflattened(info, batch)};
}

}  // namespace fastlr::bindings
