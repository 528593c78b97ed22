#include "preconditioner.hpp"

#include <ATen/ATen.h>

#include <cmath>
#include <tuple>

#include <fastlr/random.hpp>

#include "checks.hpp"

namespace fastlr {
namespace {

// A sketch with a condition number above 1 / (30 u) says nothing about directions of smaller singular values but that
// they cannot be told from rounding.
constexpr double kRoundoffs = 30;
// Columns for which a triangle is made anew: for more the singular values of R are found once.
constexpr int64_t kFewColumns = 2;
constexpr int kPowerIterations = 10;

at::Tensor triangle_of(const at::Tensor& A) { return std::get<1>(at::linalg_qr(A, "r")); }

// R⁻¹ B or R⁻ᴴ B.
at::Tensor solve_upper(const at::Tensor& R, const at::Tensor& B) { return at::linalg_solve_triangular(R, B, true); }
at::Tensor solve_upper_adjoint(const at::Tensor& R, const at::Tensor& B) {
  return at::linalg_solve_triangular(R.mH(), B, false);
}

// Of columns of any magnitude; 1 for a column of zeros.
at::Tensor column_lengths(const at::Tensor& C) {
  const auto largest = C.abs().amax(0, /*keepdim=*/true);
  const auto divisors = at::where(largest > 0, largest, at::ones_like(largest));
  const auto lengths = at::linalg_vector_norm(C / divisors, 2, at::IntArrayRef{0}, /*keepdim=*/true) * divisors;
  return at::where(lengths > 0, lengths, at::ones_like(lengths)).mT();
}

// The largest singular value of a product that `apply` takes one step of the power method with.
template <typename Step>
double power_method(at::Tensor v, const Step& step) {
  double norm = 0.0;
  for (int i = 0; i < kPowerIterations; ++i) {
    v = step(v);
    norm = at::linalg_vector_norm(v).item<double>();
    if (!(norm > 0) || !std::isfinite(norm)) return norm;
    v = v / norm;
  }
  return std::sqrt(norm);
}

double condition_of(const at::Tensor& R) {
  const auto start = gaussian(R.size(0), 1, /*seed=*/0, 0, R.options());
  const double largest = power_method(start, [&](const at::Tensor& v) { return at::mm(R.mH(), at::mm(R, v)); });
  const double inverse =
      power_method(start, [&](const at::Tensor& v) { return solve_upper(R, solve_upper_adjoint(R, v)); });
  return std::max(1.0, largest * inverse);
}

// At least the condition number, and at most that times the rank; infinite for a singular matrix.
double condition_bound(const at::Tensor& R) {
  const auto inverse = solve_upper(R, at::eye(R.size(0), R.options()));
  const double bound = frobenius_norm(R) * frobenius_norm(inverse);
  return std::isfinite(bound) ? bound : std::numeric_limits<double>::infinity();
}

class PreconditionedOperator final : public LinearOperator {
 public:
  PreconditionedOperator(Operator T, const Preconditioner& P)
      : LinearOperator(T->rows(), P.rank(), T->options(), *T, /*counts=*/false), T_(std::move(T)), P_(P) {}
  bool reads_once() const override { return T_->reads_once(); }

 protected:
  at::Tensor do_matmat(const at::Tensor& X) const override { return T_->matmat(P_.apply(X)); }
  at::Tensor do_rmatmat(const at::Tensor& Y) const override { return P_.apply_adjoint(T_->rmatmat(Y)); }
  Residual do_residual_product(const at::Tensor& B, const at::Tensor& X) const override {
    auto [residual, co] = T_->residual_product(B, P_.apply(X));
    return {residual, P_.apply_adjoint(co)};
  }
  NormalProduct do_normal_matmat(const at::Tensor& X, const NormalColumns& columns) const override {
    auto [image, co] = T_->normal_matmat(P_.apply(X), columns);
    return {image, P_.apply_adjoint(co)};
  }

