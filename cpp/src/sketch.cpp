#include <fastlr/sketch.hpp>

#include <ATen/ATen.h>

#include <algorithm>

#include "checks.hpp"

namespace fastlr {
namespace {

// Rows of Omega made at a time: few megabytes of it, which the product finds in the cache (a GPU needs more at a
// time to be busy). A block is a whole number of Philox row groups.
int64_t block_rows(const at::Tensor& X, int64_t columns) {
  const int64_t bytes = X.is_cpu() ? 4 << 20 : 64 << 20;
  constexpr int64_t group = 4;
  const int64_t rows = bytes / std::max<int64_t>(1, columns * X.element_size());
  return std::max<int64_t>(64, rows / group * group);
}

}  // namespace

at::Tensor gaussian_product(const at::Tensor& X, int64_t rows, int64_t columns, int64_t seed, bool transposed,
                            int64_t column0) {
  return random_product(X, RandomKind::gaussian, rows, columns, seed, transposed, column0, 0);
}

at::Tensor random_product(const at::Tensor& X, RandomKind kind, int64_t rows, int64_t columns, int64_t seed,
                          bool transposed, int64_t column0, int64_t row0) {
  check_matrix(X, "gaussian_product", "X");
  TORCH_CHECK_VALUE(rows >= 0 && columns >= 0, "gaussian_product: rows and columns must be non-negative, got ", rows,
                    " and ", columns);
  TORCH_CHECK_VALUE(X.size(1) == (transposed ? columns : rows), "gaussian_product: X must have ",
                    transposed ? columns : rows, " columns to match the random matrix, got shape ", X.sizes());
  const int64_t step = std::min(rows, block_rows(X, columns));
  const auto block = at::empty({step, columns}, X.options());
  auto product = transposed ? at::empty({X.size(0), rows}, X.options()) : at::zeros({X.size(0), columns}, X.options());
  for (int64_t row = 0; row < rows; row += step) {
    const int64_t height = std::min(step, rows - row);
    const auto omega = block.narrow(0, 0, height);
    fill_random(omega, kind, seed, row0 + row, column0);
    if (transposed) {
      product.narrow(1, row, height).copy_(at::mm(X, omega.t()));
    } else {
      product.addmm_(X.narrow(1, row, height), omega);
    }
  }
  return product;
}

}  // namespace fastlr
