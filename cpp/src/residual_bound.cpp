#include "residual_bound.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include <fastlr/random.hpp>

#include "checks.hpp"

namespace fastlr {

ResidualBound::ResidualBound(Operator A, double tol, int64_t seed)
    : A_(std::move(A)), seed_(seed), u_(unit_roundoff(at::empty({0}, A_->options()))) {
  norm_ = A_->frobenius_norm();
  projected_ = norm_ && tol >= 32 * std::sqrt(u_);
}

ErrorEstimate ResidualBound::operator()(std::optional<double> captured, int64_t width,
                                        const std::function<at::Tensor(const at::Tensor&, const at::Tensor&)>& left) {
  if (projected_ && captured) {
    const double ratio = *norm_ > 0 ? std::min(*captured / *norm_, 1.0) : 1.0;
    // The squares are known to some u of ‖A‖_F^2, as the columns of Q are orthonormal to some sqrt(width) u.
    const double rounding = 8 * std::sqrt(static_cast<double>(width)) * u_;
    const double rest = *norm_ * std::sqrt((1 - ratio) * (1 + ratio) + rounding);
    return {rest, rest, rest, 0.0};
  }
  ++probes_;
  const int64_t column0 = kProbeColumn + probes_ * kProbes;
  const auto omega = gaussian(A_->columns(), kProbes, seed_, column0, A_->options());
  auto error = estimate_error(left(A_->gaussian_matmat(kProbes, seed_, column0), omega));
  error.upper = error.estimate * probe_factor(kFailure / static_cast<double>(probes_ * (probes_ + 1)));
  error.spectral = std::min(error.upper, error.spectral);
  return error;
}

}  // namespace fastlr
