#include "few_rows.hpp"

#include <ATen/Parallel.h>
#include <c10/util/BFloat16.h>

#include <algorithm>
#include <cstring>

#include "multiversion.hpp"
#include "registers.hpp"

#define FASTLR_INLINE inline __attribute__((always_inline))

namespace fastlr::kernels {
namespace {

// Entries of W that take some 10 microseconds: for fewer a second thread costs more than it saves.
constexpr int64_t kTask = 1 << 15;
// Rows of W that stay in the cache while they are multiplied with all vectors.
constexpr int64_t kRows = 8;

// Vectors of bfloat16 and of the bits that they are widened to.
template <int64_t Bytes>
struct Words;
template <>
struct Words<32> {
  typedef uint16_t Short __attribute__((vector_size(16), aligned(2), may_alias));
  typedef uint32_t Long __attribute__((vector_size(32)));
};
template <>
struct Words<64> {
  typedef uint16_t Short __attribute__((vector_size(32), aligned(2), may_alias));
  typedef uint32_t Long __attribute__((vector_size(64)));
};

// Entries of W as they are summed, in registers of so many bytes.
template <int64_t Bytes>
struct Wide {
  using Floats = typename Registers<float, Bytes>::Vector;
  using Doubles = typename Registers<double, Bytes>::Vector;
  using Bits = typename Words<Bytes>::Long;

  static FASTLR_INLINE void load(const float* entries, Floats& wide) { wide = Registers<float, Bytes>::at(entries); }
  static FASTLR_INLINE void load(const double* entries, Doubles& wide) { wide = Registers<double, Bytes>::at(entries); }
  static FASTLR_INLINE void load(const c10::BFloat16* entries, Floats& wide) {
    const Bits bits = __builtin_convertvector(*reinterpret_cast<const typename Words<Bytes>::Short*>(entries), Bits)
                      << 16;
    std::memcpy(&wide, &bits, Bytes);
  }
};

// Totals of the lanes of K vectors, in a tree that adds as many lanes at once as a vector has.
template <typename Register, int64_t K>
struct Totals {
  typename Register::Vector (&sums)[K];

  FASTLR_INLINE explicit Totals(typename Register::Vector (&vectors)[K]) : sums(vectors) { add_lanes<1>(); }

  // Lanes that are K apart are parts of one total: the tree goes on, so that a total is the same whatever K is.
  FASTLR_INLINE auto operator[](int64_t k) const {
    if constexpr (K >= Register::kSize) return sums[k / Register::kSize][k % Register::kSize];
    auto lanes = sums[0];
    for (int64_t distance = K; distance < Register::kSize; distance *= 2)
      for (int64_t lane = k; lane < Register::kSize; lane += 2 * distance) lanes[lane] += lanes[lane + distance];
    return lanes[k];
  }

