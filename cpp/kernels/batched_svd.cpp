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

template <int64_t W>
inline __attribute__((always_inline)) void dot(double* x, double* y, int64_t size, Part<W>& product) {
  Part<W> even = {}, odd = {};
  int64_t i = 0;
  for (; i + 1 < size; i += 2) {
    even += part<W>(x, i) * part<W>(y, i);
    odd += part<W>(x, i + 1) * part<W>(y, i + 1);
  }
  if (i < size) even += part<W>(x, i) * part<W>(y, i);
  product = even + odd;
}

// Rotates every pair of columns, of `height` entries, so that their first `size` ones are orthogonal, with their
// squared lengths in `squares`. Returns whether any were not.
template <int64_t W>
inline __attribute__((always_inline)) bool sweep(double* columns, int64_t size, int64_t height, double* squares,
                                                 double tolerance) {
  const Part<W> zero = {}, one = zero + 1;
  const auto column = [&](int64_t j) { return columns + j * height * kLanes; };
  bool any = false;
  for (int64_t j = 0; j < size; ++j) dot<W>(column(j), column(j), size, part<W>(squares, j));
  for (int64_t p = 0; p < size; ++p)
    for (int64_t q = p + 1; q < size; ++q) {
      double *x = column(p), *y = column(q);
      Part<W>&xx = part<W>(squares, p), &yy = part<W>(squares, q);
      Part<W> product, root, cosine;
      dot<W>(x, y, size, product);
      const auto rotate = product * product > tolerance * tolerance * xx * yy;
      int64_t rotated = 0;
      for (int64_t lane = 0; lane < W; ++lane) rotated |= rotate[lane];
      if (!rotated) continue;
      any = true;
      const Part<W> twice = rotate ? 2 * product : zero, difference = yy - xx;
      square_root<W>(difference * difference + twice * twice, root);
      const Part<W> sum = difference < 0 ? difference - root : difference + root;
      const Part<W> tangent = twice / (rotate ? sum : one);
      // The reciprocal of the root would be biased, and stretch the columns a little with every small rotation.
      square_root<W>(1 / (1 + tangent * tangent), cosine);
      const Part<W> sine = cosine * tangent;
      xx -= tangent * product;
      yy += tangent * product;
      for (int64_t i = 0; i < height; ++i) {
        const Part<W> u = part<W>(x, i), v = part<W>(y, i);
        part<W>(x, i) = cosine * u - sine * v;
        part<W>(y, i) = sine * u + cosine * v;
      }
    }
  return any;
}

}  // namespace

// Rotates pairs of columns until the first `size` entries of all are orthogonal.
FASTLR_MULTIVERSION void orthogonalize(Lanes* columns, int64_t size, int64_t height, Lanes* squares, double tolerance);
void orthogonalize(Lanes* columns, int64_t size, int64_t height, Lanes* squares, double tolerance) {
  for_parts([&]<int64_t W>(int64_t first) __attribute__((always_inline)) {
    double *entries = reinterpret_cast<double*>(columns) + first, *sums = reinterpret_cast<double*>(squares) + first;
    for (int64_t i = 0; i < kMostSweeps && sweep<W>(entries, size, height, sums, tolerance); ++i) {
    }
  });
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
    orthogonalize(columns, size, height, squares, tolerance);
    for (int64_t lane = 0; lane < used; ++lane) {
      const int64_t matrix = first + lane;
      double* values = S + matrix * size;
      store_factors(columns, squares, size, height, lane, U + matrix * entries, values, V ? V + matrix * entries : V);
      for (int64_t j = 0; j < size; ++j) values[j] = std::ldexp(values[j], exponents[lane]);
    }
  });
}

}  // namespace fastlr::kernels
