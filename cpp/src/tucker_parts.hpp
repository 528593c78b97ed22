// Steps that Tucker decompositions of dense and sparse tensors share.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <optional>
#include <vector>

#include <fastlr/tucker.hpp>

namespace fastlr {

// A sweep that lowers the error by less than this much of itself is the last one.
constexpr double kSweepGain = 1e-4;
// ‖X‖² - ‖core‖² is right to some of these u ‖X‖².
constexpr double kCancelled = 1e4;

// ‖X‖_F^2
double energy(const at::Tensor& X);

// All left singular vectors of an unfolding, with the squares of their values: descending, doubles. At least `rank`
// orthonormal columns.
struct Spectrum {
  at::Tensor squares, vectors;
};

// `needed`: how small the squares are, relative to the sum of all, that have to be right; nothing: those of the rank.
Spectrum spectrum(const at::Tensor& X, int64_t mode, int64_t rank, std::optional<double> needed);

// An orthonormal basis of the leading left singular vectors of an unfolding, from one of nearly the same span.
at::Tensor leading_vectors(const at::Tensor& X, int64_t mode, const at::Tensor& U);

// Sweeps, each of which returns the new core, until one lowers the error by no more than `gain` of itself; `core` is
// that before them and after them.
struct Sweeps {
  std::vector<double> errors;
  bool converged = false;
};
Sweeps sweep_to_the_end(const std::function<at::Tensor()>& sweep, at::Tensor& core, double total, int64_t most,
                        double gain);

// The same tensor with an all-orthogonal core and fixed signs.
void canonical(at::Tensor& core, const std::vector<int64_t>& modes, std::vector<at::Tensor>& factors);

// The decomposition of X from that of X * 2^exponent.
Tucker unscaled(Tucker result, int exponent);

// Drops slices of the all-orthogonal core that the allowed energy covers, the smallest first.
void drop_slices(at::Tensor& core, const std::vector<int64_t>& modes, std::vector<at::Tensor>& factors, double allowed);

}  // namespace fastlr
