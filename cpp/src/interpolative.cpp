#include <fastlr/interpolative.hpp>

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include <fastlr/orthonormalize.hpp>
#include <fastlr/pivoted_qr.hpp>
#include <fastlr/random.hpp>

#include "checks.hpp"
#include "column_choice.hpp"
#include "first_product.hpp"
#include "for_each.hpp"
#include "qb.hpp"
#include "residual_bound.hpp"

namespace fastlr {
namespace {

constexpr const char* kCaller = "interpolative";
// Columns of the sketch beyond the rank: twice the usual, which brings the choice within 1 % or so of that of QR with
// pivots where singular values decay slowly.
constexpr int64_t kOversample = 20;

int64_t shorter_side(const LinearOperator& A) { return std::min(A.rows(), A.columns()); }

// ---- a choice from any matrix ----

// By QR with strong pivoting. Where B has not the rank, its pivots are rounding and leave large coefficients: the
// leading singular vectors do not.
Choice choose_columns(const at::Tensor& B, int64_t rank, int64_t seed) {
  const auto qr = pivoted_qr(B, {.rank = rank, .strong = kStrong, .seed = seed});
  const auto order = qr.pivots.to(at::kCPU);
  const auto T = at::linalg_solve_triangular(qr.R.narrow(1, 0, rank), qr.R.narrow(1, rank, qr.R.size(1) - rank),
                                             /*upper=*/true);
  if (is_bounded(T))
    return {std::vector<int64_t>(order.const_data_ptr<int64_t>(), order.const_data_ptr<int64_t>() + order.numel()),
            rank, T};
  return choose_of_orthonormal(std::get<2>(at::linalg_svd(B, /*full_matrices=*/false)).narrow(0, 0, rank), kCaller);
}

// ---- what the choice is made from ----

// B with BᴴB ≈ AᴴA: the projection of A on the range of a sketch, or its triangle where that has no more rows.
struct Compressed {
  Operator A;  // times 2^exponent
  int exponent;
  at::Tensor B;
  bool exact;
};

at::Tensor triangle_of(const LinearOperator& A) { return A.triangle(at::empty({A.rows(), 0}, A.options())); }

Compressed compress(const Operator& A, int64_t rows, int64_t seed) {
  const bool exact = rows >= shorter_side(*A);
  auto first = first_product(A, kCaller, [&](const Operator& scaled) {
    return exact ? triangle_of(*scaled) : scaled->gaussian_matmat(rows, seed);
  });
  auto B = exact ? first.product : materialized_adjoint(first.A->rmatmat(orthonormalize(first.product)));
  return {std::move(first.A), first.exponent, std::move(B), exact};
}

// ---- the approximation ----

struct Approximation {
  Choice choice;
  at::Tensor C, coefficients;
  std::optional<double> captured;  // ‖QᴴA‖_F for a basis Q of C, where the coefficients are those of least squares

