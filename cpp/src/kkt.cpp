#include <fastlr/kkt.hpp>

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <tuple>

#include <fastlr/orthonormalize.hpp>
#include <fastlr/random.hpp>

#include "checks.hpp"
#include "hermitian_checks.hpp"

namespace fastlr {
namespace {

constexpr const char* kCaller = "solve_kkt";

// Columns of a sketch: what a product takes in little more time than one. Up to kOneSketch unknowns, all of them.
constexpr int64_t kWidth = 4;
constexpr int64_t kOneSketch = 64;
// Flops of an LU factorization in the time of one of a product with so few columns, as measured.
constexpr double kRate = 4;
// Above this order no dense matrix is made (2 GB in float64).
constexpr int64_t kMostDense = 16384;
// Entries of an orthonormal basis: of the constraints, which are not eliminated above, and of what the sketches know,
// which is begun anew (1 GB in float64).
constexpr int64_t kMostBasis = int64_t{1} << 27;
// Rows whose norms differ by more than kUneven, as seen from kProbes products, are equilibrated, to kEven as seen from
// kSweepProbes, or in kSweeps. From 16 products norms are known to a factor of 2 or so, from 64 to 1.4; powers of two
// have a factor of 2 of their own.
constexpr int64_t kProbes = 16;
constexpr double kUneven = 64;
constexpr int64_t kSweepProbes = 64;
constexpr double kEven = 8;
constexpr int64_t kSweeps = 10;
constexpr int64_t kRefinements = 10;

void check_product(const at::Tensor& product, const LinearOperator& of, const char* name) {
  if (std::isfinite(largest_magnitude(product))) return;
  check_finite(of.to_dense(), kCaller, name);
  TORCH_CHECK_VALUE(false, kCaller, ": the products of ", name, " must be finite, but they overflow");
}

void check_vector(const at::Tensor& b, int64_t size, const LinearOperator& like, const char* name, const char* rows) {
  TORCH_CHECK_VALUE(b.dim() == 1 && b.size(0) == size, kCaller, ": ", name, " must be a vector of ", size,
                    " entries, one for each row of ", rows, ", got shape ", b.sizes());
  TORCH_CHECK_TYPE(b.scalar_type() == like.options().dtype().toScalarType(), kCaller, ": ", name,
                   " must have the dtype of H, ", like.options().dtype(), ", got ", b.scalar_type());
  TORCH_CHECK_VALUE(b.device() == like.options().device(), kCaller, ": ", name, " must be on the device of H, ",
                    like.options().device(), ", got ", b.device());
  check_finite(b, kCaller, name);
}

void check_system(const LinearOperator& H, const LinearOperator& A) {
  check_operator(H, kCaller);
  TORCH_CHECK_TYPE(!c10::isComplexType(H.options().dtype().toScalarType()), kCaller, ": H must be real, got ",
                   H.options().dtype());
  TORCH_CHECK_VALUE(H.rows() == H.columns(), kCaller, ": H must be square, got shape (", H.rows(), ", ", H.columns(),
                    ")");
  TORCH_CHECK_VALUE(A.columns() == H.rows(), kCaller, ": A must have as many columns as H, ", H.rows(), ", got shape (",
                    A.rows(), ", ", A.columns(), ")");
  TORCH_CHECK_VALUE(A.rows() <= A.columns(), kCaller,
                    ": A must have at most as many rows as columns, or the system is singular, got shape (", A.rows(),
                    ", ", A.columns(), ")");
  TORCH_CHECK_TYPE(A.options().dtype() == H.options().dtype(), kCaller, ": A must have the dtype of H, ",
                   H.options().dtype(), ", got ", A.options().dtype());
  TORCH_CHECK_VALUE(A.options().device() == H.options().device(), kCaller, ": A must be on the device of H, ",
                    H.options().device(), ", got ", A.options().device());
}

// M = D K D, K = [[H, Aᵀ], [A, 0]], with a diagonal D of powers of two: no entry is rounded by it.
class Equilibrated {
 public:
  Equilibrated(const Operator& H, const Operator& A, int64_t seed)
      : H_(H), A_(A), n_(H->rows()), m_(A->rows()), diagonal_(at::ones({n_ + m_, 1}, H->options())) {
    if (even(row_norms(first_product(gaussian(order(), kProbes, seed, 0, options()))), kUneven)) return;
    const auto probes = gaussian(order(), kSweepProbes, seed, kProbes, options());
    for (int64_t sweep = 0; sweep < kSweeps; ++sweep) {
      const auto norms = row_norms(times(probes));
      if (even(norms, kEven)) return;
      const auto factor = at::where(norms > 0, norms.rsqrt(), 1.0).log2().round().exp2();
      diagonal_ = diagonal_ * factor.to(diagonal_.scalar_type());
    }
  }

