#include <fastlr/pivoted_qr.hpp>

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include <fastlr/random.hpp>
#include <fastlr/sketch_operator.hpp>

#include "checks.hpp"
#include "column_order.hpp"
#include "for_each.hpp"
#include "pivot_columns.hpp"
#include "strong_exchange.hpp"
#include "tall.hpp"

namespace fastlr {
namespace {

constexpr const char* kCaller = "pivoted_qr";
// Columns that are factored together, and rows of the sketch beyond them.
constexpr int64_t kBlock = 64, kOversample = 8;
static_assert(kBlock + kOversample <= kernels::kMostPivotRows);

// Rounding of A R_s^-1 may be amplified by so much where that is orthonormalized.
constexpr double kMostAmplification = 20;

// ---- a block of Householder reflections ----

// H = I - V T Vᴴ on the rows from `row` on.
struct Reflections {
  int64_t row;
  at::Tensor V, inverse_T;  // upper triangular

  // Hᴴ C, in place.
  void apply_adjoint_(at::Tensor C) const {
    C.addmm_(V, at::linalg_solve_triangular(inverse_T.mH(), at::mm(V.mH(), C), /*upper=*/false), 1, -1);
  }
  void apply_(at::Tensor C) const {
    C.addmm_(V, at::linalg_solve_triangular(inverse_T, at::mm(V.mH(), C), /*upper=*/true), 1, -1);
  }
};

// Makes `panel` upper triangular. H is unitary where T^-1 + T^-H = VᴴV: the strict upper triangle of T^-1, and the real
// part of its diagonal, which LAPACK's factors tau have to rounding only, are those of VᴴV.
Reflections triangularize(at::Tensor panel, int64_t row) {
  const auto [a, tau] = at::geqrf(panel);
  panel.copy_(a.triu());
  auto V = a.tril(-1);
  V.diagonal().fill_(1);
  // A reflection with tau = 0 is the identity.
  const auto idle = tau == 0;
  V.masked_fill_(idle.unsqueeze(0), 0);
  const auto G = accurate_gram(V).to(V.scalar_type());
  auto diagonal = G.diagonal() / 2;
  if (V.is_complex()) at::imag(diagonal).copy_(at::imag(tau.reciprocal()));
  auto inverse = G.triu(1);
  inverse.diagonal().copy_(diagonal.masked_fill(idle, 1));
  return {row, V, inverse};
}

// ---- pivots ----

// By tensor operations, for complex numbers and devices without a kernel of their own.
std::vector<int64_t> pivots_by_aten(at::Tensor S, int64_t count) {
  std::vector<int64_t> pivots;
  auto taken = at::zeros({S.size(1)}, S.options().dtype(at::kBool));
  for (int64_t k = 0; k < count; ++k) {
    const auto squares = squared_magnitude(S).sum(0).masked_fill_(taken, -1);
    pivots.push_back(squares.argmax().item<int64_t>());
    taken[pivots.back()].fill_(true);
    const double square = squares[pivots.back()].item<double>();
    if (!(square > 0)) continue;
    const auto q = S.select(1, pivots.back()) / std::sqrt(square);
    S.sub_(at::outer(q, at::mv(S.mH(), q).conj()));
  }
  return pivots;
}

std::vector<int64_t> choose_pivots(const at::Tensor& S, int64_t count) {
  auto work = S.clone(at::MemoryFormat::Contiguous);
  if (S.is_complex() || !S.is_cpu()) return pivots_by_aten(work, count);
  std::vector<int64_t> pivots(count);
  AT_DISPATCH_FLOATING_TYPES(S.scalar_type(), kCaller, [&] {
    kernels::pivot_columns_cpu(work.mutable_data_ptr<scalar_t>(), work.size(0), work.size(1), count, pivots.data());
  });
  return pivots;
}

// Exchanges of columns that bring the pivots to the front: column sources[i] goes to targets[i].
struct Exchanges {
  std::vector<int64_t> targets, sources;

  Exchanges(const std::vector<int64_t>& pivots, int64_t columns) {
    auto from = as_they_are(columns), place = from;
    for (int64_t i = 0; i < static_cast<int64_t>(pivots.size()); ++i) {
      const int64_t other = place[pivots[i]];
      std::swap(place[from[i]], place[from[other]]);
      std::swap(from[i], from[other]);
    }
    for (int64_t j = 0; j < columns; ++j)
      if (from[j] != j) {
        targets.push_back(j);
        sources.push_back(from[j]);
      }
  }

