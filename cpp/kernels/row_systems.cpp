// Normal equations are summed row by row in registers, factorized for as many rows side by side as a vector has lanes.
#include "row_systems.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <new>

#include "multiversion.hpp"
#include "registers.hpp"
#include "row_shares.hpp"

namespace fastlr::kernels {
namespace {

// Rows that are gathered before they are multiplied: they stay in the first cache.
constexpr int64_t kGathered = 96;
// How far ahead of the row that is gathered others are fetched.
constexpr int64_t kAhead = 96;
// Rows of a Gram matrix that are summed in registers beside kWide vectors of columns.
template <typename R>
constexpr int64_t kTall = R::kBytes / 8;
constexpr int64_t kWide = 3;

// What one thread works in, for the normal equations of order k and an intercept.
template <typename T, int64_t Bytes>
class Buffers {
  using R = Registers<T, Bytes>;

 public:
  explicit Buffers(int64_t k)
      : stride(R::rounded_up(k)),
        order(k),
        size_(stride * stride + kGathered * (stride + 2) + 2 * stride + R::kSize * ((k + 2) * (k + 3) / 2 + k + 2)),
        memory_(static_cast<T*>(::operator new(size_ * sizeof(T), std::align_val_t(64)))) {
    std::fill_n(memory_, size_, T(0));
    lanes = memory_;
    limits = lanes + R::kSize * ((k + 2) * (k + 3) / 2);
    G = limits + R::kSize * (k + 2);
    X = G + stride * stride;
    right = X + kGathered * stride;
    sums = right + stride;
    targets = sums + stride;
    weights = targets + kGathered;
  }
  ~Buffers() { ::operator delete(memory_, std::align_val_t(64)); }
  Buffers(const Buffers&) = delete;
  Buffers& operator=(const Buffers&) = delete;

  // Entry (i, j) of the lower triangles, for all lanes.
  T* entry(int64_t i, int64_t j) { return lanes + R::kSize * (i * (i + 1) / 2 + j); }

  int64_t stride, order;
  T *lanes, *limits, *G, *X, *right, *sums, *targets, *weights;

