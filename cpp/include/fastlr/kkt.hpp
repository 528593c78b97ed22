// Equality-constrained Newton systems [[H, Aᵀ], [A, 0]] (x, λ) = (f, c).
#pragma once

#include <fastlr/linear_operator.hpp>

namespace fastlr {

enum class KktMethod {
  sketch_and_project,
  lu,          // of the dense matrix, where the sketches had cost as much as that does
  eigenvalues  // of that matrix, where it is singular or nearly so
};

struct KktSolution {
  at::Tensor x, multipliers;
  KktMethod method;
  int64_t sketches;  // projections
  int64_t products;  // of H with vectors, those that make a dense matrix not counted
  double residual;   // ‖b - K z‖ / ‖b‖ of the solution that is returned, or that of the equilibrated system if larger
  bool converged;    // residual <= tol
};

struct KktOptions {
  double tol;
  int64_t most_sketches;
  int64_t seed = 0;
  std::optional<int64_t> entries = std::nullopt;  // of H that a product goes through; all of them if nothing
};

// Sketch and project with memory. K is equilibrated by a diagonal of powers of two, and A is eliminated by an
// orthogonal factorization of Aᵀ: what is left is M = P H P on the null space of A. Of all z0 + range(S), S the
// sketches so far, z is the one with the least residual: the projection of the solution in the norm ‖M z‖. The first
// sketch is the residual beside Gaussian columns, the next ones the residual beside the images M S: block Krylov
// spaces, in which outlying eigenvalues cost nothing and definite ones as many steps as conjugate gradients would take.
// Where the sketches have taken the time of an LU factorization of the dense K, that is done instead: some twice the
// time of the better one at most. Where Aᵀ is too large to be factored, M is K.
//
// K singular: a solution that meets `tol` where there is one; LinAlgError where there is none and the dense matrix is
// seen to be singular.
//
// Sources: Gower, Richtárik, "Randomized iterative methods for linear systems", SIMAX 36 (2015), for sketches and
// norms; Hong, Na, Mahoney, Kolar, "Constrained optimization via exact augmented Lagrangian and randomized iterative
// sketching", ICML 2023; Eisenstat, Elman, Schultz, SINUM 20 (1983), and Walker, Zhou, "A simpler GMRES", Numer. Linear
// Algebra Appl. 1 (1994), for the residuals; O'Leary, "The block conjugate gradient algorithm and related methods",
// Linear Algebra Appl. 29 (1980); Ruiz, RAL-TR-2001-034, for the equilibration.
KktSolution solve_kkt(const Operator& H, const Operator& A, const at::Tensor& f, const at::Tensor& c,
                      const KktOptions& options);

}  // namespace fastlr