  int64_t unknowns() const { return n_; }
  int64_t constraints() const { return m_; }
  int64_t order() const { return n_ + m_; }
  int64_t products() const { return products_; }  // of H with vectors
  const at::Tensor& diagonal() const { return diagonal_; }
  at::TensorOptions options() const { return H_->options(); }

  // The parts of a vector of M that belong to H and to A.
  at::Tensor upper(const at::Tensor& X) const { return X.narrow(0, 0, n_); }
  at::Tensor lower(const at::Tensor& X) const { return X.narrow(0, n_, m_); }

  at::Tensor hessian_times(const at::Tensor& X) {
    products_ += X.size(1);
    return upper(diagonal_) * H_->matmat(upper(diagonal_) * X);
  }
  at::Tensor constraints_times(const at::Tensor& X) const {
    return lower(diagonal_) * A_->matmat(upper(diagonal_) * X);
  }
  at::Tensor multipliers_times(const at::Tensor& Y) const {
    return upper(diagonal_) * A_->rmatmat(lower(diagonal_) * Y);
  }
  at::Tensor times(const at::Tensor& X) {
    return at::cat({hessian_times(upper(X)) + multipliers_times(lower(X)), constraints_times(upper(X))});
  }

  at::Tensor dense_constraints() const { return lower(diagonal_) * A_->to_dense() * upper(diagonal_).mT(); }
  at::Tensor to_dense() const {
    const auto H = upper(diagonal_) * H_->to_dense() * upper(diagonal_).mT(), A = dense_constraints();
    return at::cat({at::cat({H, A.mT()}, 1), at::cat({A, at::zeros({m_, m_}, options())}, 1)});
  }

 private:
  at::Tensor first_product(const at::Tensor& X) {
    const auto HX = H_->matmat(upper(X)), AX = A_->matmat(upper(X)), co = A_->rmatmat(lower(X));
    check_product(HX, *H_, "H");
    check_product(AX, *A_, "A");
    check_product(co, *A_, "A");
    check_hermitian(HX, upper(X), kCaller, "H");
    products_ += X.size(1);
    return at::cat({HX + co, AX});
  }

  // From the products with Gaussian vectors.
  static at::Tensor row_norms(const at::Tensor& image) {
    const auto largest = image.abs().amax(1, /*keepdim=*/true).to(at::kDouble);
    const auto unit = image.to(at::kDouble) / at::where(largest > 0, largest, 1.0);  // whose squares stay in range
    return largest * at::linalg_vector_norm(unit, 2, 1, /*keepdim=*/true) / std::sqrt(1.0 * image.size(1));
  }

  // Whether those that are not zero differ by a factor of `most` at most, and squares of them are in range.
  bool even(const at::Tensor& norms, double most) const {
    const auto seen = norms.masked_select(norms > 0);
    if (seen.numel() == 0) return true;
    const double largest = seen.max().item<double>();
    return largest <= most * seen.min().item<double>() && squares_in_range(diagonal_, largest);
  }

  Operator H_, A_;
  int64_t n_, m_, products_ = 0;
  at::Tensor diagonal_;
};

// Aᵀ = Q R, of the equilibrated A.
struct Constraints {
  at::Tensor Q, R;

  at::Tensor project(const at::Tensor& X) const { return X - at::mm(Q, at::mm(Q.mT(), X)); }
  // x of least norm with A x = c.
  at::Tensor particular(const at::Tensor& c) const {
    return at::mm(Q, at::linalg_solve_triangular(R.mT(), c, /*upper=*/false));
  }
  // λ for which ‖q - Aᵀ λ‖ is least.
  at::Tensor multipliers(const at::Tensor& q) const {
    return at::linalg_solve_triangular(R, at::mm(Q.mT(), q), /*upper=*/true);
  }
};

// What sketches S say of an error: M S = Q R with orthonormal Q, so that the residual has the part Q t in the span of
// their images, and S R⁻¹ t is what to add to z for it to vanish.
class Known {
 public:
  Known(int64_t rows, int64_t most, const at::TensorOptions& options)
      : Q_(at::empty({most, rows}, options).mT()),
        S_(at::empty({most, rows}, options).mT()),
        R_(at::empty({most, most}, options)),
        t_(at::empty({most, 1}, options)) {}

