// Products with a random matrix that is never stored.
#pragma once

#include <ATen/core/Tensor.h>

#include <fastlr/random.hpp>

namespace fastlr {

// X * Omega (transposed = false; X is m x rows) or X * Omega^T (transposed = true; X is m x columns),
// where Omega is the rows x columns window at column `column0` of the Gaussian matrix of `seed` (fastlr/random.hpp).
// Cost: 2 m rows columns flops, one pass over X, and rows * columns draws.
at::Tensor gaussian_product(const at::Tensor& X, int64_t rows, int64_t columns, int64_t seed, bool transposed = false,
                            int64_t column0 = 0);

// The same for the window at (row0, column0) of a random matrix of any kind.
at::Tensor random_product(const at::Tensor& X, RandomKind kind, int64_t rows, int64_t columns, int64_t seed,
                          bool transposed, int64_t column0, int64_t row0);

}  // namespace fastlr
