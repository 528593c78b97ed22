// Raw fills behind fastlr/random.hpp: one signature for the CPU and the CUDA file.
#pragma once

#include <cstdint>

#include <fastlr/philox.hpp>

namespace fastlr::kernels {

// A window of the random matrix of `seed`, to be written row-major with `stride` elements between rows.
struct RandomWindow {
  uint64_t seed;
  int64_t row0, rows, column0, columns, stride;
};

template <typename T>
void fill_random_cpu(T* out, philox::Kind kind, const RandomWindow& window);

// `stream` is a cudaStream_t; typed void* so that this header needs no CUDA toolkit.
template <typename T>
void fill_random_cuda(T* out, philox::Kind kind, const RandomWindow& window, void* stream);

}  // namespace fastlr::kernels
