#include "hermitian_checks.hpp"

#include <ATen/ATen.h>

#include <cmath>

#include "checks.hpp"

namespace fastlr {
namespace {

// Rounding, with room for what the caller's own computation of A has left.
double allowance(double u) { return 100 * u; }

}  // namespace

void check_square(const LinearOperator& A, const char* caller) {
  check_operator(A, caller);
  TORCH_CHECK_VALUE(A.rows() == A.columns(), caller, ": A must be square, got shape (", A.rows(), ", ", A.columns(),
                    ")");
}

// The entries of XᴴAX are rounded to a few u ‖x_i‖ ‖A x_j‖: with Gaussian X, an A that is Hermitian to some
// 100 √n u ‖A‖_F passes.
void check_hermitian(const at::Tensor& product, const at::Tensor& X, const char* caller, const char* name) {
  if (product.numel() == 0) return;
  const auto G = at::mm(X.mH(), product);
  const double asymmetry = frobenius_norm(G - G.mH());
  const double scale = frobenius_norm(X) * frobenius_norm(product);
  TORCH_CHECK_LINALG(asymmetry <= allowance(unit_roundoff(product)) * scale, caller, ": ", name,
                     " must be Hermitian, but Xᴴ ", name, " X differs from its adjoint by ",
                     asymmetry / frobenius_norm(G), " of its norm for random X; pass (", name, " + ", name,
                     "ᴴ) / 2 if that is meant");
}

void check_semidefinite(const at::Tensor& eigenvalues, double u, const char* caller) {
  if (eigenvalues.numel() == 0) return;
  const double least = eigenvalues[0].item<double>(), most = eigenvalues.abs().max().item<double>();
  TORCH_CHECK_LINALG(least >= -allowance(u) * std::sqrt(static_cast<double>(eigenvalues.size(0))) * most, caller,
                     ": A must be positive semidefinite, but it has an eigenvalue of at most ", least / most,
                     " times the largest; randomized_eigh takes indefinite matrices");
}

}  // namespace fastlr
