// Columns that all others are small combinations of.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace fastlr {

// Gu and Eisenstat's f: no exchange of a chosen for another column multiplies the volume by more than this.
constexpr double kStrong = 2.0;

// Columns in order of choice: `rank` chosen ones, then the others, and the coefficients of these in those.
struct Choice {
  std::vector<int64_t> order;
  int64_t rank;
  at::Tensor T;  // chosen x others

  at::Tensor chosen(at::Device device) const;
  at::Tensor others(at::Device device) const;
};

// Whether no coefficient is above kStrong.
bool is_bounded(const at::Tensor& T);

// Columns of `rows` (k x n, orthonormal) of locally maximal volume: rows = rows[:, chosen] [I, T], where there is no
// residual and Gu and Eisenstat's criterion reads |T| <= f. T is recomputed after the exchanges, free of their
// rounding.
//
// Source: Goreinov, Oseledets, Savostyanov, Tyrtyshnikov, Zamarashkin, "How to find a good submatrix" (2010).
Choice choose_of_orthonormal(const at::Tensor& rows, const char* caller);

}  // namespace fastlr
