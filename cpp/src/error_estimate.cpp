#include <fastlr/error_estimate.hpp>

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "checks.hpp"

namespace fastlr {
namespace {

// P(chi-squared with an even number of degrees of freedom <= x): a Poisson tail.
double chi_squared_cdf(double x, int64_t freedom) {
  const int64_t half = freedom / 2;
  double term = std::exp(-x / 2), tail = 0.0;
  for (int64_t i = 1; i < 2 * half + 60; ++i) {
    term *= x / 2 / static_cast<double>(i);
    if (i >= half) tail += term;
  }
  return tail;
}

}  // namespace

double frobenius_estimate(const at::Tensor& probed) {
  return frobenius_norm(probed) / std::sqrt(static_cast<double>(probed.size(1)));
}

double chi_squared_quantile(double probability, int64_t freedom) {
  double low = 0.0, high = 4.0 * freedom;
  for (int halving = 0; halving < 60; ++halving) {
    const double middle = (low + high) / 2;
    (chi_squared_cdf(middle, freedom) < probability ? low : high) = middle;
  }
  return low;
}

double probe_factor(double failure) { return std::sqrt(kProbes / chi_squared_quantile(failure, kProbes)); }

ErrorEstimate estimate_error(const at::Tensor& probed) {
  static const double factor = probe_factor(kFailure);
  // Every one of the norms falls below ‖E‖_2 / (a sqrt(2 / pi)) with probability 1 / a at most.
  static const double spectral_factor = std::pow(kFailure, -1.0 / kProbes) * std::sqrt(2 / std::numbers::pi);
  const int exponent = scale_exponent(largest_magnitude(probed));
  const auto squares = squared_magnitude(scaled(probed, exponent)).sum(0, false, at::kDouble);
  const auto norms = squares.to(at::kCPU);
  double sum = 0.0, most = 0.0;
  for (int64_t i = 0; i < norms.numel(); ++i) {
    const double square = norms.const_data_ptr<double>()[i];
    sum += square;
    most = std::max(most, square);
  }
  const double estimate = std::ldexp(std::sqrt(sum / static_cast<double>(norms.numel())), -exponent);
  return {estimate, factor * estimate, std::ldexp(spectral_factor * std::sqrt(most), -exponent), kFailure};
}

}  // namespace fastlr
