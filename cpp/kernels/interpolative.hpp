// Volume-maximising swaps on the coefficients of an interpolative decomposition.
#pragma once

#include <cstdint>

namespace fastlr::kernels {

// T is others x rank, row-major: row i holds the coefficients of element order[rank + i] in terms of the
// elements order[0..rank). While an entry T[p][q] exceeds `bound` in magnitude, exchanges elements q and
// rank + p, which multiplies the volume of the selection by |T[p][q]|, and updates T in place.
// Returns the number of exchanges, at most `most`. Cost: 2 others * rank flops and one pass over T for each.
template <typename T>
int64_t swap_until_bounded_cpu(T* coefficients, int64_t others, int64_t rank, double bound, int64_t most,
                               int64_t* order);

}  // namespace fastlr::kernels
