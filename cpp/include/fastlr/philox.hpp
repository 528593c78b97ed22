// Philox4x32-10 and the transforms from its words to uniform, Gaussian and sign variates.
//
// Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
//
// Everything here is a pure function that compiles for the host and for CUDA, and uses only
// operations that IEEE 754 rounds correctly (+, -, *, /, sqrt, int-to-float), in a fixed order. It is
// compiled with floating-point contraction off, so every instruction set and device gives the same
// bits.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define FASTLR_HOST_DEVICE __host__ __device__ __forceinline__
#define FASTLR_UNROLL _Pragma("unroll")
#else
#define FASTLR_HOST_DEVICE inline __attribute__((always_inline))
#define FASTLR_UNROLL _Pragma("GCC unroll 16")
#endif

namespace fastlr::philox {

struct Words {
  uint32_t w0, w1, w2, w3;
};

FASTLR_HOST_DEVICE Words draw(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0, uint32_t k1) {
  constexpr uint32_t multiplier0 = 0xD2511F53u, multiplier1 = 0xCD9E8D57u;
  constexpr uint32_t weyl0 = 0x9E3779B9u, weyl1 = 0xBB67AE85u;
  FASTLR_UNROLL
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = static_cast<uint64_t>(multiplier0) * c0;
    const uint64_t product1 = static_cast<uint64_t>(multiplier1) * c2;
    c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ k0;
    c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(product1);
    c3 = static_cast<uint32_t>(product0);
    k0 += weyl0;
    k1 += weyl1;
  }
  return {c0, c1, c2, c3};
}

// ---- words to a number in (0, 1], and to an angle in [-1, 1) quarter turns of pi/4 ----
// Only signed 32-bit conversions: every vector instruction set has them.

FASTLR_HOST_DEVICE float as_float(uint32_t w) { return static_cast<float>(static_cast<int32_t>(w)); }
FASTLR_HOST_DEVICE double as_double(uint32_t w) { return static_cast<double>(static_cast<int32_t>(w)); }

FASTLR_HOST_DEVICE float unit_interval(uint32_t w) { return as_float(w >> 1) * 0x1p-31f + 0x1p-32f; }
FASTLR_HOST_DEVICE double unit_interval(uint32_t low, uint32_t high) {
  return (as_double(high >> 1) + as_double(low >> 10) * 0x1p-22) * 0x1p-31 + 0x1p-54;
}

// The two top bits of a word choose the quadrant; the rest is the angle within it.
FASTLR_HOST_DEVICE float eighth_turn(uint32_t w) { return as_float(w << 2) * 0x1p-31f; }
FASTLR_HOST_DEVICE double eighth_turn(uint32_t low, uint32_t high) {
  return (as_double(high << 2) + as_double(low >> 10) * 0x1p-20) * 0x1p-31;
}

// ---- series, summed by Horner's rule from compile-time rational coefficients ----

// sum over j < Terms of z^j / (2j + 1): log m = 2 s * series(s^2) with s = (m - 1) / (m + 1).
template <int Terms, typename T>
FASTLR_HOST_DEVICE T atanh_series(T z) {
  T sum = T(1) / T(2 * Terms - 1);
  FASTLR_UNROLL
  for (int j = Terms - 2; j >= 0; --j) sum = sum * z + T(1) / T(2 * j + 1);
  return sum;
}

// Horner steps of sin x = x (1 - x^2/(2*3) (1 - x^2/(4*5) (...))), and likewise cos with First = 1.
template <int First, int Terms, typename T>
FASTLR_HOST_DEVICE T alternating_series(T z) {
  T sum = T(1);
  FASTLR_UNROLL
  for (int j = Terms; j >= 1; --j) sum = T(1) - z * (T(1) / T((2 * j - 2 + First) * (2 * j - 1 + First))) * sum;
  return sum;
}

// m in [sqrt(1/2), sqrt(2)) has s^2 < 0.0295, and |x| <= pi/4: the numbers of terms below leave a
// remainder under one unit roundoff of the type.
FASTLR_HOST_DEVICE float natural_log(float u) {
  int32_t bits;
  std::memcpy(&bits, &u, sizeof(u));
  const int32_t exponent = (bits - 0x3F3504F3) >> 23;
  bits -= exponent * (1 << 23);
  float m;
  std::memcpy(&m, &bits, sizeof(m));
  const float s = (m - 1.0f) / (m + 1.0f);
  return static_cast<float>(exponent) * 0.693147180559945309417f + 2.0f * s * atanh_series<5>(s * s);
}

