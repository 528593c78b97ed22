#include <fastlr/lstsq.hpp>

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <utility>

#include "checks.hpp"
#include "krylov_solvers.hpp"
#include "preconditioner.hpp"

namespace fastlr {
namespace {

constexpr const char* kCaller = "lstsq";

// ---- the choice of a method and of a sketch, by counting ----

// A matrix is `wide` where it has fewer rows than columns: its adjoint is what is sketched then.
struct Size {
  int64_t rows, columns;  // of the tall one
  bool dense, blocks, wide;
  double entries;  // that a pass reads
};

Size size_of(const LinearOperator& A) {
  const int64_t rows = std::max(A.rows(), A.columns()), columns = std::min(A.rows(), A.columns());
  const auto stored = A.stored_entries();
  const bool dense = stored && *stored == A.rows() * A.columns();
  const double all = static_cast<double>(rows) * static_cast<double>(columns);
  return {rows, columns, dense, A.reads_once(), A.rows() < A.columns(), stored ? static_cast<double>(*stored) : all};
}

// Triangles of n columns, and sketches of some n rows, are kept up to this.
constexpr int64_t kMostColumns = 4096;
// Sparse matrices and operators of fewer entries are made dense rather than left to LSQR.
constexpr double kDenseEntries = 1 << 26;
// A sketch has at most this part of the rows.
constexpr int64_t kLeastReduction = 4;

// Costs in units of a flop of a triangle: what an entry costs in the sketch, and in each of the iterations, which are
// bound by the memory, and where A is sparse by its latency.
constexpr double kSketch = 65, kDensePass = 10, kSparsePass = 60;

// Of a sketch with `ratio` times as many rows as columns and its triangle, and of the iterations, of which one gains a
// factor of the root of that.
double cost_of_sketching(const Size& size, double ratio) {
  constexpr double kDigits = 10;
  const double n = static_cast<double>(size.columns), pass = size.dense ? kDensePass : kSparsePass;
  return 2 * ratio * n * n * n + size.entries * (kSketch + 2 * kDigits / std::log10(ratio) * pass);
}

// Rows of the sketch in columns. Beyond 16 the sketch itself leaves the cache.
int64_t best_ratio(const Size& size) {
  int64_t best = 4;
  for (const int64_t ratio : {6, 8, 12, 16})
    if (kLeastReduction * ratio * size.columns <= size.rows &&
        cost_of_sketching(size, static_cast<double>(ratio)) < cost_of_sketching(size, static_cast<double>(best)))
      best = ratio;
  return best;
}

int64_t sketch_rows(const Size& size, LstsqMethod method) {
  const int64_t least = std::min<int64_t>(64, size.rows);
  return method == LstsqMethod::lsqr ? least : std::clamp(best_ratio(size) * size.columns, least, size.rows);
}

LstsqMethod automatic(const Size& size) {
  if (size.blocks && !size.wide) return LstsqMethod::direct;  // two reads, whatever the condition number
  const double m = static_cast<double>(size.rows), n = static_cast<double>(size.columns);
  const int64_t ratio = best_ratio(size);
  const bool can_sketch = size.columns <= kMostColumns && kLeastReduction * ratio * size.columns <= size.rows;
  // Where a triangle costs little more it is to be preferred: it needs no luck.
  constexpr double kWorthIt = 0.7;
  const bool cheaper = cost_of_sketching(size, static_cast<double>(ratio)) < kWorthIt * 2 * m * n * n;
  if (can_sketch && (cheaper || (!size.dense && m * n > kDenseEntries))) return LstsqMethod::refined;
  return size.dense || m * n <= kDenseEntries ? LstsqMethod::direct : LstsqMethod::lsqr;
}

// ---- the tall matrix ----

// T with damp·I below it.
class DampedOperator final : public LinearOperator {
 public:
  DampedOperator(Operator T, double damp)
      : LinearOperator(T->rows() + T->columns(), T->columns(), T->options(), *T, /*counts=*/false),
        T_(std::move(T)),
        damp_(damp) {}
  bool reads_once() const override { return T_->reads_once(); }