  at::Tensor left(const at::Tensor& Y, const at::Tensor& X) const { return Y - at::mm(C, at::mm(coefficients, X)); }
};

at::Tensor with_identity(const Choice& choice) {
  const auto& T = choice.T;
  auto coefficients = at::empty({choice.rank, static_cast<int64_t>(choice.order.size())}, T.options());
  coefficients.index_copy_(1, choice.chosen(T.device()), at::eye(choice.rank, T.options()));
  coefficients.index_copy_(1, choice.others(T.device()), T);
  return coefficients;
}

// The coefficients of a projection become those of least squares with A itself, unless these are larger than the bound.
Approximation approximate(const Compressed& compressed, int64_t rank, int64_t seed) {
  const auto& A = *compressed.A;
  Approximation result{choose_columns(compressed.B, rank, seed), {}, {}, {}};
  auto& choice = result.choice;
  result.C = A.columns_at(choice.chosen(compressed.B.device()));
  if (!compressed.exact) {
    const auto [Q, R] = at::linalg_qr(result.C);
    const auto image = materialized_adjoint(A.rmatmat(Q));
    const auto T = at::linalg_solve_triangular(R, image.index_select(1, choice.others(image.device())), /*upper=*/true);
    if (is_bounded(T)) {
      choice.T = T;
      result.captured = frobenius_norm(image);
    }
  }
  result.coefficients = with_identity(choice);
  return result;
}

// Of a triangle, whose columns have the lengths that those of A have, to rounding.
ErrorEstimate known_error(const at::Tensor& B, const Choice& choice) {
  const auto rest = at::addmm(B.index_select(1, choice.others(B.device())),
                              B.index_select(1, choice.chosen(B.device())), choice.T, 1, -1);
  const double rounding = 8 * std::sqrt(static_cast<double>(choice.rank)) * unit_roundoff(B) * frobenius_norm(B);
  const double error = frobenius_norm(rest) + rounding;
  return {error, error, error, 0.0};
}

Interpolative finished(const Compressed& compressed, const Approximation& approximation, const ErrorEstimate& error,
                       bool converged) {
  return {approximation.choice.chosen(approximation.coefficients.device()), approximation.coefficients,
          scaled(error, -compressed.exponent), 0, converged};
}

// Every column is in its place.
Interpolative whole(const LinearOperator& A) {
  A.check_finite(kCaller);
  const int64_t n = A.columns();
  return {at::arange(n, A.options().dtype(at::kLong)), at::eye(n, A.options()), {0.0, 0.0, 0.0, 0.0}, 0, true};
}

// Rank m: an orthonormal basis of the rows says all.
Interpolative of_all_rows(const Operator& A) {
  A->check_finite(kCaller);
  const auto dense = A->to_dense();
  const double largest = largest_magnitude(dense);
  const Compressed all{A, exponent_in_range(dense, largest), {}, true};
  const auto B = scaled(dense, all.exponent);
  auto choice = choose_of_orthonormal(materialized_adjoint(orthonormalize(materialized_adjoint(B))), kCaller);
  const auto error = known_error(B, choice);
  const auto coefficients = with_identity(choice);
  return finished(all, {std::move(choice), {}, coefficients, {}}, error, true);
}

Interpolative of_rank(const Operator& A, int64_t rank, int64_t seed) {
  if (rank == A->columns()) return whole(*A);
  if (rank == A->rows()) return of_all_rows(A);
  const auto compressed = compress(A, rank + kOversample, seed);
  const auto found = approximate(compressed, rank, seed);
  if (compressed.exact) return finished(compressed, found, known_error(compressed.B, found.choice), true);
  const auto omega = gaussian(A->columns(), kProbes, seed, kProbeColumn, A->options());
  const auto left = found.left(compressed.A->gaussian_matmat(kProbes, seed, kProbeColumn), omega);
  return finished(compressed, found, estimate_error(left), true);
}

// No column at all, of a matrix of zeros or without entries.
Interpolative nothing(const LinearOperator& A) {
  return {at::empty({0}, A.options().dtype(at::kLong)),
          at::empty({0, A.columns()}, A.options()),
          {0.0, 0.0, 0.0, 0.0},
          0,
          true};
}

// Norms of what k rows of pivoted R leave of B, for all k.
std::vector<double> tails_of(const at::Tensor& R) {
  const auto squares = squared_magnitude(R).to(at::kDouble).sum(1).to(at::kCPU);
  std::vector<double> tails(squares.numel() + 1, 0.0);
  for (int64_t k = squares.numel(); k-- > 0;)
    tails[k] = std::hypot(tails[k + 1], std::sqrt(squares.const_data_ptr<double>()[k]));
  return tails;
}

// A QB factorization grows until it leaves less than half of what is allowed; then columns are chosen from it until
// they leave no more than that.
class ToTolerance {
 public:
  ToTolerance(const Operator& A, const InterpolativeOptions& options)
      : options_(options),
        shorter_(shorter_side(*A)),
        most_(options.rank.value_or(shorter_)),
        compressed_(in_range(A, options.seed)),
        bound_(compressed_.A, *options.tol, options.seed),
        qb_{at::empty({A->rows(), 0}, A->options()), at::empty({A->columns(), 0}, A->options())} {}

  Interpolative operator()() {
    for (;;) {
      grow();
      const bool is_full = compressed_.exact || qb_.width() == most_ + kOversample;
      if (!is_full && beyond_ > allowed_ / 2) continue;
      if (auto found = choose(is_full)) return *std::move(found);
    }
  }

