// Vectors of eight float64, which the compiler splits for processors with shorter registers.
#pragma once

#include <cstdint>
#include <vector>

namespace fastlr::kernels {

constexpr int64_t kVectorSize = 8;
using Vector = double __attribute__((vector_size(kVectorSize * sizeof(double))));

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
