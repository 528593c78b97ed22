#include "finite.hpp"

#include "multiversion.hpp"

namespace fastlr::kernels {
namespace {

template <typename T, typename Flag>
inline __attribute__((always_inline)) bool none_is_wrong(const T* entries, int64_t count, Flag wrong) {
  // The difference is zero, or else NaN.
  for (int64_t i = 0; i < count; ++i) wrong |= static_cast<Flag>(entries[i] - entries[i] != 0);
  return wrong == 0;
}

}  // namespace

// Flags as wide as the entries, so that they fill the same registers.
FASTLR_MULTIVERSION bool all_finite(const float* entries, int64_t count);
bool all_finite(const float* entries, int64_t count) { return none_is_wrong(entries, count, int32_t{0}); }

FASTLR_MULTIVERSION bool all_finite(const double* entries, int64_t count);
bool all_finite(const double* entries, int64_t count) { return none_is_wrong(entries, count, int64_t{0}); }

}  // namespace fastlr::kernels
