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

// [core rightᴴ; rows], (l + c) x n, its squares in range, with a `right` that is nearly orthonormal.
struct Stack {
  at::Tensor core, right, rows;
  Truncation truncation;
  ErrorBound error;

  int64_t height() const { return core.size(0) + rows.size(0); }
  double u() const { return unit_roundoff(rows); }
  // From its singular values.
  Split split_of(const at::Tensor& S) const {
    return split(S, truncation.most, budget(error, truncation.tol, frobenius_norm(S)), noise_of(S, u()));
  }
};

// M ≈ rotation core rightᴴ, with a `right` that is nearly orthonormal.
struct Kept {
  at::Tensor rotation, core, right;
  double dropped;
};

// YᴴY, in double precision.
at::Tensor gram(const at::Tensor& Y) {
  const auto wide = Y.to(double_type(Y));
  return at::mm(wide.mH(), wide);
}

// A `right` that has drifted becomes orthonormal again, and what it was is absorbed by the core.
void reorthogonalize(Stack& M) {
  const auto G = gram(M.right);
  const int64_t k = G.size(0);
  const double distance = frobenius_norm(G - at::eye(k, G.options()));
  if (distance <= kDrift * std::sqrt(static_cast<double>(k)) * M.u()) return;
  TORCH_CHECK_LINALG(distance < kNearOrthonormal, "append_rows: right must be nearly orthonormal, is off by ",
                     distance);
  const auto factors = cholesky_factors(G);
  M.right = tall_product(M.right, factors.T);
  M.core = at::mm(M.core, factors.R.mH());
}

// M Mᴴ in double precision, for the `right` that there is.
at::Tensor gram(const Stack& M) {
  const int64_t l = M.core.size(0), c = M.rows.size(0);
  const auto rows = M.rows.to(double_type(M.rows)), right = M.right.to(double_type(M.rows));
  const auto core_right = at::mm(M.core, gram(right));
  const auto cross = at::mm(at::mm(rows, right), M.core.mH());
  auto G = at::empty({l + c, l + c}, M.core.options());
  G.narrow(0, 0, l).narrow(1, 0, l).copy_(at::mm(core_right, M.core.mH()));
  G.narrow(0, l, c).narrow(1, 0, l).copy_(cross);
  G.narrow(0, 0, l).narrow(1, l, c).copy_(cross.mH());
  G.narrow(0, l, c).narrow(1, l, c).copy_(at::mm(rows, rows.mH()));
  return G;
}

// By eigenvectors of M Mᴴ. Nothing where the smallest value that is kept, or the norm of what is dropped, would be
// rounding noise of the Gram matrix.
std::optional<Kept> by_gram(const Stack& M) {
  const auto [ascending, vectors] = at::linalg_eigh(gram(M));
  const auto lambda = ascending.flip(0).clamp_min(0), S = lambda.sqrt();
  const auto [kept, dropped] = M.split_of(S);
  if (kept == 0) return std::nullopt;
  const double trace = lambda.sum().item<double>(), least = kResolved * trace;
  const bool complete = kept == M.height();
  if (lambda[kept - 1].item<double>() < least || (!complete && dropped * dropped < least)) return std::nullopt;

  const int64_t l = M.core.size(0);
  // LAPACK's vectors are orthonormal to some ten times what a Cholesky pass reaches: they are polished, here and below.
  auto P = polish(vectors.flip(1).narrow(1, 0, kept));
  P.mul_(at::conj_physical(column_phases(P)));
  const auto unit = P / S.narrow(0, 0, kept);
  const auto along = at::mm(M.core.mH(), unit.narrow(0, 0, l)).to(M.right.scalar_type());
  const auto across = unit.narrow(0, l, M.rows.size(0)).to(M.right.scalar_type());
  return Kept{P, at::diag(S.narrow(0, 0, kept)).to(M.core.scalar_type()),
              at::addmm(at::mm(M.right, along), M.rows.mH(), across),
              complete ? 0.0 : std::sqrt(dropped * dropped + kGramRounding * static_cast<double>(M.height()) * trace)};
}

// M = coordinates basisᴴ with an orthonormal basis; an undefined one is the identity.
struct Coordinates {
  at::Tensor values, basis;
};

Coordinates coordinates(const Stack& M) {
  const auto wide = [&](const at::Tensor& part) { return part.to(M.core.scalar_type()); };
  if (M.height() >= M.rows.size(1)) return {at::cat({at::mm(M.core, wide(M.right).mH()), wide(M.rows)}), {}};
  const auto along = at::mm(M.rows, M.right);
  const auto rest = at::addmm(M.rows, along, M.right.mH(), 1, -1);
  // A rest below this is rounding.
  if (frobenius_norm(rest) <= 4 * std::sqrt(static_cast<double>(M.height())) * M.u() * frobenius_norm(M.rows))
    return {at::cat({M.core, wide(along)}), M.right};
  int64_t drawn = 0;
  const auto beside = orthonormal_beside(M.right, rest.mH().resolve_conj(), drawn);
  const auto across = at::mm(rest, beside);
  const auto none = at::zeros({M.core.size(0), across.size(1)}, M.core.options());
  return {at::cat({at::cat({M.core, none}, 1), at::cat({wide(along), wide(across)}, 1)}),
          at::cat({M.right, beside}, 1)};
}

Kept by_projection(Stack M) {
  reorthogonalize(M);
  const auto [values, basis] = coordinates(M);
  const auto [left, S, right] = at::linalg_svd(values, /*full_matrices=*/false);
  const auto [kept, dropped] = M.split_of(S);
  auto P = polish(left.narrow(1, 0, kept));
  auto Wh = materialized_adjoint(polish(materialized_adjoint(right.narrow(0, 0, kept))));
  fix_signs(P, Wh);
  const auto W = materialized_adjoint(Wh).to(M.right.scalar_type());
  return {P, at::diag(S.narrow(0, 0, kept)).to(M.core.scalar_type()),
          basis.defined() ? at::mm(basis, W) : W.contiguous(), dropped};
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

AppendedRows append_rows(const at::Tensor& core, const at::Tensor& right, const at::Tensor& rows,
                         const Truncation& truncation, ErrorBound error) {
  check_matrix(rows, "append_rows", "rows");
  const double norm = std::hypot(frobenius_norm(core), frobenius_norm(rows));
  const int exponent = squares_in_range(rows, norm) ? 0 : scale_exponent(norm);
  const int64_t height = core.size(0) + rows.size(0);
  error.rounding = std::hypot(error.rounding, step_rounding(height, norm, unit_roundoff(rows)));
  const Stack M{scaled(core, exponent), right, scaled(rows, exponent), truncation, scaled(error, exponent)};

  std::optional<Kept> kept;
  if (height < rows.size(1)) kept = by_gram(M);
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
