// One-sided Jacobi: rotations of pairs of columns until all are orthogonal to rounding. They need nothing but sums
// along columns and the same steps for every matrix, which the lanes share.
#include "batched_svd.hpp"

#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "lanes.hpp"
#include "multiversion.hpp"

namespace fastlr::kernels {
namespace {

// Convergence is quadratic: some six to ten sweeps.
constexpr int64_t kMostSweeps = 40;

inline __attribute__((always_inline)) void dot(const Lanes* x, const Lanes* y, int64_t size, Lanes& product) {
  Lanes even = {}, odd = {};
  int64_t i = 0;
  for (; i + 1 < size; i += 2) {
    even += x[i] * y[i];
    odd += x[i + 1] * y[i + 1];
  }
  if (i < size) even += x[i] * y[i];
  product = even + odd;
}

}  // namespace

// Rotates every pair of columns, of `height` entries, so that their first `size` ones are orthogonal, with their
// squared lengths in `squares`. Returns whether any were not.
FASTLR_MULTIVERSION bool sweep(Lanes* columns, int64_t size, int64_t height, Lanes* squares, double tolerance);
bool sweep(Lanes* columns, int64_t size, int64_t height, Lanes* squares, double tolerance) {
  const Lanes zero = {}, one = zero + 1;
  bool any = false;
  for (int64_t j = 0; j < size; ++j) dot(columns + j * height, columns + j * height, size, squares[j]);
  for (int64_t p = 0; p < size; ++p)
    for (int64_t q = p + 1; q < size; ++q) {
      Lanes *x = columns + p * height, *y = columns + q * height, product, root, cosine;
      dot(x, y, size, product);
      const auto rotate = product * product > tolerance * tolerance * squares[p] * squares[q];
      int64_t rotated = 0;
      for (int64_t lane = 0; lane < kLanes; ++lane) rotated |= rotate[lane];
      if (!rotated) continue;
      any = true;
      const Lanes twice = rotate ? 2 * product : zero, difference = squares[q] - squares[p];
      square_root(difference * difference + twice * twice, root);
      const Lanes sum = difference < 0 ? difference - root : difference + root;
      const Lanes tangent = twice / (rotate ? sum : one);
      // The reciprocal of the root would be biased, and stretch the columns a little with every small rotation.
      square_root(1 / (1 + tangent * tangent), cosine);
      const Lanes sine = cosine * tangent;
      squares[p] -= tangent * product;
      squares[q] += tangent * product;
      for (int64_t i = 0; i < height; ++i) {
        const Lanes u = x[i], v = y[i];
        x[i] = cosine * u - sine * v;
        y[i] = sine * u + cosine * v;
      }
    }
  return any;
}

namespace {

// One matrix as the columns of a lane, the largest entry scaled to between 1/2 and 1 lest squares overflow, and what
// is there of V = I below them. Returns the exponent of the scale.
int load_columns(const double* matrix, int64_t size, int64_t height, int64_t lane, Lanes* columns) {
  double largest = 0.0;
  for (int64_t at = 0; at < size * size; ++at) largest = std::max(largest, std::abs(matrix[at]));
  int exponent;
  std::frexp(largest, &exponent);
  const double scale = std::ldexp(1.0, -exponent);
  for (int64_t j = 0; j < size; ++j) {
    for (int64_t i = 0; i < size; ++i) columns[j * height + i][lane] = matrix[i * size + j] * scale;
    for (int64_t i = size; i < height; ++i) columns[j * height + i][lane] = i - size == j ? 1.0 : 0.0;
  }
  return exponent;
}

// The factors of a lane from its columns U diag(S) and V, the longest first.
void store_factors(const Lanes* columns, const Lanes* squares, int64_t size, int64_t height, int64_t lane, double* U,
                   double* S, double* V) {
  std::vector<int64_t> order(size);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return squares[a][lane] > squares[b][lane]; });
  for (int64_t j = 0; j < size; ++j) {
    const Lanes* column = columns + order[j] * height;
    S[j] = std::sqrt(squares[order[j]][lane]);
    for (int64_t i = 0; i < size; ++i) U[i * size + j] = S[j] > 0 ? column[i][lane] / S[j] : 0.0;
    for (int64_t i = size; i < height; ++i) V[(i - size) * size + j] = column[i][lane];
  }
}

}  // namespace

void svd_cpu(const double* core, int64_t count, int64_t size, double* U, double* S, double* V) {
  const int64_t height = V ? 2 * size : size, entries = size * size;
  const double tolerance = std::sqrt(static_cast<double>(size)) * std::numeric_limits<double>::epsilon();
  for_lanes(count, size * height + size, [&](int64_t first, int64_t used, Lanes* buffer) {
    Lanes *columns = buffer, *squares = columns + size * height;
    int exponents[kLanes];
    for (int64_t lane = 0; lane < kLanes; ++lane)
      exponents[lane] = load_columns(core + (first + std::min(lane, used - 1)) * entries, size, height, lane, columns);
    for (int64_t i = 0; i < kMostSweeps && sweep(columns, size, height, squares, tolerance); ++i) {
    }
    for (int64_t lane = 0; lane < used; ++lane) {
      const int64_t matrix = first + lane;
      double* values = S + matrix * size;
      store_factors(columns, squares, size, height, lane, U + matrix * entries, values, V ? V + matrix * entries : V);
      for (int64_t j = 0; j < size; ++j) values[j] = std::ldexp(values[j], exponents[lane]);
    }
  });
}

}  // namespace fastlr::kernels
