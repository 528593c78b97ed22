#include "first_product.hpp"

#include <ATen/ATen.h>

#include <cmath>

#include "checks.hpp"

namespace fastlr {

FirstProduct first_product(const Operator& A, const char* caller,
                           const std::function<at::Tensor(const Operator&)>& multiply) {
  auto product = multiply(A);
  double magnitude = largest_magnitude(product);
  if (squares_in_range(product, magnitude)) return {A, 0, product};

  A->check_finite(caller);
  magnitude = A->largest_magnitude().value_or(magnitude);
  TORCH_CHECK_VALUE(std::isfinite(magnitude), caller, ": the products of A must be finite, got ", magnitude);
  const int exponent = scale_exponent(magnitude);
  if (exponent == 0) return {A, 0, product};
  const auto in_range = scaled(A, exponent);
  return {in_range, exponent, multiply(in_range)};
}

}  // namespace fastlr
