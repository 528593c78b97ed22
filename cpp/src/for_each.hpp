// Independent matrices, shared out among the threads.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>

#include <cstdint>

namespace fastlr {

// Calls run(i) for all i, one after the other where the matrices are not on the CPU.
template <typename Run>
void for_each(int64_t count, bool on_cpu, const Run& run) {
  const auto range = [&](int64_t begin, int64_t end) {
    const at::AutoDispatchBelowAutograd guard;
    for (int64_t i = begin; i < end; ++i) run(i);
  };
  if (on_cpu) {
    at::parallel_for(0, count, 1, range);
  } else {
    range(0, count);
  }
}

}  // namespace fastlr
