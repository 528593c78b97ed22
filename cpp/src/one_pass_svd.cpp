// One pass over rows. With Y = A Omega and YᴴY = RᴴR, the rows Qᴴ A of the basis Q = Y R^-1 are R^-H (YᴴA): the
// projection of the randomized SVD, of which only the sums YᴴA and YᴴY over the rows have to be kept. Both are sums
// over rows, hence the same for every split and order, to rounding.
#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>
#include <vector>

#include <fastlr/linear_operator.hpp>
#include <fastlr/orthonormalize.hpp>
#include <fastlr/random.hpp>
#include <fastlr/streaming_svd.hpp>

#include "row_block.hpp"
#include "streamed_svd.hpp"
#include "svd_parts.hpp"
#include "tall.hpp"

namespace fastlr {
namespace {

// Rows multiplied at a time in the type of the data; the products are summed in double precision.
constexpr int64_t kHeight = 1024;
// Columns of a tile of AᴴA, of which only the upper triangle is computed.
constexpr int64_t kTile = 256;

// What rounding adds to a sum of products over rows, relative to the sum of the magnitudes: at random within kHeight
// rows of the type of the data, and over all rows in double precision.
double rounding_of_sums(int64_t seen, at::ScalarType type) {
  return 4 * (std::sqrt(static_cast<double>(kHeight)) * unit_roundoff(type) +
              std::sqrt(static_cast<double>(seen)) * unit_roundoff(at::kDouble));
}

OnePassSketch gram_of_rows(const RowBlock& block, int64_t exponent) {
  const int64_t n = block.rows.size(1);
  auto sketch = empty_sketch(n, n, block.rows.options());
  visit_dense(block, kHeight, exponent, [&](const at::Tensor& rows) {
    for (int64_t column = 0; column < n; column += kTile) {
      const int64_t end = std::min(n, column + kTile);
      sketch.co.narrow(0, 0, end)
          .narrow(1, column, end - column)
          .add_(at::mm(rows.narrow(1, 0, end).mH(), rows.narrow(1, column, end - column)));
    }
  });
  return sketch;
}

// Adds up what one part of the rows gives: Y = rows [Omega Omega'], co = (weighted Y)ᴴ(weighted rows).
void add_products(OnePassSketch& sketch, const at::Tensor& Y, const at::Tensor& co) {
  const auto wide = Y.to(sketch.gram.scalar_type());
  sketch.gram.addmm_(wide.mH(), wide);
  sketch.co.add_(co);
}

OnePassSketch projections_of_rows(const RowBlock& block, int64_t width, int64_t seed, int64_t exponent) {
  const int64_t n = block.rows.size(1);
  const auto X = gaussian(n, width + kProbes, seed, 0,
                          at::TensorOptions().dtype(block.rows.scalar_type()).device(block.rows.device()));
  if (block.rows.layout() == at::kStrided) {
    std::vector<OnePassSketch> sums(row_shares(block.rows, block.rows.size(0), kHeight));
    for (auto& sum : sums) sum = empty_sketch(n, width, block.rows.options());
    const int64_t shares = static_cast<int64_t>(sums.size());
    visit_dense(block, kHeight, exponent, shares, [&](int64_t share, const at::Tensor& rows) {
      const auto Y = at::mm(rows, X);
      add_products(sums[share], Y, at::mm(Y.narrow(1, 0, width).mH(), rows));
    });
    return std::accumulate(sums.begin() + 1, sums.end(), sums.front(),
                           [](auto sum, const auto& other) { return together(std::move(sum), 1.0, other); });
  }
  auto sketch = empty_sketch(n, width, block.rows.options());
  const auto A = scaled(as_operator(block.rows), static_cast<int>(exponent));
  auto Y = A->matmat(X);
  if (block.weights) Y *= block.weights->unsqueeze(1);
  auto image = Y.narrow(1, 0, width);
  if (block.weights) image = image * block.weights->unsqueeze(1);
  add_products(sketch, Y, A->rmatmat(image).mH());
  return sketch;
}

// ‖.‖ of each column, squared, minus the part that lies in an orthonormal basis; free of what rounding leaves below 0.
at::Tensor squares_outside(const at::Tensor& squares, const at::Tensor& parts) {
  return (squares - squared_magnitude(parts).sum(0)).clamp_min(0);
}

// From the eigenvalues and eigenvectors of AᴴA.
StreamedSvd svd_of_gram(const OnePassSketch& sketch, int64_t rank, double rounding, at::ScalarType type) {
  const auto [ascending, vectors] = at::linalg_eigh(sketch.co, "U");
  const auto squares = ascending.flip(0).clamp_min(0);
  const int64_t n = squares.size(0);
  const double trace = squares.sum().item<double>(), noise = rounding * trace;
  const double tail = squares.narrow(0, rank, n - rank).sum().item<double>();
  const double next = rank < n ? squares[rank].item<double>() : 0.0;
  const double u = unit_roundoff(type);
  const auto kept = squares.narrow(0, 0, rank);
  const auto S =
      at::where(kept > 4 * u * std::sqrt(static_cast<double>(n)) * squares.narrow(0, 0, 1), kept, 0.0).sqrt();
  const auto V = polish(vectors.narrow(1, n - rank, rank).flip(1));
  const double error = std::sqrt(tail + noise);
  return {S, materialized_adjoint(V), {error, error, std::sqrt(next + noise), 0.0}, noise};
}

// From Q and QᴴA.
StreamedSvd svd_of_projection(const OnePassSketch& sketch, int64_t rank, int64_t seed, double rounding,
                              at::ScalarType type) {
  const int64_t width = sketch.co.size(0), n = sketch.co.size(1);
  const auto G = sketch.gram.narrow(0, 0, width), range = G.narrow(1, 0, width), probe = G.narrow(1, width, kProbes);
  const auto [squares, vectors] = at::linalg_eigh(range);
  // Rounding of YᴴA is u ‖A‖ ‖Y‖, and u ‖A‖^2 / σ of the singular value σ that QᴴA has in a direction: noise below
  // sqrt(u) ‖A‖. Such directions of Y are left out, and those that are rounding of the eigenvalues.
  const double u = std::max(unit_roundoff(type), 4 * width * unit_roundoff(squares));
  const auto usable = squares > std::max(u * squares[-1].item<double>(), 0.0);
  const auto T = vectors * at::where(usable, squares, 1.0).rsqrt().mul(usable);
  const auto rows = at::mm(sketch.co.mH(), T);  // (QᴴA)ᴴ
  const auto seen = at::mm(T.mH(), probe);      // Qᴴ A Omega'
  // The draws of the type of the data.
  const auto omega = gaussian(n, kProbes, seed, width, rows.options().dtype(type)).to(rows.scalar_type());
  const auto factors = triplets_of_rows(at::eye(width, rows.options()), rows, rank);

  const auto lengths = at::real(sketch.gram.diagonal().narrow(0, width, kProbes));
  // What the subtraction may have lost.
  const auto outside = squares_outside(lengths, seen) + 4 * width * unit_roundoff(rows) * lengths;
  const auto approximated = at::mm(factors.U * factors.S, at::mm(factors.Vh, omega));
  const auto norms = (outside + squared_magnitude(seen - approximated).sum(0)).sqrt().to(at::kCPU);
  // AᴴA - BᴴB = EᴴE for E = (I - QQᴴ) A and B = QᴴA, but for the rounding D of B, which the probes see too.
  const auto of = [](const at::Tensor& squared) { return error_of_norms(squared.sqrt().to(at::kCPU)).spectral; };
  const double outer = of(outside), inner = of(squared_magnitude(seen - at::mm(rows.mH(), omega)).sum(0));
  const double largest = factors.S[0].item<double>();
  return {factors.S, factors.Vh, error_of_norms(norms),
          outer * outer + inner * (2 * largest + inner) + rounding * largest * largest};
}

}  // namespace

OnePassSketch empty_sketch(int64_t columns, int64_t width, const at::TensorOptions& options) {
  const bool complex = c10::isComplexType(options.dtype().toScalarType());
  const auto wide = options.dtype(complex ? at::kComplexDouble : at::kDouble).layout(at::kStrided);
  const int64_t probed = width < columns ? width + kProbes : 0;
  return {at::zeros({width, columns}, wide), at::zeros({probed, probed}, wide)};
}

OnePassSketch one_pass_sketch(const RowBlock& block, int64_t width, int64_t seed, const char* caller) {
  const auto products = [&](int64_t exponent) {
    return width < block.rows.size(1) ? projections_of_rows(block, width, seed, exponent)
                                      : gram_of_rows(block, exponent);
  };
  // The lengths of the columns of Y (of A) show whether everything is finite and squares are in range.
  auto sketch = products(0);
  const auto& sums = width < block.rows.size(1) ? sketch.gram : sketch.co;
  const double length = std::sqrt(largest_magnitude(sums.diagonal()));
  if (squares_in_range(block.rows, length)) return sketch;
  sketch.exponent = scale_exponent(finite_magnitude(block, caller));
  if (sketch.exponent == 0) return sketch;
  const int64_t exponent = sketch.exponent;
  sketch = products(exponent);
  sketch.exponent = exponent;
  return sketch;
}

OnePassSketch together(OnePassSketch first, double weight, const OnePassSketch& second) {
  const auto is_zero = [](const OnePassSketch& sketch) { return largest_magnitude(sketch.co) == 0.0; };
  // Of two scales that of the larger rows, beside which the others may vanish.
  int64_t exponent = std::min(first.exponent, second.exponent);
  if (first.exponent != second.exponent) {
    if (is_zero(first)) exponent = second.exponent;
    if (is_zero(second)) exponent = first.exponent;
  }
  const auto add = [&](at::Tensor& sum, const at::Tensor& other) {
    sum = scaled(sum, static_cast<int>(2 * (exponent - first.exponent)));
    if (weight != 1.0) sum.mul_(weight * weight);
    sum.add_(scaled(other, static_cast<int>(2 * (exponent - second.exponent))));
  };
  add(first.co, second.co);
  add(first.gram, second.gram);
  first.exponent = exponent;
  return first;
}

StreamedSvd one_pass_svd(const OnePassSketch& sketch, int64_t rank, int64_t seed, int64_t seen, at::ScalarType type) {
  const double rounding = rounding_of_sums(seen, type);
  const bool exact = sketch.gram.size(0) == 0;
  return as_streamed(
      exact ? svd_of_gram(sketch, rank, rounding, type) : svd_of_projection(sketch, rank, seed, rounding, type),
      sketch.exponent, type);
}

}  // namespace fastlr
