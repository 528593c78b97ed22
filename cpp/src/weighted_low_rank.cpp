#include <fastlr/weighted_low_rank.hpp>

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include <fastlr/error_estimate.hpp>
#include <fastlr/orthonormalize.hpp>
#include <fastlr/random.hpp>
#include <fastlr/randomized_svd.hpp>

#include "checks.hpp"
#include "svd_parts.hpp"

namespace fastlr {
namespace {

constexpr const char* kCaller = "weighted_low_rank";
constexpr double kEpsilon = std::numeric_limits<double>::epsilon();
// Asymmetry and negative eigenvalues up to this, relative to the norm, are rounding: weights are sums of products that
// are often taken in float32, whatever type they are kept in.
constexpr double kAllowance = 100 * std::numeric_limits<float>::epsilon() / 2;
// Of the probes that check and measure.
constexpr int64_t kSeed = 0x7765696768746564;

// ---- weights ----

// The weight of one side, times 2^exponent: its largest entry is in [1/2, 1).
struct Side {
  at::Tensor matrix;           // where it was given as one
  at::Tensor values, vectors;  // eigenvalues, zero where they cannot be told from zero; no vectors: it is diagonal
  int exponent = 0;
  double lost = 1.0;  // by what centring has magnified the rounding of its entries

  bool identity() const { return !matrix.defined() && !values.defined(); }
  bool rooted() const { return !matrix.defined() || values.defined(); }
  // Its square root is known as well as its entries are.
  bool sharp() const { return !matrix.defined() && !vectors.defined(); }
};

void check_semidefinite(bool holds, const char* name) {
  TORCH_CHECK_VALUE(holds, kCaller, ": ", name, " must be positive semidefinite, but it has a negative eigenvalue");
}

// The Frobenius norm of what is scaled to entries of at most 1.
double unit_norm(const at::Tensor& A) { return at::linalg_vector_norm(A).item<double>(); }

// What is Hermitian to rounding passes: ‖(G - Gᴴ) x‖ is estimated from random x, which takes two reads of G.
void check_hermitian(const at::Tensor& G, const char* name) {
  const auto probes = gaussian(G.size(0), kProbes, kSeed, 0, G.options());
  const double norm = unit_norm(G);
  if (frobenius_estimate(at::mm(G, probes) - at::mm(G.mH(), probes)) <= kAllowance * norm) return;
  TORCH_CHECK_VALUE(false, kCaller, ": ", name, " must be Hermitian, but differs from its adjoint by ",
                    unit_norm(G - G.mH()) / norm, " of its norm");
}

// Real non-negative numbers: of a diagonal exactly, of eigenvalues to rounding.
void check_values(const at::Tensor& values, bool diagonal, const char* name) {
  TORCH_CHECK_TYPE(!values.is_complex(), kCaller, ": ", name, " must be real where it is a vector, got ",
                   values.scalar_type());
  const double least = values.numel() > 0 ? values.min().item<double>() : 0.0;
  if (!diagonal) return check_semidefinite(least >= -kAllowance * largest_magnitude(values), name);
  if (least >= 0) return;
  const int64_t first = (values < 0).nonzero()[0].item<int64_t>();
  TORCH_CHECK_VALUE(false, kCaller, ": ", name, " must be non-negative, got ", values[first].item<double>(),
                    " at index (", first, ",)");
}

void check_shape(const at::Tensor& given, bool vector, int64_t n, const char* name, const char* of) {
  const bool fits =
      given.dim() == 1 ? vector && given.size(0) == n : given.dim() == 2 && given.size(0) == n && given.size(1) == n;
  TORCH_CHECK_VALUE(fits, kCaller, ": ", name, " must have shape (", n, ", ", n, ")", vector ? " or be a vector" : "",
                    " for the ", n, " ", of, " of W, got shape ", given.sizes());
}

void check_fits(const at::Tensor& given, const at::Tensor& W, const char* name) {
  TORCH_CHECK_TYPE(given.device() == W.device(), kCaller, ": ", name, " must be on the device of W, ", W.device(),
                   ", got ", given.device());
  TORCH_CHECK_TYPE(W.is_complex() || !given.is_complex(), kCaller, ": ", name, " must be real for a real W, got ",
                   given.scalar_type());
  check_finite(given, kCaller, name);
}

at::Tensor with_zeros_below_rounding(const at::Tensor& values, double lost) {
  const double level = lost * static_cast<double>(values.numel()) * kEpsilon * largest_magnitude(values);
  return at::where(values > level, values, 0.0);
}

Side opened(const SideWeight& weight, const at::Tensor& W, int64_t n, const char* name, const char* of) {
  Side side;
  if (!weight.matrix) return side;
  const auto& given = *weight.matrix;
  check_shape(given, /*vector=*/true, n, name, of);
  check_fits(given, W, name);
  side.exponent = scale_exponent(largest_magnitude(given));
  if (given.dim() == 2) {
    side.matrix = scaled(given.to(double_type(W)), side.exponent);
    check_hermitian(side.matrix, name);
    return side;
  }
  check_values(given, /*diagonal=*/!weight.vectors, name);
  side.values = scaled(given.to(at::kDouble), side.exponent);
  if (weight.vectors) {
    check_shape(*weight.vectors, /*vector=*/false, n, name, of);
    check_fits(*weight.vectors, W, name);
    side.vectors = weight.vectors->to(double_type(W));
    side.values = with_zeros_below_rounding(side.values, side.lost);
  }
  return side;
}

// G - mean meanᴴ.
void center(Side& side, const at::Tensor& mean) {
  const auto unit = scaled(mean, side.exponent >> 1);
  const auto centered = side.matrix - at::outer(unit, at::conj_physical(unit)) * (side.exponent & 1 ? 2.0 : 1.0);
  const double magnitude = largest_magnitude(centered);
  const int exponent = scale_exponent(magnitude);
  side.matrix = scaled(centered, exponent);
  side.exponent += exponent;
  side.lost = std::ldexp(1.0, std::max(0, exponent));
}

void decompose(Side& side, const char* name) {
  if (side.rooted()) return;
  const auto [values, vectors] = at::linalg_eigh((side.matrix + side.matrix.mH()) / 2);
  const double norm = unit_norm(values);
  check_semidefinite(values[0].item<double>() >= -kAllowance * side.lost * norm, name);
  side.values = with_zeros_below_rounding(values, side.lost);
  side.vectors = vectors;
}

// Without eigenvalues: what is positive semidefinite to rounding has a Cholesky factor once rounding is added to it. In
// float32 where that suffices.
void check_undecomposed(const Side& side, const char* name) {
  if (side.rooted()) return;
  const double added = kAllowance * side.lost * unit_norm(side.matrix) + std::numeric_limits<float>::min();
  const auto has_factor = [&](at::ScalarType type) {
    auto shifted = side.matrix.to(type, /*non_blocking=*/false, /*copy=*/true);
    shifted.diagonal().add_(added);
    // In place: LAPACK's layout is that of the transpose, which has a factor where the matrix has one.
    auto factor = shifted.mT();
    auto info = at::empty({}, shifted.options().dtype(at::kInt));
    at::linalg_cholesky_ex_out(factor, info, factor);
    return info.item<int>() == 0;
  };
  const auto lower = side.matrix.is_complex() ? at::kComplexFloat : at::kFloat;
  check_semidefinite(has_factor(lower) || has_factor(side.matrix.scalar_type()), name);
}

// ---- the problem ----

// W in double precision with no more rows than columns (that of the adjoint, with the weights exchanged, where it has
// more), and what the weights show of it. Q diag(l)^2 Qᴴ is the weight of the rows, G = R Rᴴ that of the columns.
struct Problem {
  at::Tensor W;
  Side left, right;
  bool single;         // the entries of W are known to the precision of float32
  at::Tensor turned;   // Qᴴ W
  at::Tensor reached;  // Qᴴ W R, where R is known
  at::Tensor gram;     // Qᴴ W G Wᴴ Q

