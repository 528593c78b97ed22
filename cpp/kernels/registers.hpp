// Vectors as long as the registers of the processor, of any alignment: 32 or 64 bytes.
#pragma once

#include <cstdint>

namespace fastlr::kernels {

template <typename T, int64_t Bytes>
struct Registers {
  typedef T Vector __attribute__((vector_size(Bytes), aligned(sizeof(T)), may_alias));
  static constexpr int64_t kBytes = Bytes, kSize = Bytes / sizeof(T);

  static constexpr int64_t rounded_up(int64_t k) { return (k + kSize - 1) / kSize * kSize; }
  static inline __attribute__((always_inline)) Vector& at(T* entries) { return *reinterpret_cast<Vector*>(entries); }
  static inline __attribute__((always_inline)) const Vector& at(const T* entries) {
    return *reinterpret_cast<const Vector*>(entries);
  }
  static inline __attribute__((always_inline)) T sum(const Vector& entries) {
    T total = 0;
    for (int64_t lane = 0; lane < kSize; ++lane) total += entries[lane];
    return total;
  }
};

}  // namespace fastlr::kernels
