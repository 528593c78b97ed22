// Whether a growing approximation meets a tolerance.
#pragma once

#include <functional>
#include <optional>

#include <fastlr/error_estimate.hpp>
#include <fastlr/linear_operator.hpp>

namespace fastlr {

// Where the columns of probes begin in the Gaussian matrix of a seed: far beyond those of range finders.
constexpr int64_t kProbeColumn = int64_t{1} << 30;

// Bounds ‖A - Q QᴴA‖_F from above. The projected norm costs nothing; where it would cancel, or ‖A‖_F is not known, a
// probe with Gaussian vectors that nothing before depends on. The failures of all probes add up to kFailure.
class ResidualBound {
 public:
  ResidualBound(Operator A, double tol, int64_t seed);

  // `captured` is ‖QᴴA‖_F, for `width` columns of Q, nothing for approximations that are none of this form; left(Y,
  // Omega) what the approximation leaves of Y = A Omega.
  ErrorEstimate operator()(std::optional<double> captured, int64_t width,
                           const std::function<at::Tensor(const at::Tensor&, const at::Tensor&)>& left);

  // ‖A‖_F where it is known but for rounding.
  const std::optional<double>& norm() const { return norm_; }

 private:
  Operator A_;
  int64_t seed_, probes_ = 0;
  double u_;
  std::optional<double> norm_;
  bool projected_;
};

}  // namespace fastlr