  int64_t rows() const { return W.size(0); }
  // Singular values below the roundoff of a Gram matrix mean something.
  bool sharp() const { return !single && left.sharp() && right.sharp(); }
  at::Tensor loudness() const { return left.values.sqrt().unsqueeze(1); }  // l
};

at::Tensor turned(const Side& left, const at::Tensor& X) {
  return left.vectors.defined() ? at::mm(left.vectors.mH(), X) : X;
}

at::Tensor turned_back(const Side& left, const at::Tensor& X) {
  return left.vectors.defined() ? at::mm(left.vectors, X) : X;
}

at::Tensor times_root(const at::Tensor& X, const Side& right) {
  if (right.identity()) return X;
  return (right.vectors.defined() ? at::mm(X, right.vectors) : X) * right.values.sqrt();
}

// X diag(l), or diag(l) X for columns of Qᴴ W.
at::Tensor weighted_rows(const Problem& p, const at::Tensor& X) { return p.left.identity() ? X : p.loudness() * X; }

Problem posed(const at::Tensor& W, Side left, Side right, bool single) {
  Problem p{W, std::move(left), std::move(right), single, {}, {}, {}};
  p.turned = turned(p.left, W);
  if (p.right.rooted()) {
    p.reached = times_root(p.turned, p.right);
    p.gram = at::mm(p.reached, p.reached.mH());
  } else {
    p.gram = at::mm(at::mm(p.turned, p.right.matrix), p.turned.mH());
  }
  return p;
}

// ---- singular values ----

// Leading left singular vectors and values, descending; values up to `level` are rounding.
struct Directions {
  at::Tensor U, S;
  double level;