 protected:
  at::Tensor do_matmat(const at::Tensor& X) const override { return at::cat({T_->matmat(X), damp_ * X}); }
  at::Tensor do_rmatmat(const at::Tensor& Y) const override { return T_->rmatmat(top(Y)) + damp_ * bottom(Y); }
  Residual do_residual_product(const at::Tensor& B, const at::Tensor& X) const override {
    const auto [residual, co] = T_->residual_product(top(B), X);
    const auto rest = bottom(B) - damp_ * X;
    return {at::cat({residual, rest}), co + damp_ * rest};
  }
  NormalProduct do_normal_matmat(const at::Tensor& X, const NormalColumns& columns) const override {
    const auto [image, co] = T_->normal_matmat(X, columns);
    const auto rest = damp_ * X;
    return {at::cat({image, rest.narrow(1, columns.image_from, X.size(1) - columns.image_from)}),
            co + damp_ * rest.narrow(1, 0, columns.co_columns)};
  }

 private:
  at::Tensor top(const at::Tensor& Y) const { return Y.narrow(0, 0, T_->rows()); }
  at::Tensor bottom(const at::Tensor& Y) const { return Y.narrow(0, T_->rows(), columns()); }

  Operator T_;
  double damp_;
};

at::Tensor with_damping(const at::Tensor& C, double damp) {
  return damp > 0 ? at::cat({C, damp * at::eye(C.size(1), C.options())}) : C;
}
at::Tensor with_zeros(const at::Tensor& B, int64_t rows) {
  return rows > 0 ? at::cat({B, at::zeros({rows, B.size(1)}, B.options())}) : B;
}

// ---- approximate solutions that can be corrected ----

at::Tensor lengths(const at::Tensor& X) {
  return at::linalg_vector_norm(X, 2, at::IntArrayRef{0}, /*keepdim=*/false, double_type(X)).cpu();
}
at::Tensor or_one(const at::Tensor& norms) { return at::where(norms > 0, norms, at::ones_like(norms)); }

class Solution {
 public:
  virtual ~Solution() = default;
  // B minus what x gives, in the coordinates in which it is to vanish, r x k.
  virtual at::Tensor defect() = 0;
  virtual void correct(const at::Tensor& dz) = 0;  // for a change of the defect by -QᴴQ dz, whitened
  // Relative to the norms of what was given, if this were the defect.
  virtual at::Tensor backward_error(const at::Tensor& defect) const = 0;
  const at::Tensor& x() const { return x_; }
  const at::Tensor& residual() const { return residual_; }  // of the x of the last defect
  void go_back(const at::Tensor& x, const at::Tensor& residual) {
    x_ = x;
    residual_ = residual;
  }

 protected:
  explicit Solution(at::Tensor x) : x_(std::move(x)) {}
  at::Tensor x_, residual_;
};

// T x ≈ B. The backward error is the sketched estimate of Karlson and Waldén: x is the exact solution for a matrix and
// a right-hand side that differ from T and B by that much of their norms, up to a small constant.
class LeastSquares final : public Solution {
 public:
  LeastSquares(const LinearOperator& T, const Preconditioner& P, at::Tensor B, at::Tensor x)
      : Solution(std::move(x)), T_(T), P_(P), B_(std::move(B)), size_(or_one(lengths(B_))) {}

  at::Tensor defect() override {
    auto [residual, co] = T_.residual_product(B_, x_);
    residual_ = residual;
    rest_ = lengths(residual);
    return P_.lift_adjoint(co);
  }
  void correct(const at::Tensor& dz) override { x_ = x_ + P_.apply(dz); }
  at::Tensor backward_error(const at::Tensor& defect) const override {
    // With theta the ratio of the norms of T and B, perturbations of both count alike.
    const auto theta = P_.norm() / size_;
    const auto growth = at::hypot(at::ones_like(theta), theta * lengths(P_.coordinates(x_)));
    if (!P_.has_triangle()) {
      // The perturbations -r rᴴT/‖r‖² and r of T and B.
      return at::minimum(lengths(defect) / or_one(rest_) / P_.norm(), rest_ / size_);
    }
    return P_.shifted_norms(defect, theta * rest_ / growth) / (size_ * growth);
  }

 private:
  const LinearOperator& T_;
  const Preconditioner& P_;
  at::Tensor B_, size_, rest_;
};

// The shortest x with Tᴴ x = B, or with the least residual, in the space of the columns of T.
class MinimumNorm final : public Solution {
 public:
  MinimumNorm(const LinearOperator& T, const Preconditioner& P, at::Tensor B, at::Tensor x)
      : Solution(std::move(x)), T_(T), P_(P), B_(std::move(B)), size_(or_one(lengths(P_.lift_adjoint(B_)))) {}

  at::Tensor defect() override {
    residual_ = B_ - T_.rmatmat(x_);
    return P_.lift_adjoint(residual_);
  }
  void correct(const at::Tensor& dz) override { shift(T_.matmat(P_.apply(dz))); }
  void shift(const at::Tensor& dx) { x_ = x_ + dx; }
  at::Tensor backward_error(const at::Tensor& defect) const override {
    return lengths(defect) / (P_.norm() * lengths(x_) + size_);
  }

