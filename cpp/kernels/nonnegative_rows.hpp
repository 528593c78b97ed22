// Coordinate descent for many small nonnegative quadratic programs with one matrix.
#pragma once

#include <cstdint>

namespace fastlr::kernels {

// What descent did in one row: how much lower f is, and the squares of the KKT residuals where it began and ended.
struct RowDescent {
  double decrease, before, after;
};

// For every row b of B (rows x size, row-major like X and G): f(x) = xᵀGx/2 - bᵀx + penalty 1ᵀx is lowered over x >= 0,
// coordinate by coordinate, from the row of X, whose place x takes. A row has at most `passes`, and no more after one
// that lowers f by at most `tol` times what its first one did. G is symmetric and positive semidefinite.
template <typename T>
void nonnegative_rows_cpu(const double* G, const T* B, int64_t rows, int64_t size, double penalty, int64_t passes,
                          double tol, T* X, RowDescent* descents);

}  // namespace fastlr::kernels
