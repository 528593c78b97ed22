// Sums of squares.
#pragma once

#include <cstdint>

namespace fastlr::kernels {

// Of many numbers, in double precision; the same bits for any number of threads.
double sum_of_squares(const float* entries, int64_t count);
double sum_of_squares(const double* entries, int64_t count);

}  // namespace fastlr::kernels
