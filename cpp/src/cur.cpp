#include <fastlr/cur.hpp>

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include <fastlr/orthonormalize.hpp>
#include <fastlr/pivoted_qr.hpp>
#include <fastlr/random.hpp>

#include "checks.hpp"
#include "column_choice.hpp"
#include "first_product.hpp"

namespace fastlr {
namespace {

constexpr const char* kCaller = "cur";
// Rows of the sketch beyond the rank.
constexpr int64_t kOversample = 10;
// Rows of the intersection for each of its columns.
constexpr int64_t kRowsForColumn = 2;

// The probes of a rank are its own, beyond the columns that its sketches, and those of an SVD of that rank, draw.
int64_t first_probe(int64_t rank) { return kProbes * rank + 2 * kOversample + kProbes; }

at::Tensor in_double(const at::Tensor& A) { return A.to(double_type(A)); }

// ---- the choice of columns and rows ----

// The first `count` pivots of the columns of S, by exchanges until no other choice has a much larger volume.
at::Tensor pivots_of(const at::Tensor& S, int64_t count, int64_t seed) {
  const auto qr = pivoted_qr(S, {.rank = count, .strong = kStrong, .seed = seed});
  return qr.pivots.narrow(0, 0, count).contiguous();
}

// What the columns of A are chosen by: the adjoint of ΩᴴA, of A itself where that has no more rows.
at::Tensor sketched_adjoint(const Operator& A, int64_t rank, int64_t seed) {
  const int64_t width = rank + kOversample;
  return A->rows() <= width ? materialized_adjoint(A->to_dense()) : A->gaussian_rmatmat(width, seed);
}

// Rows beyond the first ones, Q[rows] = G: pivots of what the whitened Q (GᴴG + ε)^-1/2 has elsewhere, which is large
// in the directions that G has the least of.
at::Tensor with_more_rows(const at::Tensor& Q, const at::Tensor& rows, int64_t count, int64_t seed) {
  const int64_t more = count - rows.size(0);
  if (more == 0) return rows;
  const auto G = Q.index_select(0, rows);
  // Rows that are given may have no part at all in some direction: a small ε makes that the first to be looked for.
  const auto gram = at::mm(G.mH(), G) + std::sqrt(unit_roundoff(Q)) * at::eye(Q.size(1), Q.options());
  const auto W = at::linalg_solve_triangular(at::linalg_cholesky(gram), Q.mH(), /*upper=*/false);
  auto others = at::ones({Q.size(0)}, rows.options().dtype(at::kBool));
  others.index_fill_(0, rows, false);
  const auto numbers = others.nonzero().squeeze(1);
  const auto qr = pivoted_qr(W.index_select(1, numbers), {.rank = more, .strong = std::nullopt, .seed = seed});
  return at::cat({rows, numbers.index_select(0, qr.pivots.narrow(0, 0, more))});
}

// ---- the matrix in the middle ----

// U = left * core * right, with the directions of C and R in descending order; leaving out all but the first r on both
// sides loses the entries of `lost` (squares) outside of the leading r x r block.
struct Middle {
  at::Tensor left, core, right, lost;
  int64_t most;  // directions that are not rounding

