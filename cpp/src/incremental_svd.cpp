#include <fastlr/incremental_svd.hpp>

#include <ATen/ATen.h>
#include <ATen/core/LegacyTypeDispatch.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include <fastlr/orthonormalize.hpp>

#include "checks.hpp"
#include "finite.hpp"
#include "orthonormal_beside.hpp"
#include "svd_parts.hpp"
#include "tall.hpp"

namespace fastlr {
namespace {

// Orthonormality, in units of sqrt(k) u, beyond which a basis has drifted. A Cholesky pass leaves about one.
constexpr double kDrift = 4;
// Below this distance ‖YᴴY − I‖ one Cholesky pass makes Y orthonormal to rounding.
constexpr double kNearOrthonormal = 0.5;
// Eigenvalues of a Gram matrix of k rows in double precision sum up to within this times k of its trace.
constexpr double kGramRounding = 10 * 0x1p-53;
// Above this part of the trace, half of their digits are right.
constexpr double kResolved = 1e-8;

// What rounding adds to ‖E‖_F in a step with `size` directions of a matrix of this norm.
double step_rounding(int64_t size, double norm, double u) {
  return 10 * std::sqrt(static_cast<double>(size)) * u * norm;
}

// The norm of what may be dropped so that the error bound stays below tol ‖A‖_F, where ‖left core rightᴴ‖_F, with
// what is being appended, is `norm`: A is no smaller than that and the running error together, less the settled one.
double budget(const ErrorBound& error, double tol, double norm) {
  const double allowed =
      tol * std::max(0.0, std::hypot(norm, error.running) - error.settled) - error.settled - error.rounding;
  if (!(allowed > error.running)) return 0.0;
  return std::sqrt(allowed - error.running) * std::sqrt(allowed + error.running);
}

ErrorBound scaled(const ErrorBound& error, int exponent) {
  return {std::ldexp(error.settled, exponent), std::ldexp(error.running, exponent),
          std::ldexp(error.rounding, exponent)};
}

struct Split {
  int64_t kept;
  double dropped;  // the norm of the others
};

// S: descending.
Split split(const at::Tensor& S, int64_t most, double budget, double noise) {
  const auto values = S.to(at::kCPU, at::kDouble).contiguous();
  const double* s = values.const_data_ptr<double>();
  double tail = 0.0;
  int64_t kept = values.numel();
  while (kept > 0 && (kept > most || s[kept - 1] <= noise || std::hypot(tail, s[kept - 1]) <= budget))
    tail = std::hypot(tail, s[--kept]);
  return {kept, tail};
}

double noise_of(const at::Tensor& S, double u) { return S.numel() > 0 ? noise_level(S, u).item<double>() : 0.0; }

// diag(core, I) lines with lines = [rightᴴ; rows], (l + c) x n, its squares in range, with a `right` that is nearly
// orthonormal.
struct Stack {
  at::Tensor core, lines;
  Truncation truncation;
  ErrorBound error;

