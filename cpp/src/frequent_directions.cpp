// Frequent directions (Liberty 2013; Ghashami, Liberty, Phillips, Woodruff 2016). Whenever the buffer is full, the same
// amount is taken from all squared singular values, so that half of them vanish: what AᴴA loses in any direction is at
// most the sum of these amounts, and every amount was taken l + 1 times.
#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include <fastlr/streaming_svd.hpp>

#include "row_block.hpp"
#include "streamed_svd.hpp"
#include "svd_parts.hpp"

namespace fastlr {
namespace {

// What rounding adds to the eigenvalues of B Bᴴ, relative to the largest.
double rounding_of_gram(const at::Tensor& B) {
  return 4 * unit_roundoff(B) * (std::sqrt(static_cast<double>(B.size(1))) + static_cast<double>(B.size(0)));
}

// ‖rows‖_F^2, for a scale in which it is in range.
double squares_of(const at::Tensor& rows) { return squared_magnitude(rows).sum().item<double>(); }

void shrink(FrequentDirections& state) {
  auto& B = state.rows;
  const int64_t l = B.size(0) / 2;
  const auto [ascending, vectors] = at::linalg_eigh(at::mm(B, B.mH()));
  const auto squares = ascending.flip(0).clamp_min(0);
  const double noise = rounding_of_gram(B) * squares[0].item<double>(), amount = squares[l].item<double>();
  const auto kept = squares.narrow(0, 0, l);
  const auto above = kept > std::max(amount, noise);
  const auto factors = at::where(above, (kept - amount) / kept, 0.0).sqrt();
  const auto directions = vectors.flip(1).narrow(1, 0, l) * factors;
  const auto rows = at::mm(directions.mH(), B);
  B.narrow(0, 0, l).copy_(rows);
  B.narrow(0, l, B.size(0) - l).zero_();
  state.filled = above.sum().item<int64_t>();
  state.shrunk += amount + noise;
}

// Of the scale of the buffer, or of the first rows that are not zero.
int64_t exponent_for(const FrequentDirections& state, double magnitude) {
  if (state.energy > 0.0 &&
      (magnitude == 0.0 || squares_in_range(state.rows, std::ldexp(magnitude, static_cast<int>(state.exponent)))))
    return state.exponent;
  if (squares_in_range(state.rows, magnitude)) return 0;
  const int64_t own = scale_exponent(magnitude);
  // Rows that vanish beside the others stay in their scale.
  return state.energy > 0.0 ? std::min(own, state.exponent) : own;
}

void rescale(FrequentDirections& state, double weight, int64_t exponent) {
  const int change = static_cast<int>(exponent - state.exponent);
  state.exponent = exponent;
  if (change == 0 && weight == 1.0) return;
  state.rows = scaled(state.rows, change) * weight;
  state.shrunk = std::ldexp(state.shrunk, 2 * change) * weight * weight;
  state.energy = std::ldexp(state.energy, 2 * change) * weight * weight;
}

}  // namespace

FrequentDirections empty_directions(int64_t columns, int64_t width, const at::TensorOptions& options) {
  const bool complex = c10::isComplexType(options.dtype().toScalarType());
  return {at::zeros({2 * width, columns}, options.dtype(complex ? at::kComplexDouble : at::kDouble))};
}

FrequentDirections appended(FrequentDirections state, double weight, const RowBlock& block, const char* caller) {
  const int64_t exponent = exponent_for(state, finite_magnitude(block, caller)), capacity = state.rows.size(0);
  const bool fits = state.filled + block.rows.size(0) < capacity;
  if (!fits) state.rows = state.rows.clone();
  rescale(state, weight, exponent);
  visit_dense(block, capacity / 2, exponent, [&](const at::Tensor& rows) {
    const auto wide = rows.to(state.rows.scalar_type());
    state.energy += squares_of(wide);
    for (int64_t next = 0; next < wide.size(0);) {
      const int64_t count = std::min(capacity - state.filled, wide.size(0) - next);
      state.rows.narrow(0, state.filled, count).copy_(wide.narrow(0, next, count));
      state.filled += count;
      next += count;
      if (state.filled == capacity) shrink(state);
    }
  });
  return state;
}

FrequentDirections together(const FrequentDirections& first, double weight, const FrequentDirections& second) {
  const auto rows = scaled(second.rows.narrow(0, 0, second.filled), static_cast<int>(-second.exponent));
  auto sum = appended(first, weight, {rows, std::nullopt, 0}, "StreamingSVD.merge");
  // The second state stands for more than the rows that are left of it.
  const int change = static_cast<int>(2 * (sum.exponent - second.exponent));
  sum.shrunk += std::ldexp(second.shrunk, change);
  sum.energy += std::ldexp(second.energy, change) - std::ldexp(squares_of(second.rows), change);
  return sum;
}

StreamedSvd frequent_directions_svd(const FrequentDirections& state, int64_t rank, at::ScalarType type) {
  // One more triplet than is returned tells the spectral norm of what is left out.
  const int64_t count = std::min({rank + 1, state.rows.size(0), state.rows.size(1)});
  const auto rows = state.rows.narrow(0, 0, std::max(state.filled, count));
  const auto factors = triplets_of_rows(at::eye(rows.size(0), rows.options()), rows.mH(), count);
  const auto squares = factors.S.square().to(at::kCPU);
  const double noise = rounding_of_gram(rows) * state.energy;
  const double next = count > rank ? squares[rank].item<double>() : 0.0;
  // ‖A V‖ >= ‖B V‖ for every V, and ‖A x‖^2 <= ‖B x‖^2 + shrunk for every x of length 1.
  const double left = std::max(0.0, state.energy - squares.narrow(0, 0, rank).sum().item<double>());
  const double error = std::sqrt(left + noise);
  return as_streamed({factors.S.narrow(0, 0, rank),
                      factors.Vh.narrow(0, 0, rank),
                      {error, error, std::min(error, std::sqrt(next + state.shrunk + noise)), 0.0},
                      state.shrunk + noise},
                     state.exponent, type);
}

}  // namespace fastlr
