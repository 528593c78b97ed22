// Many small least-squares problems whose rows are those of one matrix.
#pragma once

#include <cstdint>

namespace fastlr::kernels {

// Problem i has the entries [offsets[i], offsets[i + 1]) of `columns`, `values` and `weights` (null: all 1).
template <typename T>
struct RowSystems {
  int64_t count;
  const int64_t *offsets, *columns;
  const T *values, *weights;
  const T* shifts;     // of every column, taken from its values; null: none
  const T* ridge;      // of every problem
  const T* penalties;  // what of it every unknown has, the intercept last; null: all 1
};

// Row i of `solutions` (count x k, row-major) and intercepts[i] (null: none, zero) minimise
//   sum_e weight_e (value_e - shift - intercept_i - factor[column_e] . u)^2 + ridge_i sum_j penalty_j u_j^2,
// `factor` row-major with rows of length k, by a Cholesky factorization of the normal equations. `definite` is false
// where a pivot is rounding: the solution is then zero, as that of a row without entries is. nnz k^2 + count k^3 / 3
// flops.
template <typename T>
void solve_rows_cpu(const RowSystems<T>& systems, const T* factor, int64_t k, T* solutions, T* intercepts,
                    bool* definite);

// The same without intercepts by conjugate gradients from what `solutions` hold, scaled by the diagonal, until the
// residual of the normal equations is `tolerance` of what it was, or rounding, in at most `steps` steps; k a multiple
// of kLine. 4 nnz k flops a step, and 10 nnz k.
template <typename T>
void solve_rows_by_gradients_cpu(const RowSystems<T>& systems, const T* factor, int64_t k, double tolerance,
                                 int64_t steps, T* solutions);

// The same on a GPU, for an order of the normal equations that fits its shared memory; `stream` is a cudaStream_t.
template <typename T>
void solve_rows_cuda(const RowSystems<T>& systems, const T* factor, int64_t k, T* solutions, T* intercepts,
                     bool* definite, void* stream);
template <typename T>
void solve_rows_by_gradients_cuda(const RowSystems<T>& systems, const T* factor, int64_t k, double tolerance,
                                  int64_t steps, T* solutions, void* stream);

// Entries of a row of a factor that the vectors of every processor divide.
constexpr int64_t kLine = 16;

}  // namespace fastlr::kernels
