// CPU fill: one Philox counter per vector lane, lanes along the columns of a group of rows, so that
// results are stored without a transposition.
#include "random.hpp"

#include <ATen/Parallel.h>

#include <algorithm>

#include "multiversion.hpp"

namespace fastlr::kernels {
namespace {

constexpr int kLanes = 64;

using philox::Kind;
using philox::Variates;

template <typename T, Kind kind>
inline __attribute__((always_inline)) void fill_lanes(uint64_t seed, uint64_t row_group, uint32_t column, int lanes,
                                                      T* lane_rows) {
  for (int lane = 0; lane < lanes; ++lane) {
    const auto group = philox::variates_at<T, kind>(seed, row_group, column + lane);
    for (int r = 0; r < Variates<T>::count; ++r) lane_rows[r * kLanes + lane] = group.v[r];
  }
}

}  // namespace

// target_clones takes neither templates nor internal linkage in every compiler: six plain functions.
#define FASTLR_DEFINE_LANES(name, T, kind)                                                                    \
  FASTLR_MULTIVERSION void name(uint64_t seed, uint64_t row_group, uint32_t column, int lanes, T* lane_rows); \
  void name(uint64_t seed, uint64_t row_group, uint32_t column, int lanes, T* lane_rows) {                    \
    fill_lanes<T, kind>(seed, row_group, column, lanes, lane_rows);                                           \
  }

FASTLR_DEFINE_LANES(lanes_uniform_f32, float, Kind::uniform)
FASTLR_DEFINE_LANES(lanes_gaussian_f32, float, Kind::gaussian)
FASTLR_DEFINE_LANES(lanes_sign_f32, float, Kind::sign)
FASTLR_DEFINE_LANES(lanes_uniform_f64, double, Kind::uniform)
FASTLR_DEFINE_LANES(lanes_gaussian_f64, double, Kind::gaussian)
FASTLR_DEFINE_LANES(lanes_sign_f64, double, Kind::sign)

namespace {

template <typename T>
auto lanes_function(Kind kind) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return kind == Kind::uniform ? lanes_uniform_f32 : kind == Kind::gaussian ? lanes_gaussian_f32 : lanes_sign_f32;
  } else {
    return kind == Kind::uniform ? lanes_uniform_f64 : kind == Kind::gaussian ? lanes_gaussian_f64 : lanes_sign_f64;
  }
}

}  // namespace

template <typename T>
void fill_random_cpu(T* out, Kind kind, const RandomWindow& window) {
  constexpr int64_t height = Variates<T>::count;
  const auto lanes_of = lanes_function<T>(kind);
  const int64_t row_end = window.row0 + window.rows;
  const int64_t first_group = window.row0 / height;
  const int64_t last_group = (row_end + height - 1) / height;
  // About 4096 variates a task: below that a thread costs more than it saves.
  const int64_t grain = std::max<int64_t>(1, 4096 / (height * std::max<int64_t>(1, window.columns)));

  at::parallel_for(first_group, last_group, grain, [&](int64_t begin, int64_t end) {
    alignas(64) T lane_rows[height * kLanes];
    for (int64_t group = begin; group < end; ++group) {
      const int64_t from = std::max(window.row0, group * height);
      const int64_t to = std::min(row_end, (group + 1) * height);
      for (int64_t done = 0; done < window.columns; done += kLanes) {
        const int lanes = static_cast<int>(std::min<int64_t>(kLanes, window.columns - done));
        lanes_of(window.seed, group, static_cast<uint32_t>(window.column0 + done), lanes, lane_rows);
        for (int64_t row = from; row < to; ++row)
          std::copy_n(lane_rows + (row - group * height) * kLanes, lanes,
                      out + (row - window.row0) * window.stride + done);
      }
    }
  });
}

template void fill_random_cpu(float*, Kind, const RandomWindow&);
template void fill_random_cpu(double*, Kind, const RandomWindow&);

}  // namespace fastlr::kernels
