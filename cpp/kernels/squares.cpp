#include "squares.hpp"

#include <ATen/Parallel.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "multiversion.hpp"

namespace fastlr::kernels {
namespace {

constexpr int64_t kLanes = 16;
// Entries whose squares are added one to the other: sums of sums are more accurate.
constexpr int64_t kShare = int64_t{1} << 14;

template <typename T>
inline __attribute__((always_inline)) double sum_of_share(const T* entries, int64_t count) {
  double sums[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const double entry = entries[i + lane];
      sums[lane] += entry * entry;
    }
  for (int64_t lane = 0; i < count; ++i, ++lane) sums[lane] += static_cast<double>(entries[i]) * entries[i];
  for (int64_t width = kLanes / 2; width > 0; width /= 2)
    for (int64_t lane = 0; lane < width; ++lane) sums[lane] += sums[lane + width];
  return sums[0];
}

FASTLR_MULTIVERSION double share_of(const float* entries, int64_t count);
double share_of(const float* entries, int64_t count) { return sum_of_share(entries, count); }

FASTLR_MULTIVERSION double share_of(const double* entries, int64_t count);
double share_of(const double* entries, int64_t count) { return sum_of_share(entries, count); }

template <typename T>
double sum_of_shares(const T* entries, int64_t count) {
  const int64_t shares = (count + kShare - 1) / kShare;
  std::vector<double> sums(static_cast<size_t>(shares));
  at::parallel_for(0, shares, 4, [&](int64_t begin, int64_t end) {
    for (int64_t share = begin; share < end; ++share)
      sums[static_cast<size_t>(share)] = share_of(entries + share * kShare, std::min(kShare, count - share * kShare));
  });
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

}  // namespace

double sum_of_squares(const float* entries, int64_t count) { return sum_of_shares(entries, count); }
double sum_of_squares(const double* entries, int64_t count) { return sum_of_shares(entries, count); }

}  // namespace fastlr::kernels
