// What a sketch of a tall matrix T tells about it: coordinates in which T is well-conditioned.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include <fastlr/linear_operator.hpp>

namespace fastlr {

// x = lift w, w = R⁻¹ z: T lift has columns of unit length, as far as the sketch sees, or is T in an orthonormal basis
// of the space of its rows where T is not of full rank; T lift R⁻¹ is well-conditioned.
class Preconditioner {
 public:
  // From C, S T for n columns or a matrix with the same CᴴC, and `image`, S B.
  Preconditioner(const at::Tensor& C, const at::Tensor& image);

  // From the columns' lengths alone: R is the identity, and not stored.
  static Preconditioner by_columns(const at::Tensor& C);

  int64_t rank() const { return basis_.defined() ? basis_.size(1) : scales_.size(0); }
  double condition() const { return condition_; }  // of T lift
  double norm() const { return norm_; }            // of T lift, Frobenius
  bool has_triangle() const { return R_.defined(); }

  at::Tensor lift(const at::Tensor& W) const;
  at::Tensor lift_adjoint(const at::Tensor& X) const;
  at::Tensor coordinates(const at::Tensor& X) const;      // the w of an x = lift w
  at::Tensor unwhiten(const at::Tensor& Z) const;         // R⁻¹ z
  at::Tensor whiten(const at::Tensor& W) const;           // R⁻ᴴ w
  at::Tensor unwhiten_defect(const at::Tensor& Z) const;  // Rᴴ z
  at::Tensor apply(const at::Tensor& Z) const { return lift(unwhiten(Z)); }
  at::Tensor apply_adjoint(const at::Tensor& X) const { return whiten(lift_adjoint(X)); }

  // The z that solves the sketched problem, for the columns of B.
  const at::Tensor& sketched_solution() const { return solution_; }

  // ‖(RᴴR + shift² I)^{-1/2} g‖ for every column, in double precision.
  at::Tensor shifted_norms(const at::Tensor& G, const at::Tensor& shifts) const;

 private:
  Preconditioner() = default;
  void take(const at::Tensor& R, const at::Tensor& solution);

  at::Tensor scales_;  // n x 1, of the columns of T
  at::Tensor basis_;   // n x rank, where T is not of full rank
  at::Tensor R_, solution_;
  // Made when they are asked for: singular values and right vectors of R, for more than a few columns, and the
  // triangles of [R; shift I] of the last shifts.
  struct Shifted {
    double shift;
    at::Tensor triangle;
  };
  mutable at::Tensor values_, vectors_;
  mutable std::vector<Shifted> shifted_;
  double condition_ = 1.0, norm_ = 0.0;
};

// T P, m x rank.
Operator preconditioned(Operator T, const Preconditioner& P);

}  // namespace fastlr
