#include "checks.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <sstream>

#include "squares.hpp"

namespace fastlr {

namespace {

void check_type(at::ScalarType type, const char* caller, const char* name) {
  const auto real = c10::toRealValueType(type);
  TORCH_CHECK_TYPE(real == at::kFloat || real == at::kDouble, caller, ": ", name,
                   " must be float32, float64, complex64 or complex128, got ", type);
}

}  // namespace

void check_operator(const LinearOperator& A, const char* caller) {
  check_type(A.options().dtype().toScalarType(), caller, "A");
}

void check_matrix(const at::Tensor& A, const char* caller, const char* name) {
  check_type(A.scalar_type(), caller, name);
  TORCH_CHECK_TYPE(A.layout() == at::kStrided, caller, ": ", name, " must be a dense matrix, got layout ", A.layout());
  TORCH_CHECK_VALUE(A.dim() == 2, caller, ": ", name, " must have 2 dimensions, got shape ", A.sizes());
}

double largest_magnitude(const at::Tensor& A) {
  if (A.numel() == 0) return 0.0;
  // The larger part of a complex entry is its magnitude to a factor of sqrt(2), without overflow.
  if (A.is_complex()) return largest_magnitude(at::view_as_real(A.resolve_conj()));
  // It would copy what is not contiguous.
  const auto [low, high] = at::aminmax(A.dim() == 2 && A.stride(0) == 1 ? A.t() : A);
  const double least = low.item<double>(), most = high.item<double>();
  if (std::isnan(least) || std::isnan(most)) return std::numeric_limits<double>::quiet_NaN();
  return std::max(std::abs(least), std::abs(most));
}

void check_finite(const at::Tensor& A, const char* caller, const char* name) {
  if (std::isfinite(largest_magnitude(A))) return;
  const auto first = at::isfinite(A).logical_not_().nonzero()[0].to(at::kCPU);
  auto entry = A;
  std::ostringstream index;
  for (int64_t k = 0; k < first.numel(); ++k) {
    const int64_t position = first[k].item<int64_t>();
    entry = entry[position];
    index << (k > 0 ? ", " : "") << position;
  }
  TORCH_CHECK_VALUE(false, caller, ": ", name, " must be finite, got ", entry.item(), " at index (", index.str(), ")");
}

double unit_roundoff(at::ScalarType type) {
  return c10::toRealValueType(type) == at::kDouble ? std::numeric_limits<double>::epsilon() / 2
                                                   : std::numeric_limits<float>::epsilon() / 2;
}

double unit_roundoff(const at::Tensor& A) { return unit_roundoff(A.scalar_type()); }

at::ScalarType double_type(const at::Tensor& A) { return A.is_complex() ? at::kComplexDouble : at::kDouble; }

int scale_exponent(double magnitude) {
  if (magnitude == 0.0) return 0;
  int exponent;
  std::frexp(magnitude, &exponent);
  return -exponent;
}

bool squares_in_range(const at::Tensor& A, double magnitude) {
  const double smallest_normal = c10::toRealValueType(A.scalar_type()) == at::kFloat
                                     ? std::numeric_limits<float>::min()
                                     : std::numeric_limits<double>::min();
  const double low = std::sqrt(smallest_normal) / unit_roundoff(A);
  return magnitude >= low && magnitude <= 1 / low;
}

int exponent_in_range(const at::Tensor& A, double magnitude) {
  return squares_in_range(A, magnitude) ? 0 : scale_exponent(magnitude);
}

at::Tensor scaled(const at::Tensor& A, int exponent) {
  if (exponent == 0) return A;
  if (std::abs(exponent) <= 126) return A * std::ldexp(1.0, exponent);  // in the range of float32
  const int half = exponent / 2;
  return A * std::ldexp(1.0, half) * std::ldexp(1.0, exponent - half);
}

namespace {

// Squares of float32 are in range of a double; those of float64 are where their sum is far from both ends.
constexpr double kLeastSum = 1e-280, kMostSum = 1e280;

double sum_of_squares(const at::Tensor& A) {
  return A.scalar_type() == at::kFloat ? kernels::sum_of_squares(A.const_data_ptr<float>(), A.numel())
                                       : kernels::sum_of_squares(A.const_data_ptr<double>(), A.numel());
}

}  // namespace

double frobenius_norm(const at::Tensor& A) {
  if (A.is_complex() && !A.is_conj()) return frobenius_norm(at::view_as_real(A));
  if (A.is_cpu() && !A.is_complex() && A.is_non_overlapping_and_dense() && !A.is_neg()) {
    const double sum = sum_of_squares(A);
    if (A.scalar_type() == at::kFloat || (sum > kLeastSum && sum < kMostSum)) return std::sqrt(sum);
  }
  const double largest = largest_magnitude(A);
  const int exponent = exponent_in_range(A, largest);
  const auto unit = scaled(A.to(A.is_complex() ? at::kComplexDouble : at::kDouble), exponent);
  return std::ldexp(at::linalg_vector_norm(unit).item<double>(), -exponent);
}

at::Tensor materialized_adjoint(const at::Tensor& A) { return A.is_complex() ? at::conj_physical(A.mT()) : A.mT(); }

at::Tensor squared_magnitude(const at::Tensor& A) {
  return A.is_complex() ? at::view_as_real(A.resolve_conj()).square().sum(-1) : A.square();
}

}  // namespace fastlr
