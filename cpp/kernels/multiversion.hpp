// FASTLR_MULTIVERSION on a function: x86 clones for AVX-512, AVX2 and the baseline, chosen by the loader from
// what the processor has. Kernels are compiled with floating-point contraction off (CMakeLists.txt), so that all
// clones give the same bits.
#pragma once

#if defined(__x86_64__) && defined(__ELF__)
#define FASTLR_MULTIVERSION __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FASTLR_MULTIVERSION
#endif