FASTLR_HOST_DEVICE double natural_log(double u) {
  int64_t bits;
  std::memcpy(&bits, &u, sizeof(u));
  const int64_t exponent = (bits - 0x3FE6A09E667F3BCD) >> 52;
  bits -= exponent * (int64_t{1} << 52);
  double m;
  std::memcpy(&m, &bits, sizeof(m));
  const double s = (m - 1.0) / (m + 1.0);
  return static_cast<double>(static_cast<int32_t>(exponent)) * 0.693147180559945309417 +
         2.0 * s * atanh_series<11>(s * s);
}

template <typename T>
struct Pair {
  T first, second;
};

// Box-Muller: (radius cos, radius sin) of a uniform angle.
template <int SineTerms, int CosineTerms, typename T>
FASTLR_HOST_DEVICE Pair<T> box_muller(T uniform, T eighth, uint32_t quadrant) {
  const T radius = std::sqrt(T(-2) * natural_log(uniform));
  const T x = eighth * T(0.785398163397448309616);
  const T z = x * x;
  const T sine = x * alternating_series<2, SineTerms>(z);
  const T cosine = alternating_series<1, CosineTerms>(z);
  const T along = (quadrant & 1u) ? sine : cosine;
  const T across = (quadrant & 1u) ? cosine : sine;
  return {radius * (((quadrant + 1u) & 2u) ? -along : along), radius * ((quadrant & 2u) ? -across : across)};
}

FASTLR_HOST_DEVICE Pair<float> gaussian_pair(uint32_t w0, uint32_t w1) {
  return box_muller<5, 6>(unit_interval(w0), eighth_turn(w1), w1 >> 30);
}
FASTLR_HOST_DEVICE Pair<double> gaussian_pair(uint32_t w0, uint32_t w1, uint32_t w2, uint32_t w3) {
  return box_muller<9, 10>(unit_interval(w0, w1), eighth_turn(w2, w3), w3 >> 30);
}

// ---- the variates of one counter ----
// One counter holds 128 bits: float32 takes four consecutive rows of a column from it, float64 two.

enum class Kind : uint32_t { uniform = 0, gaussian = 1, sign = 2 };

template <typename T>
struct Variates;

template <>
struct Variates<float> {
  static constexpr int count = 4;
  float v[4];
};

template <>
struct Variates<double> {
  static constexpr int count = 2;
  double v[2];
};

FASTLR_HOST_DEVICE float sign_of(uint32_t w) { return (w & 0x80000000u) ? -1.0f : 1.0f; }

template <typename T, Kind kind>
FASTLR_HOST_DEVICE Variates<T> variates(const Words& w) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if constexpr (kind == Kind::gaussian) {
      const auto a = gaussian_pair(w.w0, w.w1), b = gaussian_pair(w.w2, w.w3);
      return {{a.first, a.second, b.first, b.second}};
    } else if constexpr (kind == Kind::uniform) {
      return {{unit_interval(w.w0), unit_interval(w.w1), unit_interval(w.w2), unit_interval(w.w3)}};
    } else {
      return {{sign_of(w.w0), sign_of(w.w1), sign_of(w.w2), sign_of(w.w3)}};
    }
  } else {
    if constexpr (kind == Kind::gaussian) {
      const auto a = gaussian_pair(w.w0, w.w1, w.w2, w.w3);
      return {{a.first, a.second}};
    } else if constexpr (kind == Kind::uniform) {
      return {{unit_interval(w.w0, w.w1), unit_interval(w.w2, w.w3)}};
    } else {
      return {{sign_of(w.w1), sign_of(w.w3)}};
    }
  }
}

// Counter of the group of rows that holds `row_group * Variates<T>::count`, and of one column.
template <typename T, Kind kind>
FASTLR_HOST_DEVICE Variates<T> variates_at(uint64_t seed, uint64_t row_group, uint32_t column) {
  return variates<T, kind>(draw(static_cast<uint32_t>(row_group), static_cast<uint32_t>(row_group >> 32), column,
                                static_cast<uint32_t>(kind), static_cast<uint32_t>(seed),
                                static_cast<uint32_t>(seed >> 32)));
}

}  // namespace fastlr::philox
