// Steps that the algorithms for observed entries share.
#pragma once

#include <fastlr/completion.hpp>

namespace fastlr {

// The same entries with other values.
ObservedRows with_values(ObservedRows observed, const at::Tensor& values);

// An even exponent that brings the squares of values into range, so that factors can be scaled by half of it.
int even_exponent(const at::Tensor& values);

}  // namespace fastlr
