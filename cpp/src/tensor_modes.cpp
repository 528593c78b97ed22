#include "tensor_modes.hpp"

#include <ATen/ATen.h>

#include <algorithm>

#include <fastlr/linear_operator.hpp>

namespace fastlr {
namespace {

// Entries of a block: enough for a matrix product at full speed, few enough for the cache.
constexpr int64_t kBlock = int64_t{1} << 18;
// Matrix products with fewer columns than this lose more than copying into wider ones costs.
constexpr int64_t kNarrow = 64;
// Entries of the products that are added up at a time.
constexpr int64_t kProducts = int64_t{1} << 22;

}  // namespace

at::Tensor around(const at::Tensor& X, int64_t mode) {
  const auto sizes = X.sizes();
  return X.view(
      {c10::multiply_integers(sizes.slice(0, mode)), sizes[mode], c10::multiply_integers(sizes.slice(mode + 1))});
}

at::Tensor mode_product(const at::Tensor& X, int64_t mode, const at::Tensor& A) {
  check_interrupt();
  const auto V = around(X, mode);
  const int64_t before = V.size(0), n = V.size(1), after = V.size(2), p = A.size(0);
  auto sizes = X.sizes().vec();
  sizes[mode] = p;
  if (before == 1) return at::mm(A, V[0]).view(sizes);
  if (after == 1) return at::mm(V.squeeze(2), A.t()).view(sizes);
  return at::bmm(A.expand({before, p, n}), V).view(sizes);
}

at::Tensor unfolding(const at::Tensor& X, int64_t mode) {
  return around(X, mode).permute({1, 0, 2}).reshape({X.size(mode), -1});
}

at::Tensor unfolding_product(const at::Tensor& X, int64_t mode, const at::Tensor& Y) {
  check_interrupt();
  const auto V = around(X, mode);
  const int64_t before = V.size(0), n = V.size(1), after = V.size(2);
  if (before == 1 || after < kNarrow) return at::mm(unfolding(X, mode), Y);
  const auto test = Y.view({before, after, Y.size(1)});
  auto sum = at::zeros({n, Y.size(1)}, X.options());
  const int64_t step = std::max<int64_t>(kProducts / (n * Y.size(1)), 1);
  for (int64_t i = 0; i < before; i += step) {
    const int64_t count = std::min(step, before - i);
    sum += at::bmm(V.narrow(0, i, count), test.narrow(0, i, count)).sum(0);
  }
  return sum;
}

void for_unfolding_blocks(const at::Tensor& X, int64_t mode, at::ScalarType type, const ColumnVisitor& visit) {
  const auto V = around(X, mode);
  const int64_t before = V.size(0), n = V.size(1), after = V.size(2);
  const int64_t columns = std::max(kBlock / std::max<int64_t>(n, 1), n);  // not wider than tall would be all overhead
  const int64_t wide = std::min(after, columns), deep = std::max<int64_t>(columns / std::max<int64_t>(wide, 1), 1);
  for (int64_t i = 0; i < before; i += deep)
    for (int64_t j = 0; j < after; j += wide) {
      check_interrupt();
      const auto part = V.narrow(0, i, std::min(deep, before - i)).narrow(2, j, std::min(wide, after - j));
      visit(part.to(type).permute({1, 0, 2}).reshape({n, -1}));
    }
}

}  // namespace fastlr
