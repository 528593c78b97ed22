// The inputs of a layer: X (... x width), as rows of a matrix.
#pragma once

#include <ATen/core/Tensor.h>

namespace fastlr {

// The rows of X, contiguous, once X is seen to have that many entries in its last dimension and the type and the
// device of `like`, a weight of the layer.
at::Tensor as_rows(const at::Tensor& X, int64_t width, const at::Tensor& like, const char* caller, const char* name);

// The shape of X with another last dimension.
at::DimVector shape_with(const at::Tensor& X, int64_t width);

}  // namespace fastlr