 private:
  const LinearOperator& T_;
  const Preconditioner& P_;
  at::Tensor B_, size_;
};

// ---- iterations ----

struct Limits {
  double tol;
  int64_t max_iters;
};
struct Progress {
  at::Tensor backward_error;
  int64_t iterations = 0;
};

double worst(const at::Tensor& errors) { return errors.numel() > 0 ? errors.max().item<double>() : 0.0; }

// Watches a solution get better until it is good enough, or has not come to half of its least error for some time.
// Errors may rise: an x of great length has a small backward error, which the first correction shortens; later they
// are made of rounding. The best x is the result.
class Watch {
 public:
  Watch(Solution& solution, double tol, int64_t patience) : solution_(solution), tol_(tol), patience_(patience) {}

  // Whether to end, with `errors` of the solution as it is.
  bool ends(const at::Tensor& errors) {
    const double error = worst(errors);
    since_ = error < worst_of_best() / 2 ? 0 : since_ + 1;
    if (error < worst_of_best()) best_ = {errors, solution_.x(), solution_.residual()};
    return error <= tol_ || since_ > patience_;
  }
  // The errors of the best x, which the solution goes back to.
  at::Tensor best() {
    solution_.go_back(best_.x, best_.residual);
    return best_.errors;
  }

 private:
  struct Best {
    at::Tensor errors, x, residual;
  };
  double worst_of_best() const {
    return best_.errors.defined() ? worst(best_.errors) : std::numeric_limits<double>::infinity();
  }

  Solution& solution_;
  double tol_;
  int64_t patience_, since_ = 0;
  Best best_;
};

// Solves for the correction of a whitened defect until `enough`, makes it, and returns the iterations.
using Correction = std::function<int64_t(const at::Tensor& whitened, int64_t most, const Enough& enough)>;

// Corrections, each from a defect that is computed anew: the first makes x as accurate as its condition allows, the
// next ones make it backward stable.
Progress refine(Solution& solution, const Preconditioner& P, double roundoff, const Limits& limits,
                const Correction& correction) {
  // What one correction can gain: its products are rounded in coordinates that the condition number magnifies.
  const double gain = P.has_triangle() ? std::clamp(16 * roundoff * P.condition(), std::sqrt(roundoff), 0x1p-4) : 0.0;
  Watch watch(solution, limits.tol, /*patience=*/3);
  int64_t iterations = 0;
  for (;;) {
    const auto defect = solution.defect();
    const auto errors = solution.backward_error(defect);
    if (watch.ends(errors) || iterations >= limits.max_iters) return {watch.best(), iterations};
    const auto whitened = P.whiten(defect);
    const double first = worst(lengths(whitened));
    iterations += correction(whitened, limits.max_iters - iterations, [&](const at::Tensor& residual) {
      return worst(lengths(residual)) <= gain * first ||
             worst(solution.backward_error(P.unwhiten_defect(residual))) <= limits.tol / 4;
    });
  }
}

// Iterative sketching with damping and momentum, the best for eigenvalues of QᴴQ between (1 ± eta)^-2.
Progress iterate(Solution& solution, const Preconditioner& P, int64_t sketch_rows, const Limits& limits) {
  const double eta_squared = static_cast<double>(P.rank()) / static_cast<double>(sketch_rows);
  const double damping = (1 - eta_squared) * (1 - eta_squared);
  at::Tensor previous;
  // Momentum makes errors rise now and then, but not for this long.
  Watch watch(solution, limits.tol, /*patience=*/20);
  for (int64_t iteration = 0;; ++iteration) {
    const auto defect = solution.defect();
    const auto errors = solution.backward_error(defect);
    if (watch.ends(errors) || iteration >= limits.max_iters) return {watch.best(), iteration};
    auto step = damping * P.whiten(defect);
    if (previous.defined()) step += eta_squared * previous;
    solution.correct(step);
    previous = step;
  }
}

// ---- the whole ----

// What is solved: T has at least as many rows as columns, and damp·I below it.
struct Problem {
  Operator T;
  at::Tensor B;  // with zeros below it, where T is not the adjoint of what was given
  bool wide;
};

Problem posed(const Operator& A, const at::Tensor& B, double damp) {
  const bool wide = A->rows() < A->columns();
  const auto tall = wide ? adjoint(A) : A;
  if (damp == 0) return {tall, B, wide};
  return {std::make_shared<DampedOperator>(tall, damp), wide ? B : with_zeros(B, tall->columns()), wide};
}

struct Sketched {
  at::Tensor C, image;
  int64_t rows;  // 0: nothing was lost
};

// The tall one of A and Aᴴ, and B where A is the tall one, by fewer rows.
Sketched sketched(const Operator& tall, const at::Tensor& B, bool wide, const LstsqOptions& options, LstsqMethod method,
                  int64_t rows) {
  const auto image = wide ? B.new_empty({tall->rows(), 0}) : B;
  const int64_t n = tall->columns();
  if (method == LstsqMethod::direct || rows >= tall->rows()) {
    const auto triangle = tall->triangle(image);
    return {with_damping(triangle.narrow(1, 0, n), options.damp),
            with_zeros(triangle.narrow(1, n, image.size(1)), options.damp > 0 ? n : 0), 0};
  }
  const SketchOperator S{options.sketch, rows, tall->rows(), options.seed, std::min(options.nonzeros, rows)};
  S.check(kCaller);
  return {with_damping(tall->sketched(S), options.damp), with_zeros(S.apply(image), options.damp > 0 ? n : 0), rows};
}

Progress solve(Solution& solution, const Problem& problem, const Preconditioner& P, LstsqMethod method,
               int64_t sketch_rows, const Limits& limits) {
  const auto Q = preconditioned(problem.T, P);
  const double roundoff = unit_roundoff(problem.B);
  switch (method) {
    case LstsqMethod::sketch_and_solve:
      return {solution.backward_error(solution.defect()), 0};
    case LstsqMethod::iterative:
      if (sketch_rows > 0) return iterate(solution, P, sketch_rows, limits);
      break;
    case LstsqMethod::precondition:
    case LstsqMethod::lsqr:
      return refine(solution, P, roundoff, limits, [&](const at::Tensor& whitened, int64_t most, const Enough& enough) {
        if (problem.wide) {
          const auto run = lsqr(*adjoint(Q), whitened, /*consistent=*/true, most, enough);
          static_cast<MinimumNorm&>(solution).shift(run.solution);
          return run.iterations;
        }
        const auto run = lsqr(*Q, solution.residual(), /*consistent=*/false, most, enough);
        solution.correct(run.solution);
        return run.iterations;
      });
    default:
      break;
  }
  return refine(solution, P, roundoff, limits, [&](const at::Tensor& whitened, int64_t most, const Enough& enough) {
    const auto run = conjugate_gradients(*Q, whitened, most, enough);
    solution.correct(run.solution);
    return run.iterations;
  });
}

// B with columns of magnitudes near 1, powers of two apart from those of the caller.
struct ScaledColumns {
  at::Tensor B, exponents;

