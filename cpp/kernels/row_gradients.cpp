// Conjugate gradients for the rows of a factor, one at a time: the rows that belong to its entries stay in the cache
// from step to step, and no Gram matrix is made.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "multiversion.hpp"
#include "registers.hpp"
#include "row_shares.hpp"
#include "row_systems.hpp"

namespace fastlr::kernels {
namespace {

// Entries whose rows are multiplied together.
constexpr int64_t kTogether = 4;

// sum += Xᵀ W (targets - X p), X the rows of the entries from `first` on; without `values` the targets are zero.
template <typename R, int64_t N, typename T>
inline __attribute__((always_inline)) void add_products(const RowSystems<T>& systems, bool with_values, int64_t first,
                                                        const T* factor, int64_t k, const T* p, T* sum) {
  const T* x[N];
  typename R::Vector dots[N] = {};
  for (int64_t e = 0; e < N; ++e) x[e] = factor + systems.columns[first + e] * k;
  for (int64_t j = 0; j < k; j += R::kSize)
    for (int64_t e = 0; e < N; ++e) dots[e] += R::at(x[e] + j) * R::at(p + j);
  T left[N];
  for (int64_t e = 0; e < N; ++e) {
    const int64_t entry = first + e;
    const T shift = systems.shifts ? systems.shifts[systems.columns[entry]] : T(0);
    const T target = with_values ? systems.values[entry] - shift : T(0);
    left[e] = (systems.weights ? systems.weights[entry] : T(1)) * (target - R::sum(dots[e]));
  }
  for (int64_t j = 0; j < k; j += R::kSize) {
    typename R::Vector total = R::at(sum + j);
    for (int64_t e = 0; e < N; ++e) total += left[e] * R::at(x[e] + j);
    R::at(sum + j) = total;
  }
}

// Xᵀ W (targets - X p) - ridge (penalties p)
template <typename R, typename T>
inline __attribute__((always_inline)) void residual(const RowSystems<T>& systems, int64_t i, bool with_values,
                                                    const T* factor, int64_t k, const T* p, T* result) {
  for (int64_t j = 0; j < k; ++j)
    result[j] = -systems.ridge[i] * (systems.penalties ? systems.penalties[j] : T(1)) * p[j];
  int64_t e = systems.offsets[i];
  const int64_t end = systems.offsets[i + 1];
  for (; e + kTogether <= end; e += kTogether)
    add_products<R, kTogether>(systems, with_values, e, factor, k, p, result);
  for (; e < end; ++e) add_products<R, 1>(systems, with_values, e, factor, k, p, result);
}

// The diagonal of the normal equations of row i, inverted; 1 where it is zero.
template <typename R, typename T>
inline __attribute__((always_inline)) void inverse_diagonal(const RowSystems<T>& systems, int64_t i, const T* factor,
                                                            int64_t k, T* result) {
  for (int64_t j = 0; j < k; ++j) result[j] = systems.ridge[i] * (systems.penalties ? systems.penalties[j] : T(1));
  for (int64_t e = systems.offsets[i]; e < systems.offsets[i + 1]; ++e) {
    const T* x = factor + systems.columns[e] * k;
    const T weight = systems.weights ? systems.weights[e] : T(1);
    for (int64_t j = 0; j < k; j += R::kSize) R::at(result + j) += weight * R::at(x + j) * R::at(x + j);
  }
  for (int64_t j = 0; j < k; ++j) result[j] = result[j] > 0 ? 1 / result[j] : T(1);
}

// sum_j scale_j a_j b_j
template <typename R, typename T>
inline __attribute__((always_inline)) T scaled_dot(const T* scale, const T* a, const T* b, int64_t k) {
  typename R::Vector sum = {};
  for (int64_t j = 0; j < k; j += R::kSize) sum += R::at(scale + j) * R::at(a + j) * R::at(b + j);
  return R::sum(sum);
}

template <typename R, typename T>
inline __attribute__((always_inline)) void solve_row(const RowSystems<T>& systems, int64_t i, const T* factor,
                                                     int64_t k, T tolerance, int64_t steps, T* u, T* buffer) {
  T *left = buffer, *direction = left + k, *product = direction + k, *scale = product + k, *ones = scale + k;
  inverse_diagonal<R>(systems, i, factor, k, scale);
  std::fill_n(product, k, T(0));
  std::fill_n(ones, k, T(1));
  residual<R>(systems, i, true, factor, k, product, left);
  const T rounding = 4 * std::numeric_limits<T>::epsilon();
  const T least = rounding * rounding * scaled_dot<R>(scale, left, left, k);  // of the right-hand side
  residual<R>(systems, i, true, factor, k, u, left);
  for (int64_t j = 0; j < k; ++j) direction[j] = scale[j] * left[j];
  T square = scaled_dot<R>(scale, left, left, k);
  const T enough = std::max(tolerance * tolerance * square, least);
  for (int64_t step = 0; step < steps && square > enough; ++step) {
    residual<R>(systems, i, false, factor, k, direction, product);
    const T curvature = -scaled_dot<R>(ones, direction, product, k);
    if (!(curvature > 0)) return;
    const T length = square / curvature;
    for (int64_t j = 0; j < k; ++j) {
      u[j] += length * direction[j];
      left[j] += length * product[j];
    }
    const T before = square;
    square = scaled_dot<R>(scale, left, left, k);
    for (int64_t j = 0; j < k; ++j) direction[j] = scale[j] * left[j] + square / before * direction[j];
  }
}

template <typename R, typename T>
inline __attribute__((always_inline)) void solve_range(const RowSystems<T>& systems, int64_t begin, int64_t end,
                                                       const T* factor, int64_t k, T tolerance, int64_t steps,
                                                       T* solutions) {
  std::vector<T> buffer(5 * k);
  for (int64_t i = begin; i < end; ++i)
    solve_row<R>(systems, i, factor, k, tolerance, steps, solutions + i * k, buffer.data());
}

}  // namespace

#define FASTLR_DEFINE_SOLVE_BY_GRADIENTS(T)                                                                          \
  FASTLR_MULTIVERSION void solve_by_gradients(const RowSystems<T>& systems, int64_t begin, int64_t end,              \
                                              const T* factor, int64_t k, T tolerance, int64_t steps, T* solutions); \
  void solve_by_gradients(const RowSystems<T>& systems, int64_t begin, int64_t end, const T* factor, int64_t k,      \
                          T tolerance, int64_t steps, T* solutions) {                                                \
    has_registers_of_512_bits()                                                                                      \
        ? solve_range<Registers<T, 64>>(systems, begin, end, factor, k, tolerance, steps, solutions)                 \
        : solve_range<Registers<T, 32>>(systems, begin, end, factor, k, tolerance, steps, solutions);                \
  }
FASTLR_DEFINE_SOLVE_BY_GRADIENTS(float)
FASTLR_DEFINE_SOLVE_BY_GRADIENTS(double)
#undef FASTLR_DEFINE_SOLVE_BY_GRADIENTS

template <typename T>
void solve_rows_by_gradients_cpu(const RowSystems<T>& systems, const T* factor, int64_t k, double tolerance,
                                 int64_t steps, T* solutions) {
  for_row_shares(systems.offsets, systems.count, /*own=*/1, /*flops=*/4 * k * steps, [&](int64_t begin, int64_t end) {
    solve_by_gradients(systems, begin, end, factor, k, static_cast<T>(tolerance), steps, solutions);
  });
}

template void solve_rows_by_gradients_cpu(const RowSystems<float>&, const float*, int64_t, double, int64_t, float*);
template void solve_rows_by_gradients_cpu(const RowSystems<double>&, const double*, int64_t, double, int64_t, double*);

}  // namespace fastlr::kernels
