// Tucker decompositions: a small core and an orthonormal factor for each mode of a tensor.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

namespace fastlr {

enum class TuckerMethod {
  kSequential,  // ST-HOSVD: each mode truncated in turn, for given ranks from all of its singular values
  kRandomized,  // the same after sketches have made the tensor small
  kAlternating  // HOOI: sweeps of least squares over the factors, from the randomized start
};

struct TuckerOptions {
  std::vector<int64_t> modes;                // that get a factor, ascending
  std::vector<int64_t> ranks;                // of these modes; with tol, the largest ones
  std::optional<double> tol = std::nullopt;  // the smallest ranks with ‖X - X̂‖_F <= tol ‖X‖_F
  TuckerMethod method = TuckerMethod::kAlternating;
  int64_t most_sweeps = 50;
  int64_t oversample = 10;
  int64_t power_iters = 1;  // of kRandomized
  int64_t seed = 0;
};

struct Tucker {
  at::Tensor core;
  std::vector<at::Tensor> factors;  // of the modes asked for, n x r, orthonormal columns
  double norm = 0;                  // ‖X‖_F
  double error = 0;                 // ‖X - X̂‖_F, to rounding
  std::vector<double> errors;       // of the start and after every sweep
  bool converged = true;            // false: sweeps still lowered the error, or tol was not met
};

// X ~ core x_k factor_k over the modes. The core is all-orthogonal: its slices along a mode are orthogonal, their norms
// descending; so a leading part of it is nearly the best for smaller ranks. The largest entry of every column of a
// factor is real and positive.
//
// Start and `kRandomized`, with l = rank + oversample: 4 l N flops for the first mode of N entries, then for a tensor
// that is smaller by a factor of l / n; 4 l N more for each power iteration. `kSequential` to ranks: 2 n N flops for
// the Gram matrix of the first mode, accurate enough for tolerances and singular values down to 1e-6 of the largest; 2
// n N of Householder QR below. A sweep: products with all factors but one, from which each factor is found anew by
// subspace iteration; products that several share are made once, two passes over X of 2 r N flops for three modes.
//
// Sources: Vannieuwenhoven, Vandebril, Meerbergen, SISC 34 (2012), for ST-HOSVD; De Lathauwer, De Moor, Vandewalle,
// SIMAX 21 (2000), for HOOI; Minster, Saibaba, Kilmer, SIMODS 2 (2020), for the randomized form; Kaya, Robert, ICPP
// 2019, for trees of products.
Tucker tucker(const at::Tensor& X, const TuckerOptions& options);

// The same for a sparse tensor on the host, real, of `indices` (d x entries, no place twice) and `values`: sweeps from
// random factors, which make the first one a sketch. `ranks` are those of all modes. The error is that of
// ‖X‖² - ‖core‖², sqrt(u) ‖X‖ at least. A sweep takes 2 d flops for each entry and each number of the core, over the
// mode's own rank; memory is 2 d integers for each entry and the largest n x (core / rank).
Tucker sparse_tucker(const at::Tensor& indices, const at::Tensor& values, const std::vector<int64_t>& sizes,
                     const std::vector<int64_t>& ranks, int64_t most_sweeps, int64_t seed);

// One sweep from the factors that are given, in place: the new core.
at::Tensor tucker_sweep(const at::Tensor& X, const std::vector<int64_t>& modes, std::vector<at::Tensor>& factors);

// ‖X - core x_k factors‖_F, computed entry by entry, in blocks of the first mode.
double tucker_residual(const at::Tensor& X, const std::vector<int64_t>& modes, const at::Tensor& core,
                       const std::vector<at::Tensor>& factors);

}  // namespace fastlr
