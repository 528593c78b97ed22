#include <fastlr/error_estimate.hpp>

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "checks.hpp"
#include "tall.hpp"

namespace fastlr {
namespace {

// P(chi-squared with kProbes degrees of freedom <= x): a Poisson tail, as kProbes is even.
double chi_squared_cdf(double x) {
  constexpr int64_t half = kProbes / 2;
  double term = std::exp(-x / 2), tail = 0.0;
  for (int64_t i = 1; i < half + 60; ++i) {
    term *= x / 2 / static_cast<double>(i);
    if (i >= half) tail += term;
  }
  return tail;
}

}  // namespace

double frobenius_estimate(const at::Tensor& probed) {
  return frobenius_norm(probed) / std::sqrt(static_cast<double>(probed.size(1)));
}

double probe_factor(double failure) {
  double low = 0.0, high = kProbes;  // the median is below the mean
  for (int halving = 0; halving < 60; ++halving) {
    const double middle = (low + high) / 2;
    (chi_squared_cdf(middle) < failure ? low : high) = middle;
  }
  return std::sqrt(kProbes / low);
}

ErrorEstimate estimate_error(const at::Tensor& probed) {
  const double magnitude = largest_magnitude(probed);
  const int exponent = squares_in_range(probed, magnitude) ? 0 : scale_exponent(magnitude);
  auto error = estimate_errors(scaled(probed, exponent).unsqueeze(0)).front();
  for (double* value : {&error.estimate, &error.upper, &error.spectral}) *value = std::ldexp(*value, -exponent);
  return error;
}

std::vector<ErrorEstimate> estimate_errors(const at::Tensor& probed) {
  static const double factor = probe_factor(kFailure);
  // Every one of the norms falls below ‖E‖_2 / (a sqrt(2 / pi)) with probability 1 / a at most.
  static const double spectral_factor = std::pow(kFailure, -1.0 / kProbes) * std::sqrt(2 / std::numbers::pi);
  const auto columns = at::linalg_vector_norm(probed, 2, at::IntArrayRef(-2), false, wide_type(probed)).to(at::kCPU);
  std::vector<ErrorEstimate> errors;
  for (int64_t i = 0; i < columns.size(0); ++i) {
    const double* norms = columns.const_data_ptr<double>() + i * columns.size(1);
    double sum = 0.0, most = 0.0;
    for (int64_t j = 0; j < columns.size(1); ++j) {
      sum += norms[j] * norms[j];
      most = std::max(most, norms[j]);
    }
    const double estimate = std::sqrt(sum / static_cast<double>(columns.size(1)));
    errors.push_back({estimate, factor * estimate, spectral_factor * most, kFailure});
  }
  return errors;
}

}  // namespace fastlr
