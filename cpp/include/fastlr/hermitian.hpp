// Leading eigenpairs of Hermitian matrices from random sketches, with a certified error.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include <fastlr/error_estimate.hpp>
#include <fastlr/linear_operator.hpp>

namespace fastlr {

enum class EighMethod {
  dense,    // LAPACK's eigenvalues of the whole matrix, where the sketch would be no smaller
  nystrom,  // one read
  lanczos   // block Krylov space with thick restarts
};

struct Eigenpairs {
  at::Tensor values, vectors;  // k (real), n x k; orthonormal columns
  at::Tensor residuals;        // ‖A v - λ v‖ of each, real; undefined where nothing but a bound of ‖E‖ is known
  ErrorEstimate error;         // of E = A - V diag(values) Vᴴ
  int64_t passes;              // over A
  int64_t blocks;              // of the Krylov space beyond the first
  bool converged;              // false: a limit was met before the residuals had their size
  EighMethod method;           // that ran
};

// The leading `rank` eigenpairs of a positive semidefinite A from one product with rank + oversample + kProbes
// vectors, eigenvalues descending and never negative. 2 n^2 l flops and O(n l^2). Raises LinAlgError where the sketch
// shows that A is not Hermitian or not positive semidefinite.
//
// Sources: Tropp, Yurtsever, Udell, Cevher, "Fixed-rank approximation of a positive-semidefinite matrix from streaming
// data", NeurIPS 2017; Frangella, Tropp, Udell, "Randomized Nyström preconditioning", SIMAX 44 (2023).
Eigenpairs nystrom(const Operator& A, int64_t rank, int64_t oversample, int64_t seed);

// The `rank` eigenpairs of largest magnitude of a Hermitian A, by descending magnitude: Rayleigh-Ritz in a block Krylov
// space of blocks of l = rank + oversample vectors. 2 + power_iters passes of 2 n^2 l flops, and O(n l^2) for every
// pair of blocks; power_iters = nothing: until all residuals are below 1e-10 (float64) of the largest magnitude.
//
// Sources: Halko, Martinsson, Tropp, SIAM Review 53 (2011), section 5.3; Musco and Musco, NeurIPS 2015; Wu and Simon,
// "Thick-restart Lanczos method for large symmetric eigenvalue problems", SIMAX 22 (2000).
Eigenpairs randomized_eigh(const Operator& A, int64_t rank, int64_t oversample, std::optional<int64_t> power_iters,
                           int64_t seed);

}  // namespace fastlr
