// How well matrices that lie side by side are approximated together, predicted from one factor of each; and which of
// them belong together.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

#include <string_view>

namespace fastlr {

// For every A_j an orthonormal V_j of few columns, and U_j diag(S_j) W = A_j V_j / ‖A_j‖_F, W unitary. The rows of
// E_j = A_j - A_j V_j V_jᴴ are orthogonal to V_j, so that A_j A_jᴴ / ‖A_j‖_F^2 = U_j diag(S_j)^2 U_jᴴ + E_j E_jᴴ /
// ‖A_j‖_F^2 whatever V_j is.
struct JointFactors {
  at::Tensor U;     // N x m x w, float64 or complex128, orthonormal columns, also beyond the rank of A_j
  at::Tensor S;     // N x w, descending; this and what follows: float64 on the CPU
  at::Tensor rest;  // N, ‖E_j‖_F / ‖A_j‖_F
  at::Tensor norm;  // N, ‖A_j‖_F; where it is zero, so are the others
  double roundoff;  // of the type of the matrices
};

// From matrices of the same rows and type, w = min(width, m): for each the randomized SVD of `width` columns,
// 2 power_iters + 2 passes, and two more. `caller` is named where one is not finite.
JointFactors joint_factors(at::ArrayRef<at::Tensor> matrices, int64_t width, int64_t power_iters, int64_t seed,
                           std::string_view caller);

// Bounds of ‖A - A_rank‖_F / ‖A‖_F for A = [A_1 ... A_N] and its best approximation A_rank, each at most the one
// before. Sums of positive terms: they resolve some sqrt(w) u, which is added. rank <= w.
//
// Source: Shamrai, "Concatenated matrix SVD: compression bounds, incremental approximation, and error-constrained
// clustering", arXiv:2601.11626 (2026).
struct JointBounds {
  double weyl;      // by the singular values of each alone, σ_k(A) >= max_j σ_k(A_j): O(N w)
  double residual;  // by the best of the bases U_i, what A has outside of it: 4 m rank w N^2 flops
  double estimate;  // by the singular values of [U_1 diag(S_1) ... U_N diag(S_N)]: O(m N w min(m, N w))
};
JointBounds joint_bounds(const JointFactors& factors, int64_t rank);

enum class JointBound { weyl, residual, estimate };
JointBound parse_joint_bound(std::string_view name);

struct MatrixClusters {
  at::Tensor labels;  // N, int64 on the CPU: the cluster of each, numbered by first members
  at::Tensor errors;  // float64 on the CPU: the bound of each cluster, relative to its norm
  at::Tensor bases;   // clusters x m x rank, orthonormal columns: what the bound says is left outside is no more
};

// Agglomeration: of all pairs of clusters the one with the smallest bound is merged, until none is left the bound of
// which is `tol` or less.
MatrixClusters cluster_matrices(const JointFactors& factors, int64_t rank, double tol, JointBound bound);

}  // namespace fastlr