  struct Step {
    at::Tensor images, lengths;  // new columns of Q and entries of t
  };

  int64_t size() const { return size_; }
  int64_t room() const { return Q_.size(1) - size_; }

  // The part of W in the span of Q, and what is left of W.
  std::tuple<at::Tensor, at::Tensor> split(const at::Tensor& W) const {
    const auto Q = Q_.narrow(1, 0, size_);
    const auto along = at::mm(Q.mT(), W);
    return {along, W - at::mm(Q, along)};
  }

  // From the sketch S, with the images Q along + W, where W is orthogonal to Q: the singular vectors of W, in which no
  // value below `least` is trusted.
  Step add(const at::Tensor& S, const at::Tensor& along, const at::Tensor& W, double least, const at::Tensor& rho) {
    const auto [basis, triangle] = at::linalg_qr(W);
    const auto [left, sigma, right] = at::linalg_svd(triangle, /*full_matrices=*/false);
    const int64_t found = std::min((sigma > least).sum().item<int64_t>(), room());
    const auto turn = right.narrow(0, 0, found).mT();
    const auto images = at::mm(basis, left.narrow(1, 0, found)), lengths = at::mm(images.mT(), rho);
    Q_.narrow(1, size_, found).copy_(images);
    S_.narrow(1, size_, found).copy_(at::mm(S, turn));
    R_.narrow(0, 0, size_).narrow(1, size_, found).copy_(at::mm(along, turn));
    R_.narrow(0, size_, found).narrow(1, 0, size_).zero_();
    R_.narrow(0, size_, found).narrow(1, size_, found).copy_(at::diag(sigma.narrow(0, 0, found)));
    t_.narrow(0, size_, found).copy_(lengths);
    size_ += found;
    return {images, lengths};
  }

  at::Tensor correction() const {
    const auto R = R_.narrow(0, 0, size_).narrow(1, 0, size_);
    return at::mm(S_.narrow(1, 0, size_), at::linalg_solve_triangular(R, t_.narrow(0, 0, size_), /*upper=*/true));
  }

 private:
  at::Tensor Q_, S_, R_, t_;
  int64_t size_ = 0;
};

// What is done to solve M z = g, in the units of the equilibrated matrix.
class Solver {
 public:
  Solver(Equilibrated& M, const at::Tensor& b, const KktOptions& options)
      : M_(M),
        options_(options),
        z_(at::zeros_like(b)),
        g_(M.diagonal() * b),
        rho_(g_),
        size_(frobenius_norm(b)),
        equilibrated_size_(frobenius_norm(g_)) {
    if (M_.unknowns() * M_.constraints() <= kMostBasis) eliminate();
  }

  void solve() {
    const bool dense = M_.order() <= kMostDense;
    while (sketches_ < options_.most_sketches) {
      const double before = residual_;
      const bool stopped = round(dense);
      refresh();
      if (residual_ <= options_.tol) return;
      // Once more from the true residual, as long as that helps.
      if (!stopped && residual_ <= before / 2) continue;
      if (dense && sketches_ < options_.most_sketches) return factor();
      if (!stopped) return;
    }
  }

  at::Tensor solution() const { return M_.diagonal() * z_; }
  KktMethod method() const { return method_; }
  int64_t sketches() const { return sketches_; }
  double residual() const { return residual_; }

 private:
  // Of a residual of the equilibrated system, or of its upper part: in its own units and in those of K.
  double relative(const at::Tensor& rho) const {
    const auto original = rho / M_.diagonal().narrow(0, 0, rho.size(0));
    return std::max(frobenius_norm(rho) / equilibrated_size_, frobenius_norm(original) / size_);
  }
  bool too_large(const at::Tensor& rho) const { return !(relative(rho) <= options_.tol); }

  at::Tensor fresh(int64_t rows, int64_t columns) {
    const auto drawn = gaussian(rows, columns, options_.seed, drawn_, g_.options());
    drawn_ += columns;
    return drawn;
  }

  // Where A has full rank, M is reduced to P H P on the null space of A, P its projection.
  void eliminate() {
    const auto [Q, R] = at::linalg_qr(M_.dense_constraints().mT());
    const double n = static_cast<double>(M_.unknowns()), m = static_cast<double>(M_.constraints());
    work_ += 4 * n * m * m / kRate;
    const auto probes = fresh(M_.constraints(), kProbes);
    const double stretched = frobenius_norm(at::linalg_solve_triangular(R, probes, /*upper=*/true));
    if (stretched * frobenius_norm(R) * unit_roundoff(R) < 0.1) constraints_ = Constraints{Q, R};
  }