  int64_t height() const { return lines.size(0); }
  at::Tensor right_h() const { return lines.narrow(0, 0, core.size(0)); }
  at::Tensor rows() const { return lines.narrow(0, core.size(0), height() - core.size(0)); }
  double u() const { return unit_roundoff(lines); }
  // From its singular values.
  Split split_of(const at::Tensor& S) const {
    return split(S, truncation.most, budget(error, truncation.tol, frobenius_norm(S)), noise_of(S, u()));
  }
};

// M ≈ rotation core rightᴴ, with a `right` that is nearly orthonormal and lies in memory by columns, which are lines of
// the next Gram matrix.
struct Kept {
  at::Tensor rotation, core, right;
  double dropped;
};

// X Xᴴ in double precision, some columns at a time, so that what they are in that precision stays in the cache.
at::Tensor gram_of_rows(const at::Tensor& X) {
  const auto type = double_type(X);
  if (X.scalar_type() == type) return at::mm(X, X.mH());
  const auto options = X.options().dtype(type);
  const int64_t width = cached_rows(2 * X.size(0) * X.element_size());
  const auto buffer = at::empty({X.size(0), width}, options);
  auto G = at::zeros({X.size(0), X.size(0)}, options);
  for (int64_t column = 0; column < X.size(1); column += width) {
    const int64_t count = std::min(width, X.size(1) - column);
    const auto wide = buffer.narrow(1, 0, count).copy_(X.narrow(1, column, count));
    G.addmm_(wide, wide.mH());
  }
  return G;
}

// M Mᴴ in double precision, for the `right` that there is. One product of all lines: three for its parts would have
// fewer flops and take longer.
at::Tensor gram(const Stack& M) {
  const int64_t l = M.core.size(0);
  auto G = gram_of_rows(M.lines);
  auto above = G.narrow(0, 0, l), before = G.narrow(1, 0, l);
  above.copy_(at::mm(M.core, above));
  before.copy_(at::mm(before, M.core.mH()));
  return G;
}

// By eigenvectors of M Mᴴ. Nothing where the smallest value that is kept, or the norm of what is dropped, would be
// rounding noise of the Gram matrix.
std::optional<Kept> by_gram(const Stack& M, const at::Tensor& G) {
  const auto [ascending, vectors] = at::linalg_eigh(G);
  const auto lambda = ascending.flip(0).clamp_min(0), S = lambda.sqrt();
  const auto [kept, dropped] = M.split_of(S);
  if (kept == 0) return std::nullopt;
  const double trace = lambda.sum().item<double>(), least = kResolved * trace;
  const bool complete = kept == M.height();
  if (lambda[kept - 1].item<double>() < least || (!complete && dropped * dropped < least)) return std::nullopt;

  const int64_t l = M.core.size(0), c = M.height() - l;
  auto P = vectors.narrow(1, M.height() - kept, kept).flip(1).contiguous();
  // LAPACK's vectors are orthonormal to some ten times what a Cholesky pass reaches: beside rounding in single
  // precision nothing; elsewhere, and below, they are polished.
  if (M.u() <= unit_roundoff(P)) P = polish(P);
  const auto unit = P / S.narrow(0, 0, kept);
  const auto coefficients =
      at::cat({at::mm(M.core.mH(), unit.narrow(0, 0, l)), unit.narrow(0, l, c)}).to(M.lines.scalar_type());
  return Kept{P, at::diag(S.narrow(0, 0, kept)).to(M.core.scalar_type()),
              materialized_adjoint(at::mm(coefficients.mH(), M.lines)),
              complete ? 0.0 : std::sqrt(dropped * dropped + kGramRounding * static_cast<double>(M.height()) * trace)};
}

// M = coordinates basisᴴ with an orthonormal basis; an undefined one is the identity.
struct Coordinates {
  at::Tensor values, basis;
};

// A `right` that has drifted becomes orthonormal again, and what it was is absorbed by the core.
void reorthogonalize(at::Tensor& core, at::Tensor& right) {
  const auto G = accurate_gram(right);
  const int64_t k = G.size(0);
  const double distance = frobenius_norm(G - at::eye(k, G.options()));
  if (distance <= kDrift * std::sqrt(static_cast<double>(k)) * unit_roundoff(right)) return;
  TORCH_CHECK_LINALG(distance < kNearOrthonormal, "append_rows: right must be nearly orthonormal, is off by ",
                     distance);
  const auto factors = cholesky_factors(G);
  right = tall_product(right, factors.T);
  core = at::mm(core, factors.R.mH());
}

Coordinates coordinates(const Stack& M) {
  auto core = M.core, right = materialized_adjoint(M.right_h()).contiguous();
  reorthogonalize(core, right);
  const auto rows = M.rows();
  const auto wide = [&](const at::Tensor& part) { return part.to(core.scalar_type()); };
  if (M.height() >= rows.size(1)) return {at::cat({at::mm(core, wide(right).mH()), wide(rows)}), {}};
  const auto along = at::mm(rows, right);
  const auto rest = at::addmm(rows, along, right.mH(), 1, -1);
  // A rest below this is rounding.
  if (frobenius_norm(rest) <= 4 * std::sqrt(static_cast<double>(M.height())) * M.u() * frobenius_norm(rows))
    return {at::cat({core, wide(along)}), right};
  int64_t drawn = 0;
  const auto beside = orthonormal_beside(right, rest.mH().resolve_conj(), drawn);
  const auto across = at::mm(rest, beside);
  const auto none = at::zeros({core.size(0), across.size(1)}, core.options());
  return {at::cat({at::cat({core, none}, 1), at::cat({wide(along), wide(across)}, 1)}), at::cat({right, beside}, 1)};
}

Kept by_projection(const Stack& M) {
  const auto [values, basis] = coordinates(M);
  const auto [left, S, right] = at::linalg_svd(values, /*full_matrices=*/false);
  const auto [kept, dropped] = M.split_of(S);
  const auto Wh = polish(materialized_adjoint(right.narrow(0, 0, kept))).mH().to(M.lines.scalar_type());
  return {polish(left.narrow(1, 0, kept)), at::diag(S.narrow(0, 0, kept)).to(M.core.scalar_type()),
          materialized_adjoint(basis.defined() ? at::mm(Wh, basis.mH()) : Wh.resolve_conj().contiguous()), dropped};
}

}  // namespace

std::optional<at::Tensor> copy_of_plain_lines(const at::Tensor& block, int64_t axis, at::ScalarType type, int64_t width,
                                              int64_t most) {
  const auto real = c10::toRealValueType(type);
  if (real != at::kFloat && real != at::kDouble) return std::nullopt;
  if (block.scalar_type() != type || !block.is_cpu() || block.layout() != at::kStrided) return std::nullopt;
  if (block.is_conj() || block.is_neg() || (axis == 1 && block.is_complex())) return std::nullopt;
  if (block.dim() != 1 && block.dim() != 2) return std::nullopt;
  const at::AutoDispatchBelowAutograd guard;
  const auto lines = block.dim() == 1 ? block.unsqueeze(0) : axis == 0 ? block : block.t();
  if (lines.size(1) != width || lines.size(0) > most) return std::nullopt;
  auto copy = lines.clone(at::MemoryFormat::Contiguous);
  const void* entries = copy.const_data_ptr();
  const int64_t count = copy.numel() * (block.is_complex() ? 2 : 1);
  const bool finite = real == at::kFloat ? kernels::all_finite(static_cast<const float*>(entries), count)
                                         : kernels::all_finite(static_cast<const double*>(entries), count);
  if (!finite) return std::nullopt;
  return copy;
}

AppendedRows append_rows(const at::Tensor& core, const at::Tensor& lines, const Truncation& truncation,
                         ErrorBound error) {
  check_matrix(lines, "append_rows", "lines");
  Stack M{core, lines, truncation, error};
  const bool is_short = M.height() < lines.size(1);
  auto G = is_short ? gram(M) : at::Tensor();
  double norm = is_short ? std::sqrt(at::real(G.diagonal()).sum().item<double>()) : 0.0;
  int exponent = 0;
  // Squares that may be out of range say nothing.
  if (!squares_in_range(lines, norm)) {
    norm = std::hypot(frobenius_norm(core), frobenius_norm(M.rows()));
    exponent = exponent_in_range(lines, norm);
  }
  error.rounding = std::hypot(error.rounding, step_rounding(M.height(), norm, M.u()));
  M.error = scaled(error, exponent);
  if (exponent != 0) {
    M.lines = at::cat({M.right_h(), scaled(M.rows(), exponent)});
    M.core = scaled(core, exponent);
    if (is_short) G = gram(M);
  }
  std::optional<Kept> kept;
  if (is_short) kept = by_gram(M, G);
  if (!kept) kept = by_projection(M);
  error.running = std::hypot(error.running, std::ldexp(kept->dropped, -exponent));
  return {kept->rotation, scaled(kept->core, -exponent), kept->right, error};
}

at::Tensor compose(at::TensorList chain) {
  TORCH_CHECK_VALUE(chain.size() % 2 == 1, "compose: chain must have an odd number of parts, got ", chain.size());
  std::vector<at::Tensor> parts((chain.size() + 1) / 2);
  at::Tensor rotation;  // the product of all that follow
  for (int64_t i = static_cast<int64_t>(chain.size()) - 1; i >= 0; --i) {
    const auto& part = chain[i];
    if (i % 2 == 0) {
      parts[i / 2] = rotation.defined() ? at::mm(part, rotation.to(part.scalar_type())) : part;
    } else {
      rotation = rotation.defined() ? at::mm(part, rotation) : part;
    }
  }
  return at::cat(parts);
}

CompressedSvd compress(const at::Tensor& left, const at::Tensor& core, const at::Tensor& right, int64_t least,
                       const Truncation& truncation, ErrorBound error) {
  // Columns of zeros: their singular vectors are any orthonormal completion.
  const auto widened = [&](const at::Tensor& factor) {
    return at::constant_pad_nd(factor, {0, std::max<int64_t>(0, least - factor.size(1))});
  };
  const auto Q = orthonormalize(widened(left)), P = orthonormalize(widened(right));
  const auto coefficients = [&](const at::Tensor& basis, const at::Tensor& factor) {
    return at::mm(basis.mH(), factor).to(core.scalar_type());
  };
  const auto middle = at::mm(at::mm(coefficients(Q, left), core), coefficients(P, right).mH());
  const auto [rotation, values, rotation_h] = at::linalg_svd(middle, /*full_matrices=*/false);
  const double u = unit_roundoff(left), norm = frobenius_norm(core);
  error.rounding = std::hypot(error.rounding, step_rounding(values.numel(), norm, u));
  const auto [kept, dropped] =
      split(values, truncation.most, budget(error, truncation.tol, frobenius_norm(values)), noise_of(values, u));
  const int64_t rank = std::max(kept, std::min(least, values.numel()));
  const double largest_dropped = kept < values.numel() ? values[kept].item<double>() : 0.0;
  error.running = std::hypot(error.running, dropped);
  const auto rotated = [&](const at::Tensor& basis, const at::Tensor& vectors) {
    return at::mm(basis, polish(vectors.narrow(1, 0, rank)).to(basis.scalar_type()));
  };
  auto U = rotated(Q, rotation), Vh = materialized_adjoint(rotated(P, materialized_adjoint(rotation_h))).contiguous();
  fix_signs(U, Vh);
  const auto S = at::constant_pad_nd(values.narrow(0, 0, kept), {0, rank - kept});
  return {U, S, Vh, error, largest_dropped};
}

}  // namespace fastlr
