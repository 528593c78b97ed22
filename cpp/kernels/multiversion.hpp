// FASTLR_MULTIVERSION on a function: x86 clones for AVX-512, AVX2 and the baseline, chosen by the loader from
// what the processor has. Kernels are compiled with floating-point contraction off (CMakeLists.txt), so that all
// clones give the same bits.
#pragma once

#if defined(__x86_64__) && defined(__ELF__)
#define FASTLR_MULTIVERSION __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FASTLR_MULTIVERSION
#endif

namespace fastlr::kernels {

// Of the processor, and so of the clone that runs.
inline bool has_registers_of_512_bits() {
#if defined(__x86_64__) && defined(__ELF__)
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
#else
  return false;
#endif
}

}  // namespace fastlr::kernels
