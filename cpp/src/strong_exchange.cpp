#include "strong_exchange.hpp"

#include <ATen/ATen.h>

#include "checks.hpp"

namespace fastlr {

std::optional<Exchange> best_exchange(const at::Tensor& R11, const at::Tensor& T, const at::Tensor& squares, double f) {
  const auto inverse = at::linalg_solve_triangular(R11, at::eye(R11.size(0), R11.options()), /*upper=*/true);
  const auto volume_ratio = squared_magnitude(T) + at::outer(squared_magnitude(inverse).sum(1), squares);
  if (!(volume_ratio.max().item<double>() > f * f)) return std::nullopt;
  const int64_t at = volume_ratio.argmax().item<int64_t>();
  return Exchange{at / T.size(1), at % T.size(1)};
}

int64_t most_exchanges(int64_t chosen) { return 16 + chosen; }

void raise_unsettled(const char* caller, int64_t chosen) {
  TORCH_CHECK_LINALG(false, caller, ": the exchanges did not settle in ", most_exchanges(chosen),
                     "; please report the matrix");
}

}  // namespace fastlr
