#include "tall.hpp"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "checks.hpp"
#include "small_matrices.hpp"

namespace fastlr {

int64_t row_shares(const at::Tensor& like, int64_t rows, int64_t height) {
  if (!like.is_cpu() || at::in_parallel_region()) return 1;
  return std::clamp<int64_t>(rows / std::max<int64_t>(1, height), 1, at::get_num_threads());
}

void for_row_blocks(int64_t rows, int64_t height, int64_t shares, const RowVisitor& visit) {
  const auto run = [&](int64_t share) {
    const int64_t end = rows * (share + 1) / shares;
    for (int64_t row = rows * share / shares; row < end; row += height) visit(share, row, std::min(height, end - row));
  };
  if (shares == 1) return run(0);
  at::parallel_for(0, shares, 1, [&](int64_t begin, int64_t end) {
    const at::AutoDispatchBelowAutograd guard;
    for (int64_t share = begin; share < end; ++share) run(share);
  });
}

int64_t cached_rows(int64_t bytes_per_row) {
  constexpr int64_t cache = 512 << 10;
  return std::max<int64_t>(128, cache / std::max<int64_t>(1, bytes_per_row));
}

at::Tensor tall_product(const at::Tensor& Y, const at::Tensor& T) {
  const auto factor = T.to(Y.scalar_type());
  // In the layout of Y.
  const bool columns_first = Y.stride(-2) == 1 && Y.stride(-1) != 1;
  if (Y.dim() > 2) return columns_first ? at::matmul(factor.mT(), Y.mT()).mT() : at::matmul(Y, factor);
  const int64_t rows = Y.size(0), height = cached_rows(Y.size(1) * Y.element_size());
  const int64_t shares = row_shares(Y, rows, height);
  if (shares == 1) return at::mm(Y, factor);
  auto product =
      columns_first ? at::empty({T.size(1), rows}, Y.options()).t() : at::empty({rows, T.size(1)}, Y.options());
  for_row_blocks(rows, height, shares, [&](int64_t, int64_t row0, int64_t count) {
    auto block = product.narrow(0, row0, count);
    at::mm_out(block, Y.narrow(0, row0, count), factor);
  });
  return product;
}

void tall_add_product_(at::Tensor& Y, const at::Tensor& C) {
  const auto factor = C.to(Y.scalar_type());
  if (Y.dim() > 2) {
    Y += at::matmul(Y, factor);
    return;
  }
  const int64_t height = cached_rows(2 * Y.size(1) * Y.element_size());
  const int64_t shares = row_shares(Y, Y.size(0), height);
  const auto buffers = at::empty({shares, std::min(height, Y.size(0)), Y.size(1)}, Y.options());
  for_row_blocks(Y.size(0), height, shares, [&](int64_t share, int64_t row0, int64_t count) {
    auto block = Y.narrow(0, row0, count), product = buffers.select(0, share).narrow(0, 0, count);
    at::mm_out(product, block, factor);
    block += product;
  });
}

std::pair<at::Tensor, at::Tensor> column_extremes(const at::Tensor& Y) {
  const int64_t columns = Y.size(-1), height = cached_rows(2 * columns * Y.element_size());
  const int64_t shares = Y.dim() > 2 ? 1 : row_shares(Y, Y.size(-2), height);
  if (shares == 1) return {Y.amin(-2), Y.amax(-2)};
  // Reductions along rows that are not contiguous are several times as slow as a copy in the cache.
  const auto buffers = at::empty({shares, columns, height}, Y.options());
  std::vector<at::Tensor> least(shares), most(shares);
  for_row_blocks(Y.size(0), height, shares, [&](int64_t share, int64_t row0, int64_t count) {
    const auto block = buffers.select(0, share).narrow(1, 0, count).copy_(Y.narrow(0, row0, count).t());
    const auto [low, high] = at::aminmax(block, /*dim=*/1);
    least[share] = least[share].defined() ? at::minimum(least[share], low) : low;
    most[share] = most[share].defined() ? at::maximum(most[share], high) : high;
  });
  return {at::stack(least).amin(0), at::stack(most).amax(0)};
}

namespace {

// G <- G + YᴴY in double precision as a sum of short sums, in which rounding to one side has not far to go.
void add_short_sums_(at::Tensor& G, const at::Tensor& Y) {
  constexpr int64_t length = 32, wide = 512;
  // Many matrices at once save calls, where they fit into the cache.
  const int64_t together = Y.size(1) > wide ? 0 : Y.size(0) / length * length;
  if (together > 0) {
    const auto short_blocks = Y.narrow(0, 0, together).unflatten(0, {together / length, length});
    G.add_(at::bmm(short_blocks.mH(), short_blocks).sum(0));
  }
  for (int64_t row = together; row < Y.size(0); row += length) {
    const auto block = Y.narrow(0, row, std::min(length, Y.size(0) - row));
    G.addmm_(block.mH(), block);
  }
}

// ‖y‖^2 of every column, some columns at a time: their squares are kept in memory.
at::Tensor squared_lengths(const at::Tensor& Y) {
  constexpr int64_t panel = 512;
  if (Y.size(-1) <= panel) return squared_magnitude(Y).sum(-2);
  std::vector<at::Tensor> each;
  for (const auto& columns : Y.split(panel, -1)) each.push_back(squared_magnitude(columns).sum(-2));
  return at::cat(each, -1);
}

}  // namespace

at::Tensor quick_gram(const at::Tensor& Y) {
  if (auto G = batched_gram(Y, Y.scalar_type())) return *G;
  return at::matmul(Y.mH(), Y);
}

at::Tensor accurate_gram(const at::Tensor& Y) {
  if (auto G = batched_gram(Y, double_type(Y))) return *G;
  const bool widest = Y.scalar_type() == double_type(Y);
  const int64_t rows = Y.size(-2), columns = Y.size(-1), height = cached_rows(2 * columns * Y.element_size());
  at::Tensor G;
  if (Y.dim() > 2 || (!widest && rows <= height) || !Y.is_cpu()) {
    const auto wide = Y.to(double_type(Y));
    G = at::matmul(wide.mH(), wide);
  } else {
    const int64_t shares = row_shares(Y, rows, height);
    const auto options = Y.options().dtype(double_type(Y));
    auto parts = at::zeros({shares, columns, columns}, options);
    const auto buffers = at::empty({shares, widest ? 0 : height, columns}, options);
    for_row_blocks(rows, height, shares, [&](int64_t share, int64_t row0, int64_t count) {
      const auto block = Y.narrow(0, row0, count);
      auto part = parts.select(0, share);
      if (widest) {
        add_short_sums_(part, block);
      } else {
        const auto wide = buffers.select(0, share).narrow(0, 0, count).copy_(block);
        part.addmm_(wide.mH(), wide);
      }
    });
    G = shares == 1 ? parts.squeeze(0) : parts.sum(0);
  }
  if (widest) G.diagonal(0, -2, -1).copy_(squared_lengths(Y));
  return G;
}

CholeskyFactors cholesky_factors(const at::Tensor& G, double shift) {
  if (shift == 0)
    if (auto factors = batched_cholesky(G)) return *factors;
  const auto norms = at::real(G.diagonal(0, -2, -1)).clamp_min(0).sqrt();
  const auto scale = at::where(norms > 0, norms, 1.0);
  auto unit = G / (scale.unsqueeze(-1) * scale.unsqueeze(-2));
  if (shift > 0) unit.diagonal(0, -2, -1).add_(shift);
  const auto [L, info] = at::linalg_cholesky_ex(unit);
  const auto inverse = at::linalg_solve_triangular(L, at::eye(G.size(-1), G.options()), /*upper=*/false).mH();
  const double size = std::sqrt(static_cast<double>(std::max<int64_t>(1, G.size(-1))));
  return {L.mH() * scale.unsqueeze(-2), inverse / scale.unsqueeze(-1), info == 0,
          at::linalg_vector_norm(inverse, 2, at::IntArrayRef({-2, -1})) / size};
}

}  // namespace fastlr
