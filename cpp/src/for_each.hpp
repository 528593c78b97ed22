// Independent matrices, shared out among the threads.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>

#include <cstdint>

// Of the MKL that torch may be built with. Returns the setting of the calling thread until now.
extern "C" int MKL_Set_Num_Threads_Local(int threads) __attribute__((weak));

namespace fastlr {

// Within a parallel region MKL would form teams of threads of its own, as torch has told it not to look: they get one
// thread each, and some of its factorizations then wait for the others forever.
class OneThreadLapack {
 public:
  OneThreadLapack() : before_(set(1)) {}
  ~OneThreadLapack() { set(before_); }
  OneThreadLapack(const OneThreadLapack&) = delete;
  OneThreadLapack& operator=(const OneThreadLapack&) = delete;

 private:
  static int set(int threads) { return MKL_Set_Num_Threads_Local ? MKL_Set_Num_Threads_Local(threads) : 0; }

  int before_;
};

// Calls run(begin, end) for parts of [0, count) of at least `grain`, in one piece where the matrices are not on the
// CPU.
template <typename Run>
void for_ranges(int64_t count, int64_t grain, bool on_cpu, const Run& run) {
  if (!on_cpu || count <= grain) {
    const at::AutoDispatchBelowAutograd guard;
    run(0, count);
    return;
  }
  at::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    const at::AutoDispatchBelowAutograd guard;
    const OneThreadLapack lapack;
    run(begin, end);
  });
}

// Calls run(i) for all i.
template <typename Run>
void for_each(int64_t count, bool on_cpu, const Run& run) {
  for_ranges(count, 1, on_cpu, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) run(i);
  });
}

}  // namespace fastlr
