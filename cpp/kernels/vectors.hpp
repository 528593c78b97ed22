// Vectors of eight float64, and their parts that fit the registers of a processor.
#pragma once

#include <cstdint>
#include <vector>

#include "multiversion.hpp"

namespace fastlr::kernels {

// W entries of a Vector.
template <int64_t W>
struct PartOf {
  typedef double type __attribute__((vector_size(W * sizeof(double)), may_alias));
};
template <int64_t W>
using Part = typename PartOf<W>::type;

constexpr int64_t kVectorSize = 8;
using Vector = Part<kVectorSize>;

// Calls work.template operator()<W>(first) for the parts of a Vector, from entry `first` on. Compilers split longer
// vectors than the registers by themselves, but move the halves through memory. Only within FASTLR_MULTIVERSION.
template <typename Work>
inline __attribute__((always_inline)) void for_parts(const Work& work) {
  if (has_registers_of_512_bits()) {
    work.template operator()<kVectorSize>(0);
  } else {
    constexpr int64_t half = kVectorSize / 2;
    work.template operator()<half>(0);
    work.template operator()<half>(half);
  }
}

// Zeros, aligned as vectors need it: those of a std::vector<Vector> would not be.
class VectorBuffer {
 public:
  explicit VectorBuffer(int64_t count) : lines_(count) {}
  Vector* data() { return reinterpret_cast<Vector*>(lines_.data()); }
  double* entries() { return reinterpret_cast<double*>(lines_.data()); }

 private:
  struct alignas(sizeof(Vector)) Line {
    double entries[kVectorSize];
  };
  std::vector<Line> lines_;
};

}  // namespace fastlr::kernels
