// Rows of kept float32 entries in AVX2 registers: a table says, for each byte of the mask, which of the next values
// goes where.
#pragma once

#if defined(__x86_64__)

#include <immintrin.h>

#include <array>
#include <cstdint>

#define FASTLR_AVX2 __attribute__((target("avx2,fma,bmi,bmi2,popcnt")))

namespace fastlr::kernels::avx2 {

struct Places {
  // For the eight bits of a byte the number of the value that belongs there, or a negative one: as eight bytes.
  std::array<std::array<int8_t, 8>, 256> of_byte{};

  constexpr Places() {
    for (int byte = 0; byte < 256; ++byte)
      for (int bit = 0, next = 0; bit < 8; ++bit)
        of_byte[byte][bit] = byte >> bit & 1 ? static_cast<int8_t>(next++) : int8_t(-1);
  }
};
inline constexpr Places kPlaces;

// The first `count` of eight lanes.
FASTLR_AVX2 inline __m256i first_lanes(int count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// The dense row. Values behind the last one of the row are not read, nor is anything written behind its end.
FASTLR_AVX2 inline void expand_row(const uint8_t* bits, int64_t columns, const float* values, float* row) {
  for (int64_t first = 0; first < columns; first += 8) {
    const int64_t left = columns - first;
    const uint32_t kept = bits[first / 8] & (left < 8 ? (1u << left) - 1 : 0xffu);
    const int count = _mm_popcnt_u32(kept);
    const __m256 packed = _mm256_maskload_ps(values, first_lanes(count));
    const __m256i places =
        _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(kPlaces.of_byte[kept].data())));
    const __m256 placed =
        _mm256_blendv_ps(_mm256_permutevar8x32_ps(packed, places), _mm256_setzero_ps(), _mm256_castsi256_ps(places));
    if (left >= 8) {
      _mm256_storeu_ps(row + first, placed);
    } else {
      _mm256_maskstore_ps(row + first, first_lanes(static_cast<int>(left)), placed);
    }
    values += count;
  }
}

}  // namespace fastlr::kernels::avx2

#endif
