// Whether all of many numbers are finite.
#pragma once

#include <cstdint>

namespace fastlr::kernels {

bool all_finite(const float* entries, int64_t count);
bool all_finite(const double* entries, int64_t count);

}  // namespace fastlr::kernels