  // To the transpose, whose rows are one piece of memory each.
  void apply_(at::Tensor rows) const {
    if (targets.empty()) return;
    rows.index_copy_(0, index_tensor(targets, rows.device()),
                     rows.index_select(0, index_tensor(sources, rows.device())));
  }
  void apply_(int64_t* numbers) const {
    std::vector<int64_t> moved;
    for (const int64_t source : sources) moved.push_back(numbers[source]);
    for (size_t i = 0; i < targets.size(); ++i) numbers[targets[i]] = moved[i];
  }
};

// S = Omegaᴴ X for what is left of the columns, X; Omega is turned as X is.
class TrailingSketch {
 public:
  TrailingSketch(const at::Tensor& X, int64_t seed)
      : omega_(gaussian(X.size(0), kBlock + kOversample, seed, 0, X.options())), S_(at::mm(omega_.mH(), X)) {}

  std::vector<int64_t> pivots(int64_t count) const { return choose_pivots(S_, count); }

  // The columns have been exchanged, and then turned: `top` is now the first rows of those that stay. The difference is
  // as accurate, relative to the lengths that the columns had, as what is left of the columns themselves.
  void advance(const Exchanges& exchanges, const Reflections& H, const at::Tensor& top) {
    exchanges.apply_(S_.t());
    H.apply_adjoint_(omega_);
    const int64_t height = top.size(0), width = top.size(1);
    const auto above = omega_.narrow(0, 0, height);
    omega_ = omega_.narrow(0, height, omega_.size(0) - height);
    S_ = at::addmm(S_.narrow(1, S_.size(1) - width, width), above.mH(), top, 1, -1);
  }

 private:
  at::Tensor omega_, S_;
};

// ---- the factorization ----

// What is below this part of the largest diagonal entry is rounding, or may be: rounding adds up like random numbers,
// but for bad luck.
double noise_of(const at::Tensor& A) {
  return 10 * std::sqrt(static_cast<double>(std::max(A.size(0), A.size(1)))) * unit_roundoff(A);
}
double most_noise_of(const at::Tensor& A) { return 10 * static_cast<double>(A.size(1)) * unit_roundoff(A); }

// The smallest part of the largest diagonal entry.
double relative_least(const at::Tensor& diagonal) {
  const auto sizes = diagonal.abs();
  return sizes.min().item<double>() / sizes.max().item<double>();
}

struct Factorization {
  at::Tensor F;  // the first rows hold R, the others what is left of the columns that are not factored
  std::vector<int64_t> order;
  std::vector<Reflections> blocks;
  int64_t columns = 0;  // that are factored