  explicit ScaledColumns(const at::Tensor& given) {
    const auto largest = given.abs().amax(0, /*keepdim=*/true);
    const auto [mantissa, exponent] = at::frexp(largest);
    exponents = exponent;
    B = scaled(given, -exponents);
  }
  at::Tensor back(const at::Tensor& X) const { return scaled(X, exponents); }

 private:
  // In two steps: a power of two may lie outside the range of the type.
  static at::Tensor scaled(const at::Tensor& X, const at::Tensor& exponents) {
    const auto half = exponents.div(2, "trunc"),
               ones = at::ones_like(half, X.options().dtype(c10::toRealValueType(X.scalar_type())));
    return X * at::ldexp(ones, half) * at::ldexp(ones, exponents - half);
  }
};

Lstsq lstsq_by(LstsqMethod method, const Operator& A, const at::Tensor& B, const LstsqOptions& options,
               const Limits& limits) {
  const auto size = size_of(*A);
  const auto problem = posed(A, B, options.damp);
  const int64_t rows = options.sketch_rows.value_or(sketch_rows(size, method));
  auto sketch = sketched(problem.wide ? adjoint(A) : A, B, problem.wide, options, method, rows);
  if (!std::isfinite(largest_magnitude(sketch.C))) {
    A->check_finite(kCaller);
    TORCH_CHECK_VALUE(false, kCaller, ": A must be finite, and so small that sums of its rows are");
  }
  auto P = method == LstsqMethod::lsqr ? Preconditioner::by_columns(sketch.C) : Preconditioner(sketch.C, sketch.image);
  auto x = at::zeros({A->columns() + (problem.wide && options.damp > 0 ? A->rows() : 0), B.size(1)}, B.options());
  Lstsq result;
  result.rank = P.rank();
  result.condition = P.condition();
  result.sketch_rows = sketch.rows;
  result.method = method;
  if (P.rank() > 0 && P.has_triangle() && !problem.wide) x = P.apply(P.sketched_solution());
  std::unique_ptr<Solution> solution;
  if (problem.wide) {
    solution = std::make_unique<MinimumNorm>(*problem.T, P, problem.B, x);
    if (P.rank() > 0 && P.has_triangle()) solution->correct(P.apply_adjoint(problem.B));
  } else {
    solution = std::make_unique<LeastSquares>(*problem.T, P, problem.B, x);
  }
  Progress progress;
  if (P.rank() > 0) {
    progress = solve(*solution, problem, P, method, sketch.rows, limits);
  } else {
    solution->defect();
    progress.backward_error = at::zeros({B.size(1)}, at::kDouble);
  }
  result.iterations = progress.iterations;
  result.backward_error = progress.backward_error;
  result.converged = worst(result.backward_error) <= limits.tol;
  result.x = solution->x().narrow(0, 0, A->columns());
  // With damping the residual of a wide problem has a part of the lower block's.
  result.residual =
      problem.wide && options.damp > 0 ? B - A->matmat(result.x) : solution->residual().narrow(0, 0, A->rows());
  return result;
}

Lstsq nothing_to_solve(const LinearOperator& A, const at::Tensor& B) {
  Lstsq result;
  result.x = at::zeros({A.columns(), B.size(1)}, B.options());
  result.residual = B.clone();
  result.backward_error = at::zeros({B.size(1)}, at::kDouble);
  return result;
}

}  // namespace

LstsqMethod parse_lstsq_method(std::string_view name) {
  if (name == "auto") return LstsqMethod::automatic;
  if (name == "sketch_and_solve") return LstsqMethod::sketch_and_solve;
  if (name == "precondition") return LstsqMethod::precondition;
  if (name == "iterative") return LstsqMethod::iterative;
  if (name == "refined") return LstsqMethod::refined;
  if (name == "direct") return LstsqMethod::direct;
  if (name == "lsqr") return LstsqMethod::lsqr;
  TORCH_CHECK_VALUE(false, kCaller,
                    ": method must be 'auto', 'sketch_and_solve', 'precondition', 'iterative', 'refined', 'direct' or "
                    "'lsqr', got '",
                    name, "'");
}

Lstsq lstsq(const Operator& A, const at::Tensor& B, const LstsqOptions& options) {
  check_operator(*A, kCaller);
  check_matrix(B, kCaller, "b");
  check_finite(B, kCaller, "b");
  const auto size = size_of(*A);
  TORCH_CHECK_VALUE(B.size(0) == A->rows(), kCaller, ": b must have the ", A->rows(), " rows of A, got shape ",
                    B.sizes());
  TORCH_CHECK_VALUE(!options.sketch_rows || (*options.sketch_rows >= size.columns && *options.sketch_rows <= size.rows),
                    kCaller, ": the sketch must have between ", size.columns, " and ", size.rows,
                    " rows for A of shape (", A->rows(), ", ", A->columns(), "), got ",
                    options.sketch_rows.value_or(0));
  const int64_t passes = A->passes();
  const auto method = options.method == LstsqMethod::automatic ? automatic(size) : options.method;
  // A solution by QR is within a small multiple of the first; what LSQR can show of its own are upper bounds.
  const double roundoff = unit_roundoff(B);
  const double tol = options.tol.value_or(method == LstsqMethod::lsqr ? std::pow(roundoff, 2.0 / 3) : 8 * roundoff);
  const int64_t usual = method == LstsqMethod::lsqr ? std::max<int64_t>(1000, 4 * size.columns) : 200;
  const Limits limits{tol, options.max_iters.value_or(usual)};
  if (size.columns == 0 || B.size(1) == 0) return nothing_to_solve(*A, B);
  const ScaledColumns scaled(B);
  auto result = lstsq_by(method, A, scaled.B, options, limits);
  const bool can_factor = size.dense || static_cast<double>(size.rows) * size.columns <= kDenseEntries;
  if (options.method == LstsqMethod::automatic && !result.converged && method != LstsqMethod::direct && can_factor) {
    auto direct = lstsq_by(LstsqMethod::direct, A, scaled.B, options, limits);
    if (worst(direct.backward_error) < worst(result.backward_error)) {
      direct.iterations += result.iterations;
      result = std::move(direct);
      result.recovered = true;
    }
  }
  result.x = scaled.back(result.x);
  result.residual = scaled.back(result.residual);
  result.passes = A->passes() - passes;
  return result;
}

}  // namespace fastlr
