#include "batched_cholesky.hpp"

#include <algorithm>
#include <cmath>

#include "lanes.hpp"
#include "multiversion.hpp"

namespace fastlr::kernels {

namespace {

template <int64_t W>
inline __attribute__((always_inline)) void factorize_part(double* A, int64_t size, double* scale, double* M,
                                                          double* valid) {
  const Part<W> zero = {}, one = zero + 1;
  for (int64_t j = 0; j < size; ++j) {
    const Part<W> square = part<W>(A, j * size + j);
    square_root<W>(square > 0 ? square : one, part<W>(scale, j));
  }
  for (int64_t i = 0; i < size; ++i)
    for (int64_t j = 0; j <= i; ++j) {
      part<W>(A, i * size + j) /= part<W>(scale, i) * part<W>(scale, j);
      part<W>(M, i * size + j) = i == j ? one : zero;
    }
  part<W>(valid, 0) = one;
  for (int64_t k = 0; k < size; ++k) {
    const Part<W> pivot = part<W>(A, k * size + k);
    part<W>(valid, 0) = pivot > 0 ? part<W>(valid, 0) : zero;
    Part<W> root;
    square_root<W>(pivot > 0 ? pivot : one, root);
    const Part<W> reciprocal = 1 / root;
    part<W>(A, k * size + k) = root;
    for (int64_t j = 0; j <= k; ++j) part<W>(M, k * size + j) *= reciprocal;
    for (int64_t i = k + 1; i < size; ++i) {
      const Part<W> factor = part<W>(A, i * size + k) *= reciprocal;
      for (int64_t j = k + 1; j <= i; ++j) part<W>(A, i * size + j) -= factor * part<W>(A, j * size + k);
      for (int64_t j = 0; j <= k; ++j) part<W>(M, i * size + j) -= factor * part<W>(M, k * size + j);
    }
  }
}

}  // namespace

// Scales A to a unit diagonal and puts the lower triangular L, L Lᵀ the result, in its place, and the inverse of L
// into M. `valid` is zero in lanes in which a pivot is not positive.
FASTLR_MULTIVERSION void factorize(Lanes* A, int64_t size, Lanes* scale, Lanes* M, Lanes* valid);
void factorize(Lanes* A, int64_t size, Lanes* scale, Lanes* M, Lanes* valid) {
  for_parts([&]<int64_t W>(int64_t first) __attribute__((always_inline)) {
    const auto at = [&](Lanes* lanes) { return reinterpret_cast<double*>(lanes) + first; };
    factorize_part<W>(at(A), size, at(scale), at(M), at(valid));
  });
}

namespace {

// R = Lᵀ and R^-1 = Mᵀ of a lane, without the scaling. Returns the Frobenius norm of M.
template <typename T>
double store_factors(const Lanes* L, const Lanes* M, const Lanes* scale, int64_t size, int64_t lane, T* R, T* inverse) {
  double squares = 0.0;
  for (int64_t i = 0; i < size; ++i) {
    std::fill_n(R + i * size, i, T(0));
    std::fill_n(inverse + i * size, i, T(0));
    for (int64_t j = i; j < size; ++j) {
      const double entry = M[j * size + i][lane];
      R[i * size + j] = static_cast<T>(L[j * size + i][lane] * scale[j][lane]);
      inverse[i * size + j] = static_cast<T>(entry / scale[i][lane]);
      squares += entry * entry;
    }
  }
  return std::sqrt(squares);
}

}  // namespace

template <typename T>
void cholesky_cpu(const T* G, int64_t count, int64_t size, T* R, T* inverse, bool* valid, T* amplification) {
  const int64_t entries = size * size;
  for_lanes(count, 2 * entries + size + 1, [&](int64_t first, int64_t used, Lanes* buffer) {
    Lanes *L = buffer, *M = L + entries, *scale = M + entries, *positive = scale + size;
    load_lanes(G + first * entries, used, size, L);
    factorize(L, size, scale, M, positive);
    for (int64_t lane = 0; lane < used; ++lane) {
      const int64_t matrix = first + lane;
      const double norm = store_factors(L, M, scale, size, lane, R + matrix * entries, inverse + matrix * entries);
      valid[matrix] = (*positive)[lane] != 0.0;
      amplification[matrix] = static_cast<T>(norm / std::sqrt(static_cast<double>(size)));
    }
  });
}

template void cholesky_cpu(const float*, int64_t, int64_t, float*, float*, bool*, float*);
template void cholesky_cpu(const double*, int64_t, int64_t, double*, double*, bool*, double*);

}  // namespace fastlr::kernels
