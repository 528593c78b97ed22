#include "interpolative.hpp"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "multiversion.hpp"

namespace fastlr::kernels {
namespace {

// Independent lanes, so that the maximum needs no reordering of floating-point operations to be vectorised.
constexpr int64_t kLanes = 16;

template <typename T>
inline __attribute__((always_inline)) T subtract_and_find_largest(T* row, const T* pivot_row, T factor, int64_t size) {
  T largest[kLanes] = {};
  int64_t j = 0;
  for (; j + kLanes <= size; j += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const T value = row[j + lane] - factor * pivot_row[j + lane];
      const T magnitude = value < 0 ? -value : value;
      row[j + lane] = value;
      largest[lane] = magnitude > largest[lane] ? magnitude : largest[lane];
    }
  }
  for (; j < size; ++j) {
    row[j] -= factor * pivot_row[j];
    largest[0] = std::max(largest[0], std::abs(row[j]));
  }
  return *std::max_element(largest, largest + kLanes);
}

}  // namespace

FASTLR_MULTIVERSION float update_row(float* row, const float* pivot_row, float factor, int64_t size);
float update_row(float* row, const float* pivot_row, float factor, int64_t size) {
  return subtract_and_find_largest(row, pivot_row, factor, size);
}

FASTLR_MULTIVERSION double update_row(double* row, const double* pivot_row, double factor, int64_t size);
double update_row(double* row, const double* pivot_row, double factor, int64_t size) {
  return subtract_and_find_largest(row, pivot_row, factor, size);
}

template <typename T>
int64_t swap_until_bounded_cpu(T* coefficients, int64_t others, int64_t rank, double bound, int64_t most,
                               int64_t* order) {
  if (others == 0 || rank == 0) return 0;
  std::vector<T> row_largest(others), pivot_row(rank, T(0));
  // A sweep over 2^17 entries takes some 30 microseconds: below that a second thread costs more than it saves.
  const int64_t grain = std::max<int64_t>(1, (1 << 17) / rank);

  // With a zero factor the sweep only finds the largest entries: that is the start.
  int64_t p = -1, q = 0;
  T reciprocal = 0;
  for (int64_t exchanged = 0;; ++exchanged) {
    at::parallel_for(0, others, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        T* row = coefficients + i * rank;
        if (i == p) {
          for (int64_t j = 0; j < rank; ++j) row[j] = -pivot_row[j] * reciprocal;
          row[q] = reciprocal;
          row_largest[i] = update_row(row, pivot_row.data(), T(0), rank);
        } else {
          const T factor = p < 0 ? T(0) : row[q] * reciprocal;
          // The pivot row holds -1 more at q than T does: the sweep then leaves `factor` there.
          row_largest[i] = update_row(row, pivot_row.data(), factor, rank);
        }
      }
    });
    const auto top = std::max_element(row_largest.begin(), row_largest.end());
    if (!(*top > bound) || exchanged == most) return exchanged;

    p = top - row_largest.begin();
    const T* row = coefficients + p * rank;
    q = std::max_element(row, row + rank, [](T a, T b) { return std::abs(a) < std::abs(b); }) - row;
    reciprocal = T(1) / row[q];
    std::copy_n(row, rank, pivot_row.begin());
    pivot_row[q] -= T(1);
    std::swap(order[q], order[rank + p]);
  }
}

template int64_t swap_until_bounded_cpu(float*, int64_t, int64_t, double, int64_t, int64_t*);
template int64_t swap_until_bounded_cpu(double*, int64_t, int64_t, double, int64_t, int64_t*);

}  // namespace fastlr::kernels