  // z and its residual, after z has changed: the multipliers follow from x.
  void refresh() {
    if (constraints_) {
      const auto x = M_.upper(z_), rest = M_.upper(g_) - M_.hessian_times(x);
      const auto multipliers = constraints_->multipliers(rest);
      z_ = at::cat({x, multipliers});
      rho_ = at::cat({rest - M_.multipliers_times(multipliers), M_.lower(g_) - M_.constraints_times(x)});
    } else {
      rho_ = g_ - M_.times(z_);
    }
    residual_ = relative(rho_);
  }

  // Adds what the sketches know of the error of z; true where they cost too much.
  bool round(bool limited) {
    if (!constraints_) return sketch(rho_, z_, limited);
    auto x = constraints_->particular(M_.lower(rho_));
    const auto image = M_.hessian_times(x);
    const bool stopped = sketch(constraints_->project(M_.upper(rho_) - image), x, limited);
    z_ = at::cat({M_.upper(z_) + x, M_.lower(z_)});
    return stopped;
  }

  at::Tensor projected(const at::Tensor& X) const { return constraints_ ? constraints_->project(X) : X; }
  at::Tensor image(const at::Tensor& X) { return constraints_ ? M_.hessian_times(X) : M_.times(X); }

  // Orthonormal: rho and random columns.
  at::Tensor first_sketch(const at::Tensor& rho, int64_t columns) {
    return orthonormalize(at::cat({rho / frobenius_norm(rho), projected(fresh(rho.size(0), columns - 1))}, 1));
  }

  // Adds to z what sketches know of its error, rho being its residual; true where they cost more than LU factors, or
  // more memory than there is.
  bool sketch(at::Tensor rho, at::Tensor& z, bool limited) {
    const int64_t N = rho.size(0), dimension = constraints_ ? N - M_.constraints() : N;
    if (dimension == 0 || !too_large(rho)) return false;
    const int64_t width = dimension <= kOneSketch ? dimension : kWidth;
    const double order = static_cast<double>(M_.order()), lu = 2.0 / 3.0 * order * order * order / kRate;
    // 4 N k² flops for k columns, of N of the order's half at least, are LU's for less than a third of the order.
    const int64_t room = limited ? M_.order() / 3 + 2 * width : std::max(16 * width, kMostBasis / N);
    Known known(N, std::min(dimension, room), g_.options());
    const double roundoff = 8 * std::sqrt(order) * unit_roundoff(g_);

    double largest = 0.0;
    bool stopped = false;
    auto S = first_sketch(rho, width);
    while (!stopped && sketches_ < options_.most_sketches) {
      ++sketches_;
      const auto MS = image(S);
      largest = std::max(largest, frobenius_norm(MS));
      const auto [first, rest] = known.split(projected(MS));
      const auto [second, W] = known.split(projected(rest));
      const auto [images, lengths] = known.add(S, first + second, W, roundoff * largest, rho);
      if (images.size(1) == 0) break;  // what this sketch says is known
      work_ += flops(S.size(1), known.size());
      rho = rho - at::mm(images, lengths);
      if (!too_large(rho) || known.size() == dimension) break;
      stopped = known.room() < width || (limited && work_ > lu);
      S = next_sketch(rho, images, lengths);
    }
    z = z + known.correction();
    return stopped;
  }

  // Orthonormal: the residual, and the last images. The last residual was in the last sketch, and the difference is a
  // combination of the images: the spaces lose nothing where the image that has most of it is left out.
  static at::Tensor next_sketch(const at::Tensor& rho, const at::Tensor& images, const at::Tensor& lengths) {
    const int64_t main = lengths.abs().argmax().item<int64_t>();
    return at::cat(
        {rho / frobenius_norm(rho), images.narrow(1, 0, main), images.narrow(1, main + 1, images.size(1) - main - 1)},
        1);
  }

  // Of a sketch of so many columns, with `used` of them kept.
  double flops(int64_t columns, int64_t used) const {
    const double n = static_cast<double>(M_.unknowns()), m = static_cast<double>(M_.constraints());
    const double entries = options_.entries ? static_cast<double>(*options_.entries) : n * n;
    return static_cast<double>(columns) * (2 * entries + 8 * n * m + 8 * n * static_cast<double>(used));
  }