 private:
  int64_t size_;
  T* memory_;
};

// G[a + i, b ...] += sum_e X[e, a + i] X[e, b ...] for Rows rows and N vectors.
template <typename R, int64_t Rows, int64_t N, typename T>
inline __attribute__((always_inline)) void add_tile(const T* X, int64_t entries, int64_t stride, int64_t a, int64_t b,
                                                    T* G) {
  typename R::Vector sums[Rows][N];
  for (int64_t i = 0; i < Rows; ++i)
    for (int64_t v = 0; v < N; ++v) sums[i][v] = R::at(G + (a + i) * stride + b + v * R::kSize);
  for (int64_t e = 0; e < entries; ++e) {
    const T* x = X + e * stride;
    typename R::Vector right[N];
    for (int64_t v = 0; v < N; ++v) right[v] = R::at(x + b + v * R::kSize);
    for (int64_t i = 0; i < Rows; ++i)
      for (int64_t v = 0; v < N; ++v) sums[i][v] += x[a + i] * right[v];
  }
  for (int64_t i = 0; i < Rows; ++i)
    for (int64_t v = 0; v < N; ++v) R::at(G + (a + i) * stride + b + v * R::kSize) = sums[i][v];
}

// The upper triangle of G += XᵀX, and what is below it within a vector.
template <typename R, typename T>
inline __attribute__((always_inline)) void add_gram(const T* X, int64_t entries, int64_t stride, T* G) {
  constexpr int64_t tall = std::min(kTall<R>, R::kSize), taller = std::min(2 * kTall<R>, R::kSize);
  for (int64_t band = 0; band < stride; band += R::kSize) {
    int64_t b = band;
    for (int64_t left; (left = (stride - b) / R::kSize) > 0;) {
      // 4 = 2 + 2: a single vector keeps the multipliers waiting.
      const int64_t wide = left == 4 ? 2 : std::min(left, kWide);
      if (wide == 1) {
        for (int64_t a = band; a < band + R::kSize; a += taller) add_tile<R, taller, 1>(X, entries, stride, a, b, G);
      } else if (wide == 2) {
        for (int64_t a = band; a < band + R::kSize; a += tall) add_tile<R, tall, 2>(X, entries, stride, a, b, G);
      } else {
        for (int64_t a = band; a < band + R::kSize; a += tall) add_tile<R, tall, 3>(X, entries, stride, a, b, G);
      }
      b += wide * R::kSize;
    }
  }
}

// sum += Xᵀ y
template <typename R, typename T>
inline __attribute__((always_inline)) void add_product(const T* X, const T* y, int64_t entries, int64_t stride,
                                                       T* sum) {
  for (int64_t j = 0; j < stride; j += R::kSize) {
    typename R::Vector even = R::at(sum + j), odd = {};
    int64_t e = 0;
    for (; e + 1 < entries; e += 2) {
      even += y[e] * R::at(X + e * stride + j);
      odd += y[e + 1] * R::at(X + (e + 1) * stride + j);
    }
    if (e < entries) even += y[e] * R::at(X + e * stride + j);
    R::at(sum + j) = even + odd;
  }
}

// Gathers rows of the factor and targets, times the roots of the weights; those to come are fetched meanwhile.
template <typename R, typename T, typename B>
inline __attribute__((always_inline)) void gather(const RowSystems<T>& systems, int64_t first, int64_t entries,
                                                  const T* factor, B& buffers) {
  constexpr int64_t line = 64 / sizeof(T);
  const int64_t last = systems.offsets[systems.count] - 1, k = buffers.order;
  for (int64_t e = 0; e < entries; ++e) {
    const T* coming = factor + systems.columns[std::min(first + e + kAhead, last)] * k;
    for (int64_t j = 0; j < k; j += line) __builtin_prefetch(coming + j, 0, 2);
    const int64_t column = systems.columns[first + e];
    const T* row = factor + column * k;
    T* x = buffers.X + e * buffers.stride;
    const T root = systems.weights ? std::sqrt(systems.weights[first + e]) : T(1);
    int64_t j = 0;
    for (; j + R::kSize <= k; j += R::kSize) R::at(x + j) = root * R::at(row + j);
    for (; j < k; ++j) x[j] = root * row[j];
    const T value = systems.values[first + e] - (systems.shifts ? systems.shifts[column] : T(0));
    buffers.targets[e] = root * value;
    buffers.weights[e] = root;
  }
}

// The normal equations of problem i as lower triangles in `lane`, and their right-hand side as a row below them.
template <typename R, typename T, typename B>
inline __attribute__((always_inline)) void set_lane(const RowSystems<T>& systems, int64_t i, const T* factor,
                                                    bool intercept, int64_t lane, B& buffers) {
  const int64_t k = buffers.order, stride = buffers.stride;
  std::fill_n(buffers.G, stride * stride, T(0));
  std::fill_n(buffers.right, 2 * stride, T(0));  // and the sums
  T weight = 0, total = 0;
  for (int64_t first = systems.offsets[i]; first < systems.offsets[i + 1]; first += kGathered) {
    const int64_t entries = std::min(kGathered, systems.offsets[i + 1] - first);
    gather<R>(systems, first, entries, factor, buffers);
    add_product<R>(buffers.X, buffers.targets, entries, stride, buffers.right);
    add_gram<R>(buffers.X, entries, stride, buffers.G);
    if (!intercept) continue;
    add_product<R>(buffers.X, buffers.weights, entries, stride, buffers.sums);
    for (int64_t e = 0; e < entries; ++e) {
      weight += buffers.weights[e] * buffers.weights[e];
      total += buffers.weights[e] * buffers.targets[e];
    }
  }
  const auto penalty = [&](int64_t j) { return systems.ridge[i] * (systems.penalties ? systems.penalties[j] : T(1)); };
  T* entry = buffers.lanes + lane;
  for (int64_t r = 0; r < k; ++r) {
    for (int64_t c = 0; c <= r; ++c, entry += R::kSize) *entry = buffers.G[c * stride + r];
    entry[-R::kSize] += penalty(r);
  }
  if (intercept) {
    for (int64_t c = 0; c < k; ++c, entry += R::kSize) *entry = buffers.sums[c];
    *entry = weight + penalty(k);
    entry += R::kSize;
  }
  for (int64_t c = 0; c < k; ++c, entry += R::kSize) *entry = buffers.right[c];
  if (intercept) *entry = total;
}

// A lane that no problem needs, or one without entries, whose solution is zero: the identity.
template <typename R, typename B>
inline __attribute__((always_inline)) void clear_lane(int64_t order, int64_t lane, B& buffers) {
  for (int64_t r = 0; r <= order; ++r)
    for (int64_t c = 0; c <= r; ++c) buffers.entry(r, c)[lane] = r == c && r < order;
}

// Entries (i, j) of Rows x Columns: what the columns before j leave of them.
template <typename R, int64_t Rows, int64_t Columns, typename B>
inline __attribute__((always_inline)) void subtract_products(B& buffers, int64_t i, int64_t j,
                                                             typename R::Vector (&rest)[Rows][Columns]) {
  for (int64_t r = 0; r < Rows; ++r)
    for (int64_t c = 0; c < Columns; ++c) rest[r][c] = R::at(buffers.entry(i + r, j + c));
  for (int64_t p = 0; p < j; ++p) {
    typename R::Vector left[Rows];
    for (int64_t r = 0; r < Rows; ++r) left[r] = R::at(buffers.entry(i + r, p));
    for (int64_t c = 0; c < Columns; ++c) {
      const typename R::Vector right = R::at(buffers.entry(j + c, p));
      for (int64_t r = 0; r < Rows; ++r) rest[r][c] -= left[r] * right;
    }
  }
}

// The same, divided by the triangle at (j, j), whose diagonal holds reciprocals.
template <typename R, int64_t Rows, int64_t Columns, typename B>
inline __attribute__((always_inline)) void divide_tile(B& buffers, int64_t i, int64_t j) {
  typename R::Vector rest[Rows][Columns];
  subtract_products<R>(buffers, i, j, rest);
  for (int64_t c = 0; c < Columns; ++c)
    for (int64_t r = 0; r < Rows; ++r) {
      for (int64_t p = 0; p < c; ++p) rest[r][c] -= rest[r][p] * R::at(buffers.entry(j + c, j + p));
      rest[r][c] *= R::at(buffers.entry(j + c, j + c));
      R::at(buffers.entry(i + r, j + c)) = rest[r][c];
    }
}

// Rows i ... of the triangle, in the first columns.
template <typename R, int64_t Rows, typename B>
inline __attribute__((always_inline)) void divide_rows(B& buffers, int64_t i, int64_t columns) {
  int64_t j = 0;
  for (; j + 4 <= columns; j += 4) divide_tile<R, Rows, 4>(buffers, i, j);
  for (; j + 2 <= columns; j += 2) divide_tile<R, Rows, 2>(buffers, i, j);
  if (j < columns) divide_tile<R, Rows, 1>(buffers, i, j);
}

// 1 / sqrt of what is left of the entry on the diagonal. A pivot that is rounding clears `definite` and counts as 1.
template <typename R, typename T>
inline __attribute__((always_inline)) void set_pivot(const typename R::Vector& rest, T rounding, T* entry,
                                                     typename R::Vector& definite) {
  const typename R::Vector one = R::at(entry) * 0 + 1;
  const auto valid = rest > rounding * R::at(entry);
  definite = valid ? definite : one - 1;
  const typename R::Vector pivot = valid ? rest : one;
  typename R::Vector root;
  for (int64_t lane = 0; lane < R::kSize; ++lane) root[lane] = std::sqrt(pivot[lane]);
  R::at(entry) = one / root;
}

// The diagonal block of rows i ... of the triangle, after the columns before it.
template <typename R, int64_t Rows, typename T, typename B>
inline __attribute__((always_inline)) void factorize_diagonal(B& buffers, int64_t i, T rounding,
                                                              typename R::Vector& definite) {
  typename R::Vector rest[Rows][Rows];  // what is above the diagonal is not used
  subtract_products<R>(buffers, i, i, rest);
  for (int64_t c = 0; c < Rows; ++c) {
    set_pivot<R>(rest[c][c], rounding, buffers.entry(i + c, i + c), definite);
    for (int64_t r = c + 1; r < Rows; ++r) {
      rest[r][c] *= R::at(buffers.entry(i + c, i + c));
      R::at(buffers.entry(i + r, i + c)) = rest[r][c];
      for (int64_t d = c + 1; d <= r; ++d) rest[r][d] -= rest[r][c] * rest[d][c];
    }
  }
}

// All lanes: L of A = LLᵀ, then the solution in the place of the right-hand side. `definite` is 1 or 0.
template <typename R, typename T, typename B>
inline __attribute__((always_inline)) void solve_lanes(B& buffers, int64_t order, typename R::Vector& definite) {
  const T rounding = 4 * static_cast<T>(order) * std::numeric_limits<T>::epsilon();
  definite = typename R::Vector{} + 1;
  int64_t i = 0;
  for (; i + 2 <= order; i += 2) {
    divide_rows<R, 2>(buffers, i, i);
    factorize_diagonal<R, 2>(buffers, i, rounding, definite);
  }
  if (i < order) {
    divide_rows<R, 1>(buffers, i, i);
    factorize_diagonal<R, 1>(buffers, i, rounding, definite);
  }
  divide_rows<R, 1>(buffers, order, order);
  for (int64_t j = order; j-- > 0;) {
    const typename R::Vector x = R::at(buffers.entry(order, j)) * R::at(buffers.entry(j, j));
    R::at(buffers.entry(order, j)) = x;
    for (int64_t p = 0; p < j; ++p) R::at(buffers.entry(order, p)) -= x * R::at(buffers.entry(j, p));
  }
}

template <typename T, int64_t Bytes>
inline __attribute__((always_inline)) void solve_range(const RowSystems<T>& systems, int64_t begin, int64_t end,
                                                       const T* factor, int64_t k, T* solutions, T* intercepts,
                                                       bool* definite) {
  using R = Registers<T, Bytes>;
  Buffers<T, Bytes> buffers(k);
  const int64_t order = k + (intercepts != nullptr);
  for (int64_t first = begin; first < end; first += R::kSize) {
    for (int64_t lane = 0; lane < R::kSize; ++lane) {
      if (first + lane < end && systems.offsets[first + lane] < systems.offsets[first + lane + 1])
        set_lane<R>(systems, first + lane, factor, intercepts != nullptr, lane, buffers);
      else
        clear_lane<R>(order, lane, buffers);
    }
    typename R::Vector valid;
    solve_lanes<R, T>(buffers, order, valid);
    for (int64_t lane = 0; lane < std::min(R::kSize, end - first); ++lane) {
      const int64_t i = first + lane;
      definite[i] = valid[lane] != 0;
      for (int64_t j = 0; j < k; ++j) solutions[i * k + j] = definite[i] ? buffers.entry(order, j)[lane] : T(0);
      if (intercepts) intercepts[i] = definite[i] ? buffers.entry(order, k)[lane] : T(0);
    }
  }
}

}  // namespace

#define FASTLR_DEFINE_SOLVE_SOME(T)                                                                                   \
  FASTLR_MULTIVERSION void solve_some(const RowSystems<T>& systems, int64_t begin, int64_t end, const T* factor,      \
                                      int64_t k, T* solutions, T* intercepts, bool* definite);                        \
  void solve_some(const RowSystems<T>& systems, int64_t begin, int64_t end, const T* factor, int64_t k, T* solutions, \
                  T* intercepts, bool* definite) {                                                                    \
    if (has_registers_of_512_bits())                                                                                  \
      solve_range<T, 64>(systems, begin, end, factor, k, solutions, intercepts, definite);                            \
    else                                                                                                              \
      solve_range<T, 32>(systems, begin, end, factor, k, solutions, intercepts, definite);                            \
  }
FASTLR_DEFINE_SOLVE_SOME(float)
FASTLR_DEFINE_SOLVE_SOME(double)
#undef FASTLR_DEFINE_SOLVE_SOME

template <typename T>
void solve_rows_cpu(const RowSystems<T>& systems, const T* factor, int64_t k, T* solutions, T* intercepts,
                    bool* definite) {
  for_row_shares(
      systems.offsets, systems.count, /*own=*/k / 3 + 1, /*flops=*/k * k + 1,
      [&](int64_t begin, int64_t end) { solve_some(systems, begin, end, factor, k, solutions, intercepts, definite); });
}

template void solve_rows_cpu(const RowSystems<float>&, const float*, int64_t, float*, float*, bool*);
template void solve_rows_cpu(const RowSystems<double>&, const double*, int64_t, double*, double*, bool*);

}  // namespace fastlr::kernels
