// Random matrices whose entries are functions of (seed, row, column): never stored, made where needed.
#pragma once

#include <ATen/core/Tensor.h>

#include <fastlr/philox.hpp>

namespace fastlr {

using RandomKind = philox::Kind;

RandomKind parse_random_kind(std::string_view name);

// Rows [row0, row0 + out.size(0)) and columns [column0, column0 + out.size(1)) of the random matrix of
// `seed`, written to `out`: float32, float64 or, Gaussian only, complex; CPU or CUDA, unit stride along its rows.
// uniform: (0, 1]; gaussian: N(0, 1), complex: independent parts N(0, 1/2); sign: -1 or +1.
void fill_random(const at::Tensor& out, RandomKind kind, int64_t seed, int64_t row0 = 0, int64_t column0 = 0);

// The window of the Gaussian matrix of `seed` that begins at (row0, column0).
at::Tensor gaussian(int64_t rows, int64_t columns, int64_t seed, int64_t column0, const at::TensorOptions& options,
                    int64_t row0 = 0);

}  // namespace fastlr
