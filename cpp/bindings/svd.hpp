// The truncated SVDs as Python calls them, for tensors (ops.cpp) and for operators (module.cpp).
#pragma once

#include <ATen/ATen.h>

#include <string_view>
#include <tuple>

#include <fastlr/randomized_svd.hpp>

namespace fastlr::bindings {

// U, S, Vh, info
using Factors = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

// What Python turns into `.info`, in one small float64 tensor: fake implementations cannot return numbers.
inline at::Tensor numbers(const std::vector<SvdOutcome>& outcomes) {
  constexpr int64_t fields = 9;
  auto info = at::empty({static_cast<int64_t>(outcomes.size()), fields}, at::kDouble);
  double* next = info.mutable_data_ptr<double>();
  for (const auto& r : outcomes)
    for (const double number : {static_cast<double>(r.passes), r.error.estimate, r.error.upper, r.error.spectral,
                                r.error.failure, static_cast<double>(r.power_iters), static_cast<double>(r.converged),
                                static_cast<double>(r.method), static_cast<double>(r.lowered)})
      *next++ = number;
  return info;
}

inline Factors factors(const RandomizedSvd& r) { return {r.U, r.S, r.Vh, numbers({r}).squeeze(0)}; }

inline SvdMethod parse_method(std::string_view name) {
  if (name == "subspace") return SvdMethod::subspace;
  if (name == "krylov") return SvdMethod::krylov;
  if (name == "single_pass") return SvdMethod::single_pass;
  if (name == "nystrom") return SvdMethod::nystrom;
  TORCH_CHECK_VALUE(false,
                    "randomized_svd: method must be 'auto', 'subspace', 'krylov', 'single_pass' or 'nystrom', "
                    "got '",
                    name, "'");
}

inline Precision parse_precision(std::string_view name) {
  if (name == "auto") return Precision::automatic;
  if (name == "full") return Precision::full;
  if (name == "lowest") return Precision::lowest;
  TORCH_CHECK_VALUE(false, "randomized_svd: precision must be 'auto' or 'full', got '", name, "'");
}

inline Factors svd(const std::shared_ptr<const LinearOperator>& A, int64_t rank, int64_t oversample,
                   std::optional<int64_t> power_iters, std::string_view method, std::string_view precision, bool center,
                   int64_t seed) {
  return factors(randomized_svd(center ? centered(A) : A, {rank, oversample, power_iters, seed, parse_method(method),
                                                           parse_precision(precision)}));
}

inline Factors svd_to_tolerance(const std::shared_ptr<const LinearOperator>& A, double tol,
                                std::optional<int64_t> most_rank, int64_t oversample,
                                std::optional<int64_t> power_iters, bool center, int64_t seed) {
  return factors(adaptive_svd(center ? centered(A) : A, {tol, most_rank, oversample, power_iters, seed}));
}

}  // namespace fastlr::bindings
