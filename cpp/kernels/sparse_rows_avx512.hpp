// Rows of kept entries in AVX-512 registers: one instruction puts the next values at the set bits of a vector.
#pragma once

#if defined(__x86_64__)

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <immintrin.h>

#include <cstdint>

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

// Entries that are not kept, and those behind the end, are not read.
FASTLR_AVX512 inline __m512 add_products(__m512 weights, const float* inputs, uint64_t bits, __m512 sums) {
  return _mm512_fmadd_ps(weights, _mm512_maskz_loadu_ps(static_cast<__mmask16>(bits), inputs), sums);
}
FASTLR_AVX512 inline __m512d add_products(__m512d weights, const double* inputs, uint64_t bits, __m512d sums) {
  return _mm512_fmadd_pd(weights, _mm512_maskz_loadu_pd(static_cast<__mmask8>(bits), inputs), sums);
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

// products[t] = the product of the row with inputs[t * columns …], for kTokens of them.
template <int kTokens, typename T, typename Sum>
FASTLR_AVX512 void multiply_row(const uint8_t* bits, int64_t columns, const T* values, const Sum* inputs,
                                Sum* products) {
  constexpr int kLanes = 64 / sizeof(Sum), kParts = 4;
  decltype(expand(values, 0)) sums[kTokens][kParts] = {};
  for (int64_t first = 0; first < columns; first += kWord) {
    const uint64_t word = word_at(bits, first, columns);
    for (int line = 0; line < 4; ++line)
      _mm_prefetch(reinterpret_cast<const char*>(values) + kAhead + 64 * line, _MM_HINT_T0);
#pragma GCC unroll 8
    for (int part = 0; part < kWord / kLanes; ++part) {
      const uint64_t kept = _bzhi_u64(word >> (part * kLanes), kLanes);
      const auto weights = expand(values, kept);
      values += _mm_popcnt_u64(kept);
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; ++t)
        sums[t][part % kParts] =
            add_products(weights, inputs + t * columns + first + part * kLanes, kept, sums[t][part % kParts]);
    }
  }
  for (int t = 0; t < kTokens; ++t) {
    const auto sum = (sums[t][0] + sums[t][1]) + (sums[t][2] + sums[t][3]);
    Sum lanes[kLanes];
    std::memcpy(lanes, &sum, sizeof(lanes));
    products[t] = add_up<kLanes>(lanes);
  }
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
