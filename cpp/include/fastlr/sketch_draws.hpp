// What the structured sketching matrices draw: functions of (seed, column), for the host and for CUDA.
#pragma once

#include <cstdint>

#include <fastlr/philox.hpp>

namespace fastlr::sketch_draws {

// The last word of a counter says what is drawn; philox::Kind has the first numbers.
constexpr uint32_t kSparseSign = 16, kHadamardSign = 17, kSample = 18;

FASTLR_HOST_DEVICE uint32_t word_of(const philox::Words& words, int which) {
  return which == 0 ? words.w0 : which == 1 ? words.w1 : which == 2 ? words.w2 : words.w3;
}

FASTLR_HOST_DEVICE philox::Words draw(uint64_t seed, uint64_t column, uint32_t which, uint32_t what) {
  return philox::draw(static_cast<uint32_t>(column), static_cast<uint32_t>(column >> 32), which, what,
                      static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
}

struct Entry {
  int64_t row;
  bool negative;
};

// Entry j of a column of a sparse sign matrix of `size` rows with `nonzeros` entries a column: the rows are cut into
// `nonzeros` parts of nearly equal height, and entry j is at a random place of part j.
FASTLR_HOST_DEVICE Entry sparse_sign_entry(uint32_t word, int64_t j, int64_t size, int64_t nonzeros) {
  const int64_t first = j * size / nonzeros, height = (j + 1) * size / nonzeros - first;
  return {first + static_cast<int64_t>((word & 0x7FFFFFFFu) * static_cast<uint64_t>(height) >> 31), (word >> 31) != 0};
}

// Whether the sign that a column of the randomized Hadamard matrix begins with is -1.
FASTLR_HOST_DEVICE bool hadamard_negative(uint64_t seed, int64_t column) {
  const auto words = draw(seed, static_cast<uint64_t>(column) / 4, 0, kHadamardSign);
  return (word_of(words, static_cast<int>(column % 4)) >> 31) != 0;
}

}  // namespace fastlr::sketch_draws