 private:
  // The sketch says whether A is finite and in range.
  static Compressed in_range(const Operator& A, int64_t seed) {
    auto first = first_product(A, kCaller, [&](const Operator& scaled) { return scaled->gaussian_matmat(1, seed); });
    return {std::move(first.A), first.exponent, {}, false};
  }

  void grow() {
    const auto& A = *compressed_.A;
    const int64_t width = qb_.width(), wanted = width + std::max(kFirstBlock, width / 2);
    // Past two thirds of the short side the triangle is cheaper than what is left to do.
    if (wanted > 2 * shorter_ / 3) {
      compressed_.B = triangle_of(A);
      compressed_.exact = true;
      beyond_ = 0.0;
      allowed_ = *options_.tol * frobenius_norm(compressed_.B);
      return;
    }
    extend(A, qb_, std::min(wanted, most_ + kOversample) - width, /*power_iters=*/0, options_.seed);
    compressed_.B = materialized_adjoint(qb_.rows);
    beyond_ = bound_(qb_.captured, qb_.width(), [&](const at::Tensor& Y, const at::Tensor& X) {
                return qb_.deflated(Y, X);
              }).upper;
    // ‖A‖_F, or what is known to lie below it.
    allowed_ = *options_.tol * bound_.norm().value_or(qb_.captured);
  }

  // Nothing where more rows of B are needed.
  std::optional<Interpolative> choose(bool is_full) {
    const auto tails = tails_of(pivoted_qr(compressed_.B, {.seed = options_.seed}).R);
    const int64_t deepest = std::min(compressed_.B.size(0), most_);
    double target = allowed_;
    for (int64_t rank = 0; rank <= deepest; ++rank) {
      const bool is_last = is_full && rank == deepest;
      if (std::hypot(tails[rank], beyond_) > target && !is_last) continue;
      check_interrupt();
      if (rank == 0) return nothing(*compressed_.A);  // a zero matrix
      if (rank == compressed_.A->columns()) return whole(*compressed_.A);
      const auto found = approximate(compressed_, rank, options_.seed);
      const auto error = error_of(found);
      if (error.upper <= allowed_ || is_last) return finished(compressed_, found, error, error.upper <= allowed_);
      target *= allowed_ / error.upper;
    }
    return std::nullopt;
  }

  ErrorEstimate error_of(const Approximation& found) {
    if (compressed_.exact) return known_error(compressed_.B, found.choice);
    return bound_(found.captured, found.choice.rank,
                  [&](const at::Tensor& Y, const at::Tensor& X) { return found.left(Y, X); });
  }

  const InterpolativeOptions& options_;
  int64_t shorter_, most_;
  Compressed compressed_;
  ResidualBound bound_;
  QB qb_;
  double beyond_ = 0.0, allowed_ = 0.0;  // what qb leaves of A at most, and what a result may
};

}  // namespace

Interpolative interpolative(const Operator& A, const InterpolativeOptions& options) {
  check_operator(*A, kCaller);
  TORCH_CHECK_VALUE(options.rank || options.tol, kCaller, ": give rank, tol, or both");
  const int64_t shorter = shorter_side(*A);
  TORCH_CHECK_VALUE(!options.rank || (*options.rank >= 1 && *options.rank <= shorter), kCaller,
                    ": rank must be between 1 and min(m, n) = ", shorter, ", got ", options.rank.value_or(0));
  TORCH_CHECK_VALUE(!options.tol || (*options.tol > 0 && *options.tol < 1), kCaller,
                    ": tol must be between 0 and 1, got ", options.tol.value_or(0));
  const int64_t before = A->passes();
  const auto by_columns = options.of_rows ? adjoint(A) : A;
  auto result = shorter == 0  ? nothing(*by_columns)
                : options.tol ? ToTolerance(by_columns, options)()
                              : of_rank(by_columns, *options.rank, options.seed);
  if (options.of_rows) result.coefficients = materialized_adjoint(result.coefficients).contiguous();
  result.passes = A->passes() - before;
  return result;
}

std::vector<Interpolative> interpolative_batch(const at::Tensor& A, const InterpolativeOptions& options) {
  std::vector<Interpolative> results(A.size(0));
  for_each(A.size(0), A.is_cpu(), [&](int64_t i) { results[i] = interpolative(as_operator(A[i]), options); });
  return results;
}

}  // namespace fastlr
