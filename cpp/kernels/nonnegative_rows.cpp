// Eight rows side by side: a step in coordinate j changes their gradients by the same row of G.
#include "nonnegative_rows.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "lanes.hpp"
#include "multiversion.hpp"

namespace fastlr::kernels {

struct Quadratic {
  const double* G;
  const double* reciprocals;    // of G_jj, like the roots zero where that is
  const double* roots;          // of G_jj
  const double* inverse_roots;  // of G_jj
  int64_t size;
};

struct Limits {
  double penalty;
  int64_t passes;
  double tol;
};

namespace {

// The square of what a step in each coordinate alone would change, in the norm of G.
template <int64_t W>
inline __attribute__((always_inline)) void square_of_steps(const Quadratic& f, double* x, double* gradient,
                                                           Part<W>& sum) {
  sum = Part<W>{};
  for (int64_t j = 0; j < f.size; ++j) {
    const Part<W> entry = part<W>(x, j) * f.roots[j], free = part<W>(gradient, j) * f.inverse_roots[j];
    const Part<W> step = free < entry ? free : entry;
    sum += step * step;
  }
}

// Gx - b + penalty, in the place of b.
template <int64_t W>
inline __attribute__((always_inline)) void begin(const Quadratic& f, double penalty, double* x, double* gradient) {
  for (int64_t j = 0; j < f.size; ++j) part<W>(gradient, j) = penalty - part<W>(gradient, j);
  for (int64_t j = 0; j < f.size; ++j) {
    const Part<W> entry = part<W>(x, j);
    for (int64_t i = 0; i < f.size; ++i) part<W>(gradient, i) += f.G[j * f.size + i] * entry;
  }
}

// One step in every coordinate of the rows that are active; f is lower by `decrease`.
template <int64_t W>
inline __attribute__((always_inline)) void pass(const Quadratic& f, const Part<W>& active, double* x, double* gradient,
                                                Part<W>& decrease) {
  const Part<W> zero = {};
  decrease = zero;
  for (int64_t j = 0; j < f.size; ++j) {
    const double* row = f.G + j * f.size;
    const Part<W> entry = part<W>(x, j), slope = part<W>(gradient, j);
    const Part<W> free = entry - slope * f.reciprocals[j];
    const Part<W> next = active > 0 ? (free > 0 ? free : zero) : entry;
    const Part<W> step = next - entry;
    decrease -= step * (slope + 0.5 * row[j] * step);
    part<W>(x, j) = next;
    for (int64_t i = 0; i < f.size; ++i) part<W>(gradient, i) += row[i] * step;
  }
}

template <int64_t W>
inline __attribute__((always_inline)) void descend_part(const Quadratic& f, const Limits& limits, double* x,
                                                        double* gradient, double* sums) {
  const Part<W> zero = {}, one = zero + 1;
  begin<W>(f, limits.penalty, x, gradient);
  part<W>(sums, 0) = zero;
  square_of_steps<W>(f, x, gradient, part<W>(sums, 1));
  Part<W> active = one, enough = zero, decrease;
  for (int64_t count = 0; count < limits.passes; ++count) {
    pass<W>(f, active, x, gradient, decrease);
    part<W>(sums, 0) += decrease;
    if (count == 0) enough = limits.tol * decrease;
    active = decrease > enough ? active : zero;
    double left = 0;
    for (int64_t lane = 0; lane < W; ++lane) left += active[lane];
    if (left == 0) break;
  }
  square_of_steps<W>(f, x, gradient, part<W>(sums, 2));
}

}  // namespace

// Lowers f from x; `gradient` has b. Sums of decreases, and the squares of the KKT residuals before and after, by lane.
FASTLR_MULTIVERSION void descend(const Quadratic& f, const Limits& limits, Lanes* x, Lanes* gradient, Lanes* sums);
void descend(const Quadratic& f, const Limits& limits, Lanes* x, Lanes* gradient, Lanes* sums) {
  for_parts([&]<int64_t W>(int64_t first) __attribute__((always_inline)) {
    const auto at = [&](Lanes* lanes) { return reinterpret_cast<double*>(lanes) + first; };
    descend_part<W>(f, limits, at(x), at(gradient), at(sums));
  });
}

template <typename T>
void nonnegative_rows_cpu(const double* G, const T* B, int64_t rows, int64_t size, double penalty, int64_t passes,
                          double tol, T* X, RowDescent* descents) {
  std::vector<double> reciprocals(size), roots(size), inverse_roots(size);
  for (int64_t j = 0; j < size; ++j) {
    const double square = G[j * size + j];
    if (!(square > 0)) continue;
    reciprocals[j] = 1 / square;
    roots[j] = std::sqrt(square);
    inverse_roots[j] = 1 / roots[j];
  }
  const Quadratic f{G, reciprocals.data(), roots.data(), inverse_roots.data(), size};
  for_lanes(rows, 2 * size + 3, [&](int64_t first, int64_t used, Lanes* buffer) {
    Lanes *x = buffer, *gradient = x + size, *sums = gradient + size;
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const int64_t row = (first + std::min(lane, used - 1)) * size;
      for (int64_t j = 0; j < size; ++j) {
        x[j][lane] = roots[j] > 0 ? std::max<double>(X[row + j], 0) : 0;
        gradient[j][lane] = B[row + j];
      }
    }
    descend(f, {penalty, passes, tol}, x, gradient, sums);
    for (int64_t lane = 0; lane < used; ++lane) {
      const int64_t row = (first + lane) * size;
      for (int64_t j = 0; j < size; ++j) X[row + j] = static_cast<T>(x[j][lane]);
      descents[first + lane] = {sums[0][lane], sums[1][lane], sums[2][lane]};
    }
  });
}

template void nonnegative_rows_cpu(const double*, const float*, int64_t, int64_t, double, int64_t, double, float*,
                                   RowDescent*);
template void nonnegative_rows_cpu(const double*, const double*, int64_t, int64_t, double, int64_t, double, double*,
                                   RowDescent*);

}  // namespace fastlr::kernels