  at::Tensor product(int64_t r) const {
    return at::linalg_multi_dot({left.narrow(1, 0, r), core.narrow(0, 0, r).narrow(1, 0, r), right.narrow(0, 0, r)});
  }
};

// Which singular values are not rounding.
at::Tensor seen(const at::Tensor& S) {
  const double noise = static_cast<double>(S.numel()) * unit_roundoff(S);
  return at::gt(S, noise * S.max());
}
int64_t numerical_rank(const at::Tensor& S) { return seen(S).sum().item<int64_t>(); }
at::Tensor inverses(const at::Tensor& S) { return at::where(seen(S), S.reciprocal(), at::zeros_like(S)); }

// C^+ A R^+ from orthonormal bases, C = Q T and R = L Pᴴ, and M = Qᴴ A P.
Middle projection(const at::Tensor& T, const at::Tensor& M, const at::Tensor& L) {
  const auto [Ut, St, Vt] = at::linalg_svd(T, /*full_matrices=*/false);
  const auto [Ul, Sl, Vl] = at::linalg_svd(L, /*full_matrices=*/false);
  const auto core = at::linalg_multi_dot({Ut.mH(), M, Vl.mH()});
  return {Vt.mH() * inverses(St), core, inverses(Sl).unsqueeze(1) * Ul.mH(), squared_magnitude(core),
          std::min(numerical_rank(St), numerical_rank(Sl))};
}

// G^+ for G = A[rows, columns]. Of A ≈ C G^+ R, direction i is C v_i u_iᴴ R / σ_i.
Middle intersection(const at::Tensor& C, const at::Tensor& G, const at::Tensor& R) {
  const auto [Ug, S, Vg] = at::linalg_svd(G, /*full_matrices=*/false);
  const auto inverse = inverses(S);
  const auto lost =
      squared_magnitude(at::mm(C, Vg.mH())).sum(0) * squared_magnitude(at::mm(Ug.mH(), R)).sum(1) * inverse.square();
  return {Vg.mH(), at::diag(inverse).to(G.scalar_type()), Ug.mH(), at::diag(lost), numerical_rank(S)};
}

// What is lost for every r, 0 included.
at::Tensor losses(const Middle& middle) {
  const int64_t p = middle.lost.size(0);
  // The entries (i, j) with max(i, j) = r - 1 are those that r has and r - 1 has not.
  const auto lower = middle.lost.tril().sum(1) + middle.lost.triu(1).sum(0);
  auto tails = at::zeros({p + 1}, lower.options());
  tails.narrow(0, 0, p).copy_(lower.flip(0).cumsum(0).flip(0));
  return tails.sqrt().to(at::kCPU);
}

struct Truncation {
  at::Tensor U;
  int64_t kept;
};

// The r for which what is lost and what rounding U and the products C U R adds, some sqrt(k) u ‖|C| |U| |R|‖, are as
// small together as they can be: the first falls with r, the second rises.
Truncation truncated(const Middle& middle, const at::Tensor& column_norms, const at::Tensor& row_norms, double u) {
  const auto lost = losses(middle);
  const double unit = u * std::sqrt(static_cast<double>(std::max<int64_t>(middle.most, 1)));
  const auto rounding = [&](int64_t r) {
    return unit * frobenius_norm(column_norms.unsqueeze(1) * middle.product(r) * row_norms);
  };
  const auto loss = [&](int64_t r) { return lost.const_data_ptr<double>()[r]; };
  int64_t low = 0, high = middle.most;  // the first r at which rounding is no smaller lies in (low, high]
  if (high > 0 && loss(high) < rounding(high)) {
    while (high - low > 1) {
      const int64_t r = (low + high) / 2;
      (loss(r) < rounding(r) ? high : low) = r;
    }
    if (std::hypot(loss(low), rounding(low)) < std::hypot(loss(high), rounding(high))) high = low;
  }
  return {middle.product(high), high};
}

at::Tensor norms(const at::Tensor& A, int64_t axis) { return squared_magnitude(A).sum(axis).sqrt(); }

// The numbers that are given, in memory of their own and where A is; nothing for none.
std::optional<at::Tensor> given(const std::optional<at::Tensor>& index, const CurOptions& options, const char* name,
                                at::Device device) {
  if (!index) return std::nullopt;
  TORCH_CHECK_VALUE(index->dim() == 1 && index->size(0) == options.rank && index->scalar_type() == at::kLong, kCaller,
                    ": ", name, " must be ", options.rank, " numbers of type int64, got ", index->scalar_type(),
                    " of shape ", index->sizes());
  return index->to(device, at::kLong, /*non_blocking=*/false, /*copy=*/true);
}

}  // namespace

CurMiddle parse_cur_middle(std::string_view name) {
  if (name == "projection") return CurMiddle::projection;
  if (name == "intersection") return CurMiddle::intersection;
  TORCH_CHECK_VALUE(false, kCaller, ": middle must be 'projection' or 'intersection', got '", name, "'");
}

Cur cur(const Operator& A, const CurOptions& options) {
  check_operator(*A, kCaller);
  const int64_t m = A->rows(), n = A->columns(), shorter = std::min(m, n), k = options.rank;
  TORCH_CHECK_VALUE(k >= 1 && k <= shorter, kCaller, ": rank must be between 1 and min(m, n) = ", shorter, ", got ", k);
  const auto given_columns = given(options.columns, options, "columns", A->options().device());
  const auto given_rows = given(options.rows, options, "rows", A->options().device());
  const bool projected = options.middle == CurMiddle::projection;
  const int64_t passes = A->passes(), probe0 = first_probe(k);

  // Where the columns are given, the probe is the first product, which shows whether A is finite and in range.
  const auto first = first_product(A, kCaller, [&](const Operator& B) {
    return given_columns ? B->gaussian_matmat(kProbes, options.seed, probe0) : sketched_adjoint(B, k, options.seed);
  });
  const auto columns = given_columns ? *given_columns : pivots_of(materialized_adjoint(first.product), k, options.seed);
  const auto C = A->columns_at(columns), C_unit = scaled(C, first.exponent), C_double = in_double(C_unit);
  const auto Q = orthonormalize(C_double);
  auto rows = given_rows ? *given_rows : choose_of_orthonormal(materialized_adjoint(Q), kCaller).chosen(Q.device());
  if (!projected) rows = with_more_rows(Q, rows, std::min(kRowsForColumn * k, m), options.seed);
  const auto R = A->rows_at(rows), R_unit = scaled(R, first.exponent), R_double = in_double(R_unit);

  const auto omega = gaussian(n, kProbes, options.seed, probe0, A->options());
  at::Tensor probe = given_columns ? first.product : at::Tensor();
  Middle middle;
  if (projected) {
    const auto P = orthonormalize(materialized_adjoint(R_double));
    const auto operand = P.to(R.scalar_type());
    const auto image = first.A->matmat(probe.defined() ? operand : at::cat({operand, omega}, 1));
    if (!probe.defined()) probe = image.narrow(1, k, kProbes);
    middle =
        projection(at::mm(Q.mH(), C_double), at::mm(Q.mH(), in_double(image.narrow(1, 0, k))), at::mm(R_double, P));
  } else {
    if (!probe.defined()) probe = first.A->matmat(omega);
    middle = intersection(C_double, C_double.index_select(0, rows), R_double);
  }
  const auto [U_double, kept] =
      truncated(middle, norms(C_double, 0), norms(R_double, 1), unit_roundoff(A->options().dtype().toScalarType()));
  const auto U_unit = U_double.to(C.scalar_type()).contiguous();
  const auto U = scaled(U_unit, first.exponent);
  TORCH_CHECK_VALUE(std::isfinite(largest_magnitude(U)), kCaller, ": U, of the size of 1 / A, overflows in ",
                    A->options().dtype(), "; multiply A by a power of two");
  const auto residual = probe - at::mm(C_unit, at::mm(U_unit, at::mm(R_unit, omega)));
  return {C, U, R, rows, columns, kept, A->passes() - passes, scaled(estimate_error(residual), -first.exponent)};
}

}  // namespace fastlr
