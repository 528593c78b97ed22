// The routines of Hermitian matrices as Python calls them.
#pragma once

#include <ATen/ATen.h>

#include <array>
#include <memory>
#include <optional>
#include <tuple>

#include <fastlr/hermitian.hpp>

namespace fastlr::bindings {

// values, vectors, residuals, numbers of `.info`
using EigenpairTensors = std::tuple<at::Tensor, at::Tensor, std::optional<at::Tensor>, std::array<double, 8>>;

inline EigenpairTensors eigenpairs(const Eigenpairs& r) {
  return {r.values,
          r.vectors,
          r.residuals.defined() ? std::optional(r.residuals) : std::nullopt,
          {static_cast<double>(r.method), static_cast<double>(r.passes), r.error.upper, r.error.estimate,
           r.error.failure, r.error.spectral, static_cast<double>(r.blocks), static_cast<double>(r.converged)}};
}

inline EigenpairTensors nystrom(const std::shared_ptr<const LinearOperator>& A, int64_t rank, int64_t oversample,
                                int64_t seed) {
  return eigenpairs(fastlr::nystrom(A, rank, oversample, seed));
}

inline EigenpairTensors randomized_eigh(const std::shared_ptr<const LinearOperator>& A, int64_t rank,
                                        int64_t oversample, std::optional<int64_t> power_iters, int64_t seed) {
  return eigenpairs(fastlr::randomized_eigh(A, rank, oversample, power_iters, seed));
}

}  // namespace fastlr::bindings
