// Rows of kept entries in AVX-512 registers: one instruction puts the next values at the set bits of a vector.
#pragma once

#if defined(__x86_64__)

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kept_words.hpp"

#define FASTLR_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma,bmi,bmi2,popcnt")))

namespace fastlr::kernels::avx512 {

// Of the intrinsics the forms with a mask: GCC 12 takes the others for reads of uninitialised registers.
constexpr __mmask16 kAll = 0xffff;

// So many 16-bit numbers as there are set bits: what lies behind them is not touched.
FASTLR_AVX512 inline __m256i load_halves(const void* from, uint64_t bits) {
  return _mm256_maskz_loadu_epi16(_bzhi_u32(0xffff, static_cast<uint32_t>(_mm_popcnt_u64(bits))), from);
}

// The next values at the set bits, zeros between them, in the type of sums.
FASTLR_AVX512 inline __m512 expand(const float* values, uint64_t bits) {
  return _mm512_maskz_expandloadu_ps(static_cast<__mmask16>(bits), values);
}
FASTLR_AVX512 inline __m512d expand(const double* values, uint64_t bits) {
  return _mm512_maskz_expandloadu_pd(static_cast<__mmask8>(bits), values);
}
FASTLR_AVX512 inline __m512 expand(const c10::BFloat16* values, uint64_t bits) {
  const auto wide = _mm512_maskz_slli_epi32(kAll, _mm512_maskz_cvtepu16_epi32(kAll, load_halves(values, bits)), 16);
  return _mm512_maskz_expand_ps(static_cast<__mmask16>(bits), _mm512_castsi512_ps(wide));
}
FASTLR_AVX512 inline __m512 expand(const c10::Half* values, uint64_t bits) {
  return _mm512_maskz_expand_ps(static_cast<__mmask16>(bits), _mm512_maskz_cvtph_ps(kAll, load_halves(values, bits)));
}

FASTLR_AVX512 inline __m512 add_products(__m512 weights, const float* inputs, __m512 sums) {
  return _mm512_fmadd_ps(weights, _mm512_loadu_ps(inputs), sums);
}
FASTLR_AVX512 inline __m512d add_products(__m512d weights, const double* inputs, __m512d sums) {
  return _mm512_fmadd_pd(weights, _mm512_loadu_pd(inputs), sums);
}

template <int kLanes, typename Sum>
FASTLR_AVX512 inline Sum add_up(const Sum* sums) {
  if constexpr (kLanes == 1) {
    return *sums;
  } else {
    Sum halves[kLanes / 2];
    for (int lane = 0; lane < kLanes / 2; ++lane) halves[lane] = sums[lane] + sums[lane + kLanes / 2];
    return add_up<kLanes / 2>(halves);
  }
}

// So many bytes before they are needed values are asked for: fewer left the memory idle for a third of the time.
constexpr int64_t kAhead = 4096;

// multiply_row for kTokens inputs, whose sums are in registers.
template <int kTokens, typename T, typename Sum>
FASTLR_AVX512 void multiply_some(const uint8_t* bits, int64_t columns, const T* values, const Sum* inputs,
                                 int64_t stride, Sum* products) {
  constexpr int kLanes = 64 / sizeof(Sum), kParts = 4;
  decltype(expand(values, 0)) sums[kTokens][kParts] = {};
  for (int64_t first = 0; first < columns; first += kWord) {
    for (int line = 0; line < 4; ++line)
      _mm_prefetch(reinterpret_cast<const char*>(values) + kAhead + 64 * line, _MM_HINT_T0);
    // Bits go from memory to where they are needed, a vector's at a time: shifts of a word take longer.
    uint64_t last;
    const uint8_t* parts = bits + first / 8;
    if (columns - first < kWord) {
      last = word_at(bits, first, columns);
      parts = reinterpret_cast<const uint8_t*>(&last);
    }
#pragma GCC unroll 8
    for (int part = 0; part < kWord / kLanes; ++part) {
      std::conditional_t<kLanes == 16, uint16_t, uint8_t> kept;
      std::memcpy(&kept, parts + part * sizeof(kept), sizeof(kept));
      const auto weights = expand(values, kept);
      values += _mm_popcnt_u64(kept);
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; ++t)
        sums[t][part % kParts] =
            add_products(weights, inputs + t * stride + first + part * kLanes, sums[t][part % kParts]);
    }
  }
  for (int t = 0; t < kTokens; ++t) {
    const auto sum = (sums[t][0] + sums[t][1]) + (sums[t][2] + sums[t][3]);
    Sum lanes[kLanes];
    std::memcpy(lanes, &sum, sizeof(lanes));
    products[t] = add_up<kLanes>(lanes);
  }
}

// products[t] = the product of the row with inputs[t * stride …], which are zero behind the last column to the end of a
// word.
template <typename T, typename Sum>
void multiply_row(const uint8_t* bits, int64_t columns, const T* values, const Sum* inputs, int64_t tokens,
                  int64_t stride, Sum* products) {
  constexpr int kMost = 4;
  for (; tokens >= kMost; tokens -= kMost, inputs += kMost * stride, products += kMost)
    multiply_some<kMost>(bits, columns, values, inputs, stride, products);
  if (tokens == 3) multiply_some<3>(bits, columns, values, inputs, stride, products);
  if (tokens == 2) multiply_some<2>(bits, columns, values, inputs, stride, products);
  if (tokens == 1) multiply_some<1>(bits, columns, values, inputs, stride, products);
}

// The dense row, of a type of 2, 4 or 8 bytes.
template <typename T>
FASTLR_AVX512 void expand_row(const uint8_t* bits, int64_t columns, const T* values, T* row) {
  constexpr int kLanes = sizeof(T) == 8 ? 8 : 16;
  for (int64_t first = 0; first < columns; first += kWord) {
    uint64_t word = word_at(bits, first, columns);
    for (int64_t at = first; at < std::min(columns, first + kWord); at += kLanes, word >>= kLanes) {
      const uint64_t kept = _bzhi_u64(word, kLanes);
      const auto within =
          static_cast<uint32_t>(_bzhi_u32(0xffff, static_cast<uint32_t>(std::min<int64_t>(columns - at, 16))));
      if constexpr (sizeof(T) == 8) {
        _mm512_mask_storeu_epi64(row + at, within, _mm512_maskz_expandloadu_epi64(kept, values));
      } else if constexpr (sizeof(T) == 4) {
        _mm512_mask_storeu_epi32(row + at, within, _mm512_maskz_expandloadu_epi32(kept, values));
      } else {
        const auto wide = _mm512_maskz_expand_epi32(kept, _mm512_maskz_cvtepu16_epi32(kAll, load_halves(values, kept)));
        _mm256_mask_storeu_epi16(row + at, within, _mm512_maskz_cvtepi32_epi16(kAll, wide));
      }
      values += _mm_popcnt_u64(kept);
    }
  }
}

}  // namespace fastlr::kernels::avx512

#endif
