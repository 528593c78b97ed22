// Gu and Eisenstat's criterion for chosen columns.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

namespace fastlr {

// Of a chosen column for another one, by their numbers among these.
struct Exchange {
  int64_t chosen, other;
};

// The exchange that multiplies the volume of the chosen columns most, where that is more than f; nothing elsewhere. It
// is the root of T_ij^2 + (gamma_j / omega_i)^2: T the coefficients of the others (chosen x others), gamma_j^2 the
// squared length of what is left of column j, in `squares`, and 1 / omega_i that of row i of R11^-1.
//
// Source: Gu, Eisenstat, "Efficient algorithms for computing a strong rank-revealing QR factorization", SISC 17 (1996).
std::optional<Exchange> best_exchange(const at::Tensor& R11, const at::Tensor& T, const at::Tensor& squares, double f);

// Far more than `chosen` columns of a first choice by pivots have been seen to need.
int64_t most_exchanges(int64_t chosen);
[[noreturn]] void raise_unsettled(const char* caller, int64_t chosen);

}  // namespace fastlr
