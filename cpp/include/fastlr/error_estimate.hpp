// How far an approximation is from A, from the products of the difference E with fresh Gaussian vectors.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace fastlr {

// Gaussian vectors behind an estimate.
constexpr int64_t kProbes = 10;
// The probability with which an upper estimate may be too low.
constexpr double kFailure = 0.01;

// The estimate of ‖E‖_F from E * Omega (m x probes), Omega Gaussian: ‖E * Omega‖_F / sqrt(probes). Its square is
// unbiased (Girard, Hutchinson).
double frobenius_estimate(const at::Tensor& probed);

// Below this value chi-squared with an even number of degrees of freedom lies with the given probability, less than
// 0.9999 or so.
double chi_squared_quantile(double probability, int64_t freedom);

// The factor by which an estimate from kProbes vectors falls short of ‖E‖_F with probability `failure` at most:
// sqrt(kProbes / q), q the quantile of chi-squared with kProbes degrees of freedom. An E of rank one is the worst
// case (Roosta-Khorasani, Székely, Ascher, SIAM/ASA J. Uncertainty Quantification 3 (2015)).
double probe_factor(double failure);

struct ErrorEstimate {
  double estimate;  // of ‖E‖_F
  double upper;     // ‖E‖_F is at most this, but for probability `failure`
  double spectral;  // and so is ‖E‖_2
  double failure;   // 0: known from the spectrum
};

// That of E * 2^exponent.
ErrorEstimate scaled(const ErrorEstimate& error, int exponent);

// From E * Omega. The bound of ‖E‖_2 is the largest of the kProbes norms ‖E w‖ times a factor (Halko, Martinsson,
// Tropp, SIAM Review 53 (2011), lemma 4.1).
ErrorEstimate estimate_error(const at::Tensor& probed);

// The same for every matrix of a batch, the squares of which are in range.
std::vector<ErrorEstimate> estimate_errors(const at::Tensor& probed);

// From the norms of the columns of E * Omega, float64 on the CPU.
ErrorEstimate error_of_norms(const at::Tensor& norms);

}  // namespace fastlr
