// The best approximations of low rank in a norm that weighs rows and columns.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace fastlr {

// A Hermitian positive semidefinite weight of the rows or of the columns; nothing stands for the identity.
struct SideWeight {
  std::optional<at::Tensor> matrix;   // n x n; n: its diagonal, or with `vectors` its eigenvalues
  std::optional<at::Tensor> vectors;  // n x n, eigenvectors in the columns
};

struct WeightedLowRankOptions {
  std::optional<int64_t> rank = std::nullopt;  // with tol: the most that are returned; nothing: min(o, i)
  std::optional<double> tol = std::nullopt;    // of the weighted error, relative to the weighted norm
};

struct WeightedLowRank {
  at::Tensor B, A;  // o x k, k x i, of the type of W; columns of B have unit length, and are orthonormal where the
                    // rows have no weight
  at::Tensor S;     // k, float64, descending
  at::Tensor bias;  // (W - B A) mean; no entries without a mean
  double error;     // weighted norm of W - B A, measured
  double norm;      // weighted norm of W
  bool randomized;  // found by a random sketch, and checked to be within 1 % of the optimum
  bool converged;   // false: tol was not met
};

// B A that minimises tr(H D G Dᴴ), D = W - B A, among all matrices of its rank, with the weights H of the rows and G
// of the columns; of G - mean meanᴴ where the mean is given. B[:, :r] A[:r] is the optimum of every smaller rank r.
//
// With n = min(o, i), N = max(o, i): one product with the weight of the longer side, 2 n N^2 flops, 2 n^2 N for
// H^½ W G Wᴴ H^½ (or what it is for o > i), its eigenvectors, O(n^3); the eigenvectors of the weight of the shorter
// side and a product with them, where that weight is a matrix. At rank <= n / 8 a random sketch of 6 products replaces
// the eigenvectors where it proves as good.
//
// Sources: Eckart, Young, Psychometrika 1 (1936), in the weighted space; Srebro, Jaakkola, "Weighted low-rank
// approximations", ICML 2003, for the separable weights; Chen, Yu, Dhillon, Hsieh, "DRONE", NeurIPS 2021, for the
// form without an inverse.
WeightedLowRank weighted_low_rank(const at::Tensor& W, const SideWeight& left, const SideWeight& right,
                                  const std::optional<at::Tensor>& mean, const WeightedLowRankOptions& options);

}  // namespace fastlr