  void factor() {
    constraints_.reset();
    const auto M = M_.to_dense();
    const auto [LU, pivots, info] = at::linalg_lu_factor_ex(M);
    const auto stretched = info.item<int>() == 0
                               ? frobenius_norm(at::linalg_lu_solve(LU, pivots, fresh(M_.order(), kProbes)))
                               : std::numeric_limits<double>::infinity();
    if (!(stretched * frobenius_norm(M) * unit_roundoff(M) < 0.1)) return decompose(M);
    method_ = KktMethod::lu;
    refine([&, &LU = LU, &pivots = pivots](const at::Tensor& rho) { return at::linalg_lu_solve(LU, pivots, rho); });
  }

  // M singular, or nearly so: the solution of least norm, in the equilibrated unknowns; LinAlgError where there is
  // none.
  void decompose(const at::Tensor& M) {
    method_ = KktMethod::eigenvalues;
    const auto [values, Q] = at::linalg_eigh(M);
    const double limit =
        10 * std::sqrt(static_cast<double>(M_.order())) * unit_roundoff(M) * values.abs().max().item<double>();
    const auto inverse = at::where(values.abs() > limit, 1 / values, 0.0).unsqueeze(1);
    z_ = at::zeros_like(z_);
    rho_ = g_;
    residual_ = 1.0;
    refine([&, &Q = Q](const at::Tensor& rho) { return at::mm(Q, inverse * at::mm(Q.mT(), rho)); });
    TORCH_CHECK_LINALG(residual_ <= std::max(options_.tol, std::sqrt(unit_roundoff(M))), kCaller,
                       ": the system has no solution: its matrix is singular, of rank ",
                       (inverse != 0).sum().item<int64_t>(), " with ", M_.order(),
                       " rows, and what comes nearest leaves a residual of ", residual_,
                       " of the norm of (f, c); A must have full rank, and H no null vector that A sends to zero");
  }

  // Corrections from the true residual as long as they help.
  template <typename Solve>
  void refine(const Solve& solve) {
    for (int64_t i = 0; i < kRefinements; ++i) {
      const auto z = z_, rho = rho_;
      const double before = residual_;
      z_ = z_ + solve(rho_);
      refresh();
      if (residual_ <= options_.tol) return;
      if (residual_ <= before / 2) continue;
      if (!(residual_ <= before)) std::tie(z_, rho_, residual_) = std::make_tuple(z, rho, before);
      return;
    }
  }

  Equilibrated& M_;
  KktOptions options_;
  at::Tensor z_, g_, rho_;
  double size_, equilibrated_size_;  // of the right-hand sides
  std::optional<Constraints> constraints_;
  KktMethod method_ = KktMethod::sketch_and_project;
  int64_t sketches_ = 0;
  int64_t drawn_ = kProbes + kSweepProbes;  // columns of the random matrix of the seed
  double work_ = 0.0;                       // flops
  double residual_ = 1.0;
};

}  // namespace

KktSolution solve_kkt(const Operator& H, const Operator& A, const at::Tensor& f, const at::Tensor& c,
                      const KktOptions& options) {
  check_system(*H, *A);
  check_vector(f, H->rows(), *H, "f", "H");
  check_vector(c, A->rows(), *H, "c", "A");
  TORCH_CHECK_VALUE(options.tol > 0, kCaller, ": tol must be positive, got ", options.tol);
  TORCH_CHECK_VALUE(options.most_sketches >= 1, kCaller, ": max_iters must be at least 1, got ", options.most_sketches);
  const auto right = at::cat({f, c}).unsqueeze(1);
  const double magnitude = largest_magnitude(right);
  Equilibrated M(H, A, options.seed);
  if (magnitude == 0.0)
    return {at::zeros_like(f), at::zeros_like(c), KktMethod::sketch_and_project, 0, M.products(), 0.0, true};

  const int exponent = scale_exponent(magnitude);
  Solver solver(M, scaled(right, exponent), options);
  solver.solve();
  const auto z = scaled(solver.solution(), -exponent).squeeze(1);
  return {z.narrow(0, 0, f.size(0)).clone(),
          z.narrow(0, f.size(0), c.size(0)).clone(),
          solver.method(),
          solver.sketches(),
          M.products(),
          solver.residual(),
          solver.residual() <= options.tol};
}

}  // namespace fastlr
