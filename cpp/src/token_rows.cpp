#include "token_rows.hpp"

#include <ATen/ATen.h>

namespace fastlr {

at::Tensor as_rows(const at::Tensor& X, int64_t width, const at::Tensor& like, const char* caller, const char* name) {
  TORCH_CHECK_VALUE(X.dim() >= 1 && X.size(-1) == width, caller, ": ", name, " must have ", width,
                    " entries in its last dimension, got shape ", X.sizes());
  TORCH_CHECK_TYPE(X.scalar_type() == like.scalar_type(), caller, ": ", name, " must be ", like.scalar_type(), ", got ",
                   X.scalar_type());
  TORCH_CHECK_VALUE(X.device() == like.device(), caller, ": ", name, " must be on ", like.device(), ", got ",
                    X.device());
  return X.reshape({c10::multiply_integers(X.sizes().slice(0, X.dim() - 1)), width}).contiguous();
}

at::DimVector shape_with(const at::Tensor& X, int64_t width) {
  at::DimVector shape(X.sizes());
  shape.back() = width;
  return shape;
}

}  // namespace fastlr
