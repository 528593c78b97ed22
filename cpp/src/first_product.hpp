// The first product with A, which shows whether A is finite and whether its squares stay in range.
#pragma once

#include <functional>

#include <fastlr/linear_operator.hpp>

namespace fastlr {

struct FirstProduct {
  Operator A;  // times 2^exponent
  int exponent;
  at::Tensor product;  // with that
};

// Raises ValueError in the name of the caller where A is not finite.
FirstProduct first_product(const Operator& A, const char* caller,
                           const std::function<at::Tensor(const Operator&)>& multiply);

}  // namespace fastlr