  at::Tensor rest() const { return F.narrow(0, columns, F.size(0) - columns).narrow(1, columns, F.size(1) - columns); }
  at::Tensor R() const { return F.narrow(0, 0, columns); }
  // Its columns times `phases`.
  at::Tensor Q(const at::Tensor& phases) const {
    auto Q = at::zeros({columns, F.size(0)}, F.options()).t();
    Q.diagonal().copy_(phases);
    for (auto H = blocks.rbegin(); H != blocks.rend(); ++H)
      H->apply_(Q.narrow(0, H->row, Q.size(0) - H->row).narrow(1, H->row, columns - H->row));
    return Q;
  }
};

// Columns lie in memory one after the other.
at::Tensor by_columns(const at::Tensor& A) { return A.t().clone(at::MemoryFormat::Contiguous).t(); }

// Up to `most` columns, until what is left is at most `target`: by the pivots of the sketches of `seed`, or in the
// order in which they are.
Factorization factorize(const at::Tensor& A, std::vector<int64_t> order, int64_t most, std::optional<int64_t> seed,
                        std::optional<double> target = std::nullopt) {
  Factorization result{by_columns(A), std::move(order), {}};
  const int64_t m = A.size(0), n = A.size(1);
  std::optional<TrailingSketch> sketch;
  // Few rows are as good as a sketch, and exact.
  const auto is_short = [&] { return m - result.columns <= kernels::kMostPivotRows; };
  if (seed && !is_short()) sketch.emplace(A, *seed);
  while (result.columns < most && !(target && frobenius_norm(result.rest()) <= *target)) {
    check_interrupt();
    const int64_t done = result.columns, count = std::min(kBlock, most - done);
    auto trailing = result.F.narrow(1, done, n - done);
    std::vector<int64_t> pivots;
    if (seed) pivots = is_short() ? choose_pivots(result.rest(), count) : sketch->pivots(count);
    const Exchanges exchanges(pivots, n - done);
    exchanges.apply_(trailing.t());
    exchanges.apply_(result.order.data() + done);

    auto below = trailing.narrow(0, done, m - done);
    auto H = triangularize(below.narrow(1, 0, count), done);
    auto others = below.narrow(1, count, n - done - count);
    H.apply_adjoint_(others);
    result.columns += count;
    if (sketch && result.columns < most && !is_short()) sketch->advance(exchanges, H, others.narrow(0, 0, count));
    result.blocks.push_back(std::move(H));
  }
  return result;
}

// The factorization of the first k columns in an order.
Factorization in_order(const at::Tensor& A, std::vector<int64_t> order, int64_t k) {
  const auto columns = index_tensor(order, A.device());
  return factorize(A.index_select(1, columns), std::move(order), k, std::nullopt);
}

// Exchanges columns until none multiplies the volume by more than f. Returns how many.
int64_t make_strong(const at::Tensor& A, Factorization& qr, double f) {
  const int64_t k = qr.columns, n = A.size(1);
  if (k == n) return 0;
  for (int64_t exchanged = 0; exchanged <= most_exchanges(k); ++exchanged) {
    const auto R11 = qr.R().narrow(1, 0, k);
    // Where the columns that are chosen have the whole rank, all volumes are rounding.
    const double least = relative_least(R11.diagonal());
    if (!(least > noise_of(A)) || (exchanged == most_exchanges(k) && !(least > most_noise_of(A)))) return exchanged;
    const auto T = at::linalg_solve_triangular(R11, qr.R().narrow(1, k, n - k), /*upper=*/true);
    const auto exchange = best_exchange(R11, T, squared_magnitude(qr.rest()).sum(0), f);
    if (!exchange) return exchanged;
    std::swap(qr.order[exchange->chosen], qr.order[k + exchange->other]);
    qr = in_order(A, std::move(qr.order), k);
  }
  raise_unsettled(kCaller, k);
}

// By what the columns of Q are multiplied, and the rows of R divided, so that the diagonal of R is not negative.
at::Tensor phases_of(const at::Tensor& R) {
  const auto diagonal = R.diagonal();
  return at::where(diagonal == 0, at::ones_like(diagonal), diagonal.sgn());
}
void divide_by_(at::Tensor R, const at::Tensor& phases) {
  R.mul_(phases.conj().unsqueeze(1));
  if (R.is_complex()) at::imag(R.diagonal()).zero_();
}

struct Factors {
  at::Tensor Q, R;
  std::vector<int64_t> order;
  double rest;  // the norm of what is left
  int64_t exchanges;
  PivotedQrMethod method;
};

bool is_long(const at::Tensor& A) { return A.size(1) > 0 && A.size(0) >= 4 * A.size(1); }

// A long A is S A's factor R_s and an A R_s^-1 of a condition number of some 4; nothing where A has no full rank.
std::optional<Factors> by_preconditioning(const at::Tensor& A, int64_t seed) {
  const int64_t m = A.size(0), n = A.size(1);
  const SketchOperator S{SketchKind::sparse_sign, 3 * n, m, seed, std::min<int64_t>(8, 3 * n)};
  auto sketched = factorize(S.apply(A), as_they_are(n), n, seed);
  const auto R_s = sketched.R();
  if (!(relative_least(R_s.diagonal()) > most_noise_of(A))) return std::nullopt;
  const auto Y =
      at::linalg_solve_triangular(R_s, A.index_select(1, index_tensor(sketched.order, A.device())), /*upper=*/true,
                                  /*left=*/false);
  const auto first = cholesky_factors(quick_gram(Y));
  // Far above the condition number that the sketch leaves: a bad one.
  if (!(first.valid.item<bool>() && first.amplification.item<double>() < kMostAmplification)) return std::nullopt;
  const auto near = tall_product(Y, first.T);
  const auto second = cholesky_factors(accurate_gram(near));
  const auto of = [&](const at::Tensor& small) { return small.to(A.scalar_type()); };
  const auto R = at::mm(of(at::mm(second.R, first.R.to(second.R.scalar_type()))), R_s).triu();
  const auto phases = phases_of(R);
  divide_by_(R, phases);
  return Factors{
      tall_product(near, of(second.T * phases)), R, std::move(sketched.order), 0.0, 0, PivotedQrMethod::preconditioned};
}

// The least number of rows of R that leaves at most `target`, and what it leaves, where all of them leave `rest`.
std::pair<int64_t, double> cut(const at::Tensor& R, double rest, double target) {
  const auto squares = squared_magnitude(R).to(at::kDouble).sum(1).to(at::kCPU);
  int64_t k = squares.numel();
  while (k > 0) {
    const double more = std::hypot(rest, std::sqrt(squares.const_data_ptr<double>()[k - 1]));
    if (more > target) break;
    rest = more;
    --k;
  }
  return {k, rest};
}

Factors by_blocks(const at::Tensor& A, const PivotedQrOptions& options, int64_t most, std::optional<double> target) {
  auto qr = factorize(A, as_they_are(A.size(1)), most, options.seed, target);
  int64_t exchanges = 0;
  if (options.strong) {
    const int64_t k = target ? cut(qr.R(), frobenius_norm(qr.rest()), *target).first : qr.columns;
    if (k < qr.columns) qr = in_order(A, std::move(qr.order), k);
    exchanges = make_strong(A, qr, *options.strong);
  }
  const auto phases = phases_of(qr.R());
  divide_by_(qr.R(), phases);
  return {qr.Q(phases), qr.R(), std::move(qr.order), frobenius_norm(qr.rest()), exchanges, PivotedQrMethod::blocked};
}

}  // namespace

PivotedQr pivoted_qr(const at::Tensor& A, const PivotedQrOptions& options) {
  check_matrix(A, kCaller);
  const int64_t m = A.size(0), n = A.size(1), shorter = std::min(m, n);
  TORCH_CHECK_VALUE(!options.rank || (*options.rank >= 1 && *options.rank <= shorter), kCaller,
                    ": rank must be between 1 and min(m, n) = ", shorter, ", got ", options.rank.value_or(0));
  TORCH_CHECK_VALUE(options.tol >= 0 && std::isfinite(options.tol), kCaller,
                    ": tol must be non-negative and finite, got ", options.tol);
  TORCH_CHECK_VALUE(!options.strong || (*options.strong >= 1 && std::isfinite(*options.strong)), kCaller,
                    ": strong must be at least 1 and finite, got ", options.strong.value_or(0));
  const double largest = largest_magnitude(A);
  if (!std::isfinite(largest)) check_finite(A, kCaller);
  const int exponent = exponent_in_range(A, largest);
  const auto unit = scaled(A, exponent);
  std::optional<double> target;
  if (options.tol > 0) target = options.tol * frobenius_norm(unit);

  const int64_t most = options.rank.value_or(shorter);
  std::optional<Factors> qr;
  if (is_long(A) && most == n && !options.strong) qr = by_preconditioning(unit, options.seed);
  if (!qr) qr = by_blocks(unit, options, most, target);

  auto [k, rest] = target && !options.strong ? cut(qr->R, qr->rest, *target) : std::pair(qr->R.size(0), qr->rest);
  // Long factors in rows, others in columns, whichever way they were found.
  const auto Q = qr->Q.narrow(1, 0, k), R = qr->R.narrow(0, 0, k);
  return {is_long(A) ? Q.contiguous() : Q.t().contiguous().t(),
          scaled(R, -exponent).t().contiguous().t(),
          index_tensor(qr->order, A.device()),
          std::ldexp(rest, -exponent),
          qr->exchanges,
          !target || rest <= *target,
          qr->method};
}

std::vector<PivotedQr> pivoted_qr_batch(const at::Tensor& A, const PivotedQrOptions& options) {
  std::vector<PivotedQr> results(A.size(0));
  for_each(A.size(0), A.is_cpu(), [&](int64_t i) { results[i] = pivoted_qr(A[i], options); });
  return results;
}

}  // namespace fastlr