 private:
  Operator T_;
  Preconditioner P_;
};

}  // namespace

Preconditioner::Preconditioner(const at::Tensor& C, const at::Tensor& image) {
  const int64_t n = C.size(1), k = image.size(1);
  const auto triangle = triangle_of(at::cat({C, image}, 1));
  const auto of_T = triangle.narrow(1, 0, n), of_B = triangle.narrow(1, n, k);
  // The columns of a triangle are as long as those of what it is of.
  scales_ = column_lengths(of_T);
  take((of_T / scales_.mT()).narrow(0, 0, n), of_B.narrow(0, 0, n));
  const double most = 1 / (kRoundoffs * unit_roundoff(C));
  if (condition_bound(R_) > most) {
    auto [U, S, Vh] = at::linalg_svd(R_, /*full_matrices=*/false);
    const int64_t rank = (S * most > S.narrow(0, 0, 1)).sum().item<int64_t>();
    if (rank < n) {
      // The space of the rows of T, whatever the scales: x in it is the shortest of those with the same T x.
      const auto largest = scales_.max();
      const auto rows = Vh.narrow(0, 0, rank).mH() * (scales_ / largest);
      basis_ = std::get<0>(at::linalg_qr(rows)) / largest;
      const auto in_basis = triangle_of(at::cat({at::mm(of_T, basis_), of_B}, 1)).narrow(0, 0, rank);
      take(in_basis.narrow(1, 0, rank), in_basis.narrow(1, rank, k));
    }
  }
  if (rank() > 0) condition_ = condition_of(R_);
}

Preconditioner Preconditioner::by_columns(const at::Tensor& C) {
  Preconditioner P;
  P.scales_ = column_lengths(C);
  P.norm_ = std::sqrt(static_cast<double>(C.size(1)));
  P.condition_ = std::numeric_limits<double>::quiet_NaN();
  return P;
}

void Preconditioner::take(const at::Tensor& R, const at::Tensor& solution) {
  R_ = R.contiguous();
  solution_ = solution;
  norm_ = frobenius_norm(R_);
}

at::Tensor Preconditioner::lift(const at::Tensor& W) const {
  return basis_.defined() ? at::mm(basis_, W) : W / scales_;
}
at::Tensor Preconditioner::lift_adjoint(const at::Tensor& X) const {
  return basis_.defined() ? at::mm(basis_.mH(), X) : X / scales_;
}
at::Tensor Preconditioner::coordinates(const at::Tensor& X) const {
  // The columns of the basis are orthogonal, of length 1 / (the largest scale).
  return basis_.defined() ? at::mm(basis_.mH(), X) * scales_.max().square() : X * scales_;
}
at::Tensor Preconditioner::unwhiten(const at::Tensor& Z) const { return has_triangle() ? solve_upper(R_, Z) : Z; }
at::Tensor Preconditioner::whiten(const at::Tensor& W) const { return has_triangle() ? solve_upper_adjoint(R_, W) : W; }
at::Tensor Preconditioner::unwhiten_defect(const at::Tensor& Z) const {
  return has_triangle() ? at::mm(R_.mH(), Z) : Z;
}

at::Tensor Preconditioner::shifted_norms(const at::Tensor& G, const at::Tensor& shifts) const {
  if (G.size(1) <= kFewColumns) {
    auto norms = at::empty({G.size(1)}, at::kDouble);
    shifted_.resize(G.size(1));
    for (int64_t j = 0; j < G.size(1); ++j) {
      const double shift = shifts[j].item<double>();
      auto& [of, triangle] = shifted_[j];
      if (!triangle.defined() || of != shift)
        triangle = triangle_of(at::cat({R_, at::eye(rank(), R_.options()).mul_(shift)}));
      of = shift;
      norms[j] = frobenius_norm(solve_upper_adjoint(triangle, G.narrow(1, j, 1)));
    }
    return norms;
  }
  if (!values_.defined()) std::tie(std::ignore, values_, vectors_) = at::linalg_svd(R_, /*full_matrices=*/false);
  const auto parts = at::mm(vectors_, G).abs().to(at::kDouble);
  const auto weights = at::hypot(values_.to(at::kDouble).unsqueeze(1), shifts.to(G.device()));
  return at::linalg_vector_norm(parts / weights, 2, at::IntArrayRef{0}).cpu();
}

Operator preconditioned(Operator T, const Preconditioner& P) {
  return std::make_shared<PreconditionedOperator>(std::move(T), P);
}

}  // namespace fastlr
