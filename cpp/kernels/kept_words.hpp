// The bits of a row of kept entries, a word at a time.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace fastlr::kernels {

constexpr int64_t kWord = 64;

// The bits of the columns from `first` on, at most a word of them.
inline __attribute__((always_inline)) uint64_t word_at(const uint8_t* bits, int64_t first, int64_t columns) {
  uint64_t word = 0;
  const int64_t left = columns - first;
  if (left >= kWord) {
    std::memcpy(&word, bits + first / 8, 8);
    return word;
  }
  std::memcpy(&word, bits + first / 8, (left + 7) / 8);
  return word & ((uint64_t(1) << left) - 1);
}

}  // namespace fastlr::kernels