  int64_t loud() const { return (S > level).sum().item<int64_t>(); }
};

Directions of_eigenvalues(const at::Tensor& C, double rounding) {
  const auto [values, vectors] = at::linalg_eigh((C + C.mH()) / 2);
  const auto S = values.flip(0).clamp_min(0).sqrt();
  return {vectors.flip(1), S, std::sqrt(rounding) * S[0].item<double>()};
}

// Values above this fraction of the largest one have eight digits as roots of eigenvalues.
const double kResolved = std::pow(kEpsilon, 0.25);

// Of M with no more rows than columns; from C = M Mᴴ where that resolves the leading `wanted` values.
Directions left_directions(const at::Tensor& M, const at::Tensor& C, int64_t wanted, bool sharp, double rounding) {
  auto found = of_eigenvalues(C, rounding);
  if (!sharp || found.S[wanted - 1].item<double>() > kResolved * found.S[0].item<double>()) return found;
  const auto [U, S, Vh] = at::linalg_svd(M, /*full_matrices=*/false);
  return {U, S, static_cast<double>(M.size(1)) * kEpsilon * S[0].item<double>()};
}

// By plain size: for what the weights do not see.
Directions plain_directions(const Problem& p, const at::Tensor& M, int64_t wanted) {
  const double rounding = static_cast<double>(M.size(1)) * kEpsilon;
  return left_directions(M, at::mm(M, M.mH()), wanted, !p.single, rounding);
}

// Below these a sketch would save nothing.
constexpr int64_t kLeastRows = 512, kLeastRatio = 8;

// Leading eigenvectors of C from a random sketch; nothing where they are not shown to be as good as the exact ones. By
// the theorem of Kato and Temple an eigenvalue exceeds its Ritz value t by at most min(e, e^2 / (t - next)), e the
// norm of the residual and `next` an upper bound of the eigenvalues left out, for which the last Ritz value stands.
std::optional<Directions> sketched_directions(const at::Tensor& C, int64_t rank, double rounding) {
  constexpr double most_excess = 0.02;  // of the squared error: 1 % of the error
  const int64_t width = rank + rank / 8 + 10;
  const auto svd = randomized_svd(
      as_operator(C), {.rank = width, .power_iters = 2, .method = SvdMethod::subspace, .precision = Precision::full});
  const auto image = at::mm(C, svd.U);
  const auto [values, vectors] = at::linalg_eigh(at::mm(svd.U.mH(), image));
  const auto ritz = values.flip(0), rotation = vectors.flip(1).narrow(1, 0, rank);
  const auto kept = ritz.narrow(0, 0, rank), U = at::mm(svd.U, rotation);
  const auto residual = at::linalg_vector_norm(at::mm(image, rotation) - U * kept, 2, at::IntArrayRef(0));
  const auto quadratic = residual.square() / (kept - ritz[width - 1]).clamp_min(0);
  const double missed = at::minimum(residual, quadratic).sum().item<double>();
  const double total = C.diagonal().sum().abs().item<double>(), tail = total - kept.sum().item<double>();
  const bool resolved = tail > rounding * total && kept[rank - 1].item<double>() > rounding * kept[0].item<double>();
  if (!resolved || !(missed <= most_excess * (tail - missed))) return std::nullopt;
  const auto S = kept.sqrt();
  return Directions{U, S, std::sqrt(rounding) * S[0].item<double>()};
}

struct Leading {
  Directions found;
  bool sketched;
  double total;  // the sum of all squared singular values
};

// Of diag(l) Qᴴ W R, all of them or at least options.rank.
Leading leading(const Problem& p, const WeightedLowRankOptions& options, double rounding) {
  const auto C = p.left.identity() ? p.gram : p.loudness() * p.gram * p.loudness().t();
  const double total = std::max(0.0, at::real(C.diagonal()).sum().item<double>());
  const int64_t rank = options.rank.value_or(p.rows());
  if (options.rank && !options.tol && p.rows() >= kLeastRows && rank * kLeastRatio <= p.rows())
    if (auto found = sketched_directions(C, rank, p.sharp() ? std::sqrt(kEpsilon) : rounding))
      return {*std::move(found), true, total};
  const auto M = p.sharp() ? weighted_rows(p, p.reached) : at::Tensor();
  return {left_directions(M, C, rank, p.sharp(), rounding), false, total};
}

// ---- factors: W' = X Zᴴ ----

struct Product {
  at::Tensor X, Z;
};

// W' = X Xᴴ W: where the rows have no weight. What the columns' weight does not see follows by plain size.
Product projected_rows(const Problem& p, const Directions& found, int64_t rank) {
  const int64_t loud = std::min(rank, found.loud());
  auto X = found.U.narrow(1, 0, loud);
  if (rank > loud) {
    const auto quiet = found.U.narrow(1, loud, p.rows() - loud);
    const auto order = plain_directions(p, at::mm(quiet.mH(), p.W), rank - loud);
    X = at::cat({X, at::mm(quiet, order.U.narrow(1, 0, rank - loud))}, 1);
  }
  X = polish(X);
  return {X, at::mm(p.W.mH(), X)};
}

// W' = W V Vᴴ: where the columns have no weight.
Product projected_columns(const Problem& p, const Directions& found, int64_t rank) {
  const int64_t loud = std::min(rank, found.loud());
  const auto seen = weighted_rows(p, found.U.narrow(1, 0, loud) / found.S.narrow(0, 0, loud));
  auto V = polish(at::mm(p.turned.mH(), seen));
  if (rank > loud) {
    const auto rest = at::addmm(p.W, at::mm(p.W, V), V.mH(), 1, -1);
    const auto order = plain_directions(p, rest, rank - loud);
    // To unit length, but where that would only magnify rounding.
    const double largest = order.S[0].item<double>();
    const auto lengths = order.S.narrow(0, 0, rank - loud).clamp_min(largest > 0 ? kEpsilon * largest : 1.0);
    V = polish(at::cat({V, at::mm(rest.mH(), order.U.narrow(1, 0, rank - loud) / lengths)}, 1));
  }
  return {at::mm(p.W, V), V};
}

// diag(l)^-1 U. The vectors V = (l reached)ᴴ U / S give the same as reached V / S: this is accurate where the row
// counts for little, as U / l is where S is small against the row.
at::Tensor without_weight(const Problem& p, const at::Tensor& U, const at::Tensor& S) {
  const auto l = p.loudness(), weighted = l * U;
  const auto by_columns = p.reached.defined() ? at::mm(p.reached, at::mm(p.reached.mH(), weighted) / S) / S
                                              : at::mm(p.gram, weighted) / S.square();
  const auto by_inverse = at::where(l > 0, U / l, 0.0);
  // A row of weight zero counts as one at the rounding level: that bounds its entries.
  const double level = std::sqrt(static_cast<double>(p.rows()) * kEpsilon);
  const auto size = at::where(l > 0, l, level) * at::real(p.gram.diagonal()).clamp_min(0).sqrt().unsqueeze(1);
  return at::where(S > size, by_columns, by_inverse);
}

// What is invisible of E = Qᴴ(W - X Zᴴ), as (X, Z): its rows without weight, and its other rows, which the columns'
// weight does not see. Kept apart, since mixtures of them would be visible.
Product invisible(const Problem& p, const at::Tensor& E, int64_t count) {
  const auto silent = (p.left.values == 0).nonzero().squeeze(1), heard = p.left.values.nonzero().squeeze(1);
  std::vector<at::Tensor> bases, sizes;
  for (const auto& rows : {silent, heard}) {
    if (rows.numel() == 0) continue;
    const auto order = plain_directions(p, E.index_select(0, rows), std::min(count, rows.numel()));
    bases.push_back(at::zeros({p.rows(), rows.numel()}, E.options()).index_copy_(0, rows, order.U));
    sizes.push_back(order.S);
  }
  const auto largest = at::cat(sizes).argsort(/*stable=*/true, /*dim=*/0, /*descending=*/true).narrow(0, 0, count);
  const auto X = at::cat(bases, 1).index_select(1, largest);
  return {X, at::mm(E.mH(), X)};
}

// W' = L^-1 U Uᴴ L W for L = diag(l) Qᴴ: where both sides have a weight.
Product oblique(const Problem& p, const Directions& found, int64_t rank) {
  const int64_t loud = std::min(rank, found.loud());
  const auto U = found.U.narrow(1, 0, loud);
  Product turned{without_weight(p, U, found.S.narrow(0, 0, loud)), at::mm(p.turned.mH(), weighted_rows(p, U))};
  if (rank > loud) {
    const auto rest = invisible(p, at::addmm(p.turned, turned.X, turned.Z.mH(), 1, -1), rank - loud);
    turned = {at::cat({turned.X, rest.X}, 1), at::cat({turned.Z, rest.Z}, 1)};
  }
  return {turned_back(p.left, turned.X), turned.Z};
}

struct Factors {
  at::Tensor B, A;
};

// B A = X Zᴴ, or its adjoint for a W that was tall. B has orthonormal columns where the rows have no weight, A
// orthonormal rows where the columns have none.
Factors factors(const Problem& p, const Directions& found, int64_t rank, bool tall) {
  const bool by_rows = p.left.identity() && !(tall && p.right.identity());
  const auto [X, Z] = by_rows              ? projected_rows(p, found, rank)
                      : p.right.identity() ? projected_columns(p, found, rank)
                                           : oblique(p, found, rank);
  return tall ? Factors{Z.contiguous(), materialized_adjoint(X).contiguous()}
              : Factors{X.contiguous(), materialized_adjoint(Z).contiguous()};
}

// ---- ranks and errors ----

// The smallest rank with an error within tol * norm, what cannot be told from zero counted as the level of rounding.
int64_t rank_within(const Directions& found, double tol, double storage) {
  const auto squares = found.S.square().to(at::kCPU);
  const auto tails = squares.flip(0).cumsum(0).flip(0);  // of rank 0, 1, ...
  const double norm = tails[0].item<double>(), most = tol * tol * norm * (1 - 1e-12);
  if (norm == 0) return 0;
  const double rounding = found.level * found.level + storage * storage * norm;
  return (tails + rounding > most).sum().item<int64_t>();
}

// tr(E G Eᴴ).
double squared_norm(const at::Tensor& E, const Side& right) {
  if (right.rooted()) {
    const double norm = frobenius_norm(times_root(E, right));
    return norm * norm;
  }
  return std::max(0.0, at::real(at::mul(at::mm(E, right.matrix), at::conj_physical(E))).sum().item<double>());
}

// By panels of rows: what is subtracted need not be kept.
double squared_error(const Problem& p, const Product& product) {
  constexpr int64_t panel = 512;
  const auto X = turned(p.left, product.X);
  double squared = 0;
  for (int64_t first = 0; first < p.rows(); first += panel) {
    const auto of_panel = [&](const at::Tensor& M) { return M.narrow(0, first, std::min(panel, p.rows() - first)); };
    const auto E = at::addmm(of_panel(p.turned), of_panel(X), product.Z.mH(), 1, -1);
    squared += squared_norm(p.left.identity() ? E : of_panel(p.loudness()) * E, p.right);
  }
  return squared;
}

// The same from random combinations of the rows: for the rounding that is left where nothing has been cut off, and
// which is not worth a product with the columns' weight.
double estimated_squared_error(const Problem& p, const Product& product) {
  const auto omega = weighted_rows(p, gaussian(p.rows(), kProbes, kSeed, 0, p.W.options())).mH();
  const auto E = at::mm(omega, p.turned) - at::mm(at::mm(omega, turned(p.left, product.X)), product.Z.mH());
  return squared_norm(E, p.right) / kProbes;
}

// B A = W' with columns of B of unit length; orthonormal ones are left as they are.
void balance(at::Tensor& B, at::Tensor& A) {
  const auto lengths = at::linalg_vector_norm(B, 2, at::IntArrayRef(0));
  const auto safe = at::where(lengths > 0, lengths, 1.0);
  B.div_(safe);
  A.mul_(safe.unsqueeze(1));
}

// The e for which fourth powers of W * 2^e are in the range of doubles: 0, and no copy, for all but strange weights.
int exponent_of(const at::Tensor& W) {
  const int exponent = scale_exponent(largest_magnitude(W));
  return std::abs(exponent) <= 64 ? 0 : exponent;
}

void check_arguments(const at::Tensor& W, const SideWeight& right, const std::optional<at::Tensor>& mean,
                     const WeightedLowRankOptions& options) {
  check_matrix(W, kCaller, "W");
  const int64_t shorter = std::min(W.size(0), W.size(1));
  TORCH_CHECK_VALUE(!options.rank || (*options.rank >= 1 && (*options.rank <= shorter || shorter == 0)), kCaller,
                    ": rank must be between 1 and min(o, i) = ", shorter, ", got ", options.rank.value_or(0));
  TORCH_CHECK_VALUE(!options.tol || (*options.tol > 0 && *options.tol < 1), kCaller,
                    ": tol must be between 0 and 1, got ", options.tol.value_or(0));
  check_finite(W, kCaller, "W");
  if (!mean) return;
  TORCH_CHECK_VALUE(right.matrix && right.matrix->dim() == 2, kCaller,
                    ": mean needs right = E[x xᴴ] as a matrix, to be centred");
  TORCH_CHECK_VALUE(mean->dim() == 1 && mean->size(0) == W.size(1), kCaller, ": mean must have shape (", W.size(1),
                    "), got shape ", mean->sizes());
  check_fits(*mean, W, "mean");
}

}  // namespace

WeightedLowRank weighted_low_rank(const at::Tensor& W, const SideWeight& left, const SideWeight& right,
                                  const std::optional<at::Tensor>& mean, const WeightedLowRankOptions& options) {
  check_arguments(W, right, mean, options);
  auto rows = opened(left, W, W.size(0), "left", "rows"), columns = opened(right, W, W.size(1), "right", "columns");
  const auto type = double_type(W);
  const auto mu = mean ? mean->to(type) : at::Tensor();
  const int64_t shorter = std::min(W.size(0), W.size(1)), longer = std::max(W.size(0), W.size(1));
  const auto real = W.options().dtype(at::kDouble);
  if (shorter == 0)
    return {at::empty({W.size(0), 0}, W.options()),
            at::empty({0, W.size(1)}, W.options()),
            at::empty({0}, real),
            at::zeros({mean ? W.size(0) : 0}, W.options()),
            0.0,
            0.0,
            false,
            true};
  if (mean) center(columns, mu);

  const bool tall = W.size(0) > W.size(1), weighted = !rows.identity();
  const char *of_rows = "left", *of_columns = mean ? "right - mean meanᴴ" : "right";
  const int exponent = exponent_of(W);
  const auto unit = scaled(W.to(type), exponent);
  auto &of_short = tall ? columns : rows, &of_long = tall ? rows : columns;
  decompose(of_short, tall ? of_columns : of_rows);
  check_undecomposed(of_long, tall ? of_rows : of_columns);
  const auto p = posed(tall ? materialized_adjoint(unit) : unit, of_short, of_long, unit_roundoff(W) > kEpsilon);
  const double rounding = static_cast<double>(longer) * kEpsilon * std::max(p.left.lost, p.right.lost);
  const auto [found, sketched, total] = leading(p, options, rounding);
  int64_t rank = options.rank.value_or(shorter);
  if (options.tol) rank = std::min(rank, rank_within(found, *options.tol, 4 * unit_roundoff(W)));

  auto [B, A] = factors(p, found, rank, tall);
  if (weighted) balance(B, A);
  B = B.to(W.scalar_type());
  A = scaled(A, -exponent).to(W.scalar_type());
  fix_signs(B, A);

  const auto stored_B = B.to(type), stored_A = scaled(A.to(type), exponent);
  const auto stored = tall ? Product{stored_A.mH(), stored_B} : Product{stored_B, stored_A.mH()};
  const double squared =
      rank == shorter && !options.tol ? estimated_squared_error(p, stored) : squared_error(p, stored);
  // The weights' exponents count half.
  const int weights = rows.exponent + columns.exponent, back = -exponent - (weights >> 1);
  const double odd = weights & 1 ? std::sqrt(0.5) : 1.0;
  const auto S = at::where(found.S > found.level, found.S, 0.0).narrow(0, 0, rank) * odd;
  const auto bias = mean ? scaled(at::mv(unit, mu) - at::mv(stored_B, at::mv(stored_A, mu)), -exponent)
                         : at::empty({0}, unit.options());
  const bool converged = !options.tol || squared <= *options.tol * *options.tol * total;
  return {B,
          A,
          scaled(S, back).contiguous(),
          bias.to(W.scalar_type()),
          std::ldexp(std::sqrt(squared) * odd, back),
          std::ldexp(std::sqrt(total) * odd, back),
          sketched,
          converged};
}

}  // namespace fastlr
