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

ErrorEstimate scaled(const ErrorEstimate& error, int exponent) {
  return {std::ldexp(error.estimate, exponent), std::ldexp(error.upper, exponent), std::ldexp(error.spectral, exponent),
          error.failure};
}

ErrorEstimate estimate_error(const at::Tensor& probed) {
  const double magnitude = largest_magnitude(probed);
  const int exponent = exponent_in_range(probed, magnitude);
  return scaled(estimate_errors(scaled(probed, exponent).unsqueeze(0)).front(), -exponent);
}

std::vector<ErrorEstimate> estimate_errors(const at::Tensor& probed) {
  const auto norms = at::linalg_vector_norm(probed, 2, at::IntArrayRef(-2), false, double_type(probed)).to(at::kCPU);
  std::vector<ErrorEstimate> errors;
  for (const auto& one : norms.unbind()) errors.push_back(error_of_norms(one));
  return errors;
}

ErrorEstimate error_of_norms(const at::Tensor& norms) {
  static const double factor = probe_factor(kFailure);
  // Every one of the norms falls below ‖E‖_2 / (a sqrt(2 / pi)) with probability 1 / a at most.
  static const double spectral_factor = std::pow(kFailure, -1.0 / kProbes) * std::sqrt(2 / std::numbers::pi);
  const auto columns = norms.contiguous();
  double sum = 0.0, most = 0.0;
  for (int64_t j = 0; j < columns.numel(); ++j) {
    const double norm = columns.const_data_ptr<double>()[j];
    sum += norm * norm;
    most = std::max(most, norm);
  }
  const double estimate = std::sqrt(sum / static_cast<double>(columns.numel()));
  return {estimate, factor * estimate, spectral_factor * most, kFailure};
}

}  // namespace fastlr