 private:
  // Each two vectors become one: of either, lanes that are `distance` apart are added.
  template <int64_t distance>
  FASTLR_INLINE void add_lanes() {
    if constexpr (distance < Register::kSize && distance < K) {
      for (int64_t k = 0; k < K / distance; k += 2) {
        const auto one = sums[k], other = sums[k + 1];
        typename Register::Vector near, far;
        for (int64_t lane = 0; lane < Register::kSize; ++lane) {
          const int64_t in_pair = lane % (2 * distance), first = lane - in_pair + in_pair % distance;
          near[lane] = in_pair < distance ? one[first] : other[first];
          far[lane] = in_pair < distance ? one[first + distance] : other[first + distance];
        }
        sums[k / 2] = near + far;
      }
      add_lanes<2 * distance>();
    }
  }
};

// R rows of W times N vectors: R·N = 8 registers of sums hide the latency of additions.
template <int64_t Bytes, int64_t R, int64_t N, typename T, typename Sum>
FASTLR_INLINE void add_products(const T* W, int64_t columns, Strided<const Sum> X, Strided<Sum> out) {
  using Register = Registers<Sum, Bytes>;
  using Vector = typename Register::Vector;
  Vector sums[R * N] = {};
  int64_t j = 0;
  for (; j + Register::kSize <= columns; j += Register::kSize)
    for (int64_t r = 0; r < R; ++r) {
      Vector wide;
      Wide<Bytes>::load(W + r * columns + j, wide);
      for (int64_t n = 0; n < N; ++n) sums[r * N + n] += wide * Register::at(X.entries + n * X.stride + j);
    }
  const bool overlaps = j < columns && columns >= Register::kSize;
  if (overlaps) {  // the last entries, behind some that are there already
    const int64_t last = columns - Register::kSize;
    Vector lanes;
    for (int64_t lane = 0; lane < Register::kSize; ++lane) lanes[lane] = lane;
    const auto is_new = lanes >= static_cast<Sum>(j - last);
    for (int64_t r = 0; r < R; ++r) {
      Vector wide;
      Wide<Bytes>::load(W + r * columns + last, wide);
      wide = is_new ? wide : Vector{};
      for (int64_t n = 0; n < N; ++n)
        sums[r * N + n] += wide * (is_new ? Register::at(X.entries + n * X.stride + last) : Vector{});
    }
    j = columns;
  }
  const Totals<Register, R * N> totals(sums);
  for (int64_t r = 0; r < R; ++r)
    for (int64_t n = 0; n < N; ++n) {
      Sum total = totals[r * N + n];
      for (int64_t rest = j; rest < columns; ++rest)
        total += static_cast<Sum>(W[r * columns + rest]) * X.entries[n * X.stride + rest];
      out.entries[n * out.stride + r] += total;
    }
}

// A few rows of W, R at a time, times N vectors.
template <int64_t Bytes, int64_t R, int64_t N, typename T, typename Sum>
FASTLR_INLINE void add_rows(const T* W, int64_t rows, int64_t columns, Strided<const Sum> X, Strided<Sum> out) {
  int64_t row = 0;
  const auto from = [&] { return Strided<Sum>{out.entries + row, out.stride}; };
  for (; row + R <= rows; row += R) add_products<Bytes, R, N>(W + row * columns, columns, X, from());
  for (; row < rows; ++row) add_products<Bytes, 1, N>(W + row * columns, columns, X, from());
}

template <int64_t Bytes, typename T, typename Sum>
FASTLR_INLINE void add_all(const T* W, int64_t rows, int64_t columns, Strided<const Sum> X, int64_t count,
                           Strided<Sum> out) {
  for (int64_t row = 0; row < rows; row += kRows) {
    const int64_t height = std::min(kRows, rows - row);
    const T* block = W + row * columns;
    int64_t n = 0;
    const auto vectors = [&] { return Strided<const Sum>{X.entries + n * X.stride, X.stride}; };
    const auto sums = [&] { return Strided<Sum>{out.entries + n * out.stride + row, out.stride}; };
    for (; n + 4 <= count; n += 4) add_rows<Bytes, 2, 4>(block, height, columns, vectors(), sums());
    for (; n + 2 <= count; n += 2) add_rows<Bytes, 4, 2>(block, height, columns, vectors(), sums());
    for (; n < count; ++n) add_rows<Bytes, 8, 1>(block, height, columns, vectors(), sums());
  }
}

}  // namespace

// target_clones takes neither templates nor internal linkage in every compiler: plain functions.
#define FASTLR_DEFINE_ADD(T, Sum)                                                                                  \
  FASTLR_MULTIVERSION void add_few(const T* W, int64_t rows, int64_t columns, Strided<const Sum> X, int64_t count, \
                                   Strided<Sum> out);                                                              \
  void add_few(const T* W, int64_t rows, int64_t columns, Strided<const Sum> X, int64_t count, Strided<Sum> out) { \
    if (has_registers_of_512_bits())                                                                               \
      add_all<64>(W, rows, columns, X, count, out);                                                                \
    else                                                                                                           \
      add_all<32>(W, rows, columns, X, count, out);                                                                \
  }
FASTLR_DEFINE_ADD(float, float)
FASTLR_DEFINE_ADD(double, double)
FASTLR_DEFINE_ADD(c10::BFloat16, float)

template <typename T>
void add_products_with_few(const T* W, int64_t rows, int64_t columns, Strided<const at::opmath_type<T>> X,
                           int64_t count, Strided<at::opmath_type<T>> out) {
  const int64_t grain = std::max<int64_t>(kRows, kTask / std::max<int64_t>(1, columns));
  at::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    add_few(W + begin * columns, end - begin, columns, X, count, {out.entries + begin, out.stride});
  });
}

#define FASTLR_INSTANTIATE(T)                                                                                 \
  template void add_products_with_few(const T*, int64_t, int64_t, Strided<const at::opmath_type<T>>, int64_t, \
                                      Strided<at::opmath_type<T>>);
FASTLR_INSTANTIATE(float)
FASTLR_INSTANTIATE(double)
FASTLR_INSTANTIATE(c10::BFloat16)

}  // namespace fastlr::kernels
