// Bases that grow.
#pragma once

#include <ATen/core/Tensor.h>

namespace fastlr {

// As many columns as Y has, orthonormal and orthogonal to the orthonormal columns of `basis`; with these their span
// holds Y, of any rank and size. What the basis has of Y is removed from it already, but for rounding. What Y lacks is
// drawn at random, from column `drawn` on, which advances: a completion that is the same every time would be one that
// the basis already has.
at::Tensor orthonormal_beside(const at::Tensor& basis, const at::Tensor& Y, int64_t& drawn);

}  // namespace fastlr
