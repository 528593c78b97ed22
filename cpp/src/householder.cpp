// Householder products by blocks I - U T U^H in matrix products. Such a block is unitary where T^-1 + T^-H = U^H U
// exactly; an error of that is multiplied by up to the number of vectors where they are nearly parallel. So U^H U, T
// and Y = U T are found in twice the precision and rounded once.
#include <fastlr/householder.hpp>

#include <ATen/ATen.h>

#include <algorithm>
#include <bit>
#include <tuple>
#include <utility>
#include <vector>

#include "checks.hpp"

namespace fastlr {
namespace {

// Vectors of a block: enough for fast matrix products, few enough for what is done in twice the precision.
constexpr int64_t kWidth = 32;

// Rows whose products are added up at once.
constexpr int64_t kRows = 128;

// A tensor with another that is added to it: far below its rounding.
struct Double {
  at::Tensor high, low;
};

// 2^e for integers e from -1022 to 1023.
at::Tensor power_of_two(const at::Tensor& e) {
  return (e.to(at::kLong) + 1023).bitwise_left_shift(52).view(at::kDouble);
}

// For each column the e with its largest entry, or its norm, in [2^(e-1), 2^e); 0 for zero.
at::Tensor exponents(const at::Tensor& magnitudes) { return std::get<1>(at::frexp(magnitudes)); }

// V * 2^-e, in two steps, as 2^-e alone may overflow.
at::Tensor lowered(const at::Tensor& V, const at::Tensor& e) {
  const auto half = e.div(2, "floor");
  const auto type = at::toRealValueType(V.scalar_type());
  return V * power_of_two(-half).to(type) * power_of_two(half - e).to(type);
}

// The high part of A has so few bits, in units of the largest entry along `dim`, that sums of `terms` products of two
// such parts are exact.
Double sliced(const at::Tensor& A, int64_t dim, int64_t terms) {
  const auto complex = A.is_complex();
  const auto parts = complex ? at::view_as_real(A.contiguous()) : A;
  const auto largest = complex ? parts.abs().amax(-1).amax(dim, true).unsqueeze(-1) : parts.abs().amax(dim, true);
  const auto added = static_cast<uint64_t>(complex ? 2 * terms : terms);
  const auto bits = (53 - static_cast<int64_t>(std::bit_width(added))) / 2;
  const auto shift = 1.5 * power_of_two(exponents(largest) + (53 - bits));
  const auto rounded = (parts + shift) - shift;
  const auto high = complex ? at::view_as_complex(rounded) : rounded;
  return {high, A - high};
}

// A B in twice the precision (Ozaki's scheme, one slice).
Double product(const at::Tensor& A, const at::Tensor& B) {
  const auto a = sliced(A, -1, A.size(-1)), b = sliced(B, -2, A.size(-1));
  const auto most = at::matmul(a.high, b.high), rest = at::matmul(a.high, b.low) + at::matmul(a.low, B);
  const auto high = most + rest, back = high - most;
  return {high, (most - (high - back)) + (rest - back)};
}

at::Tensor identity(const at::Tensor& like) { return at::eye(like.size(-1), like.options()); }

// The upper triangle of G = U^H U with half of its diagonal, or 1 where a vector is zero.
at::Tensor half_of_gram(const at::Tensor& G) {
  const auto diagonal = at::real(G.diagonal(0, -2, -1));
  const auto half = at::where(diagonal > 0, diagonal / 2, 1.0);
  return G.triu(1) + at::diag_embed(half).to(G.scalar_type());
}

at::Tensor triangular_inverse(const at::Tensor& S) {
  return at::linalg_solve_triangular(S, identity(S).expand_as(S), /*upper=*/true);
}

// T and Y = U T for blocks U (..., m, width), in the type of U.
std::pair<at::Tensor, at::Tensor> block_factors(const at::Tensor& U) {
  const auto wide = double_type(U);
  if (U.scalar_type() != wide) {
    const auto V = U.to(wide);
    const auto T = triangular_inverse(half_of_gram(at::matmul(materialized_adjoint(V), V)));
    return {T.to(U.scalar_type()), at::matmul(V, T).to(U.scalar_type())};
  }
  const auto G = product(materialized_adjoint(U), U);
  const auto S = half_of_gram(G.high), below = G.low.triu(1) + at::diag_embed(G.low.diagonal(0, -2, -1) / 2);
  const auto T = triangular_inverse(S);
  const auto ST = product(S, T);
  const auto correction = at::matmul(T, ((identity(S) - ST.high) - ST.low) - at::matmul(below, T));
  const auto Y = product(U, T);
  return {T, Y.high + (Y.low + at::matmul(U, correction))};
}

struct Block {
  at::Tensor U, Y, T;
  int64_t column;  // its first
  int64_t row;     // above it U and Y are zero
};

struct Blocks {
  std::vector<Block> blocks;
  at::Tensor exponents;  // V = U 2^e

  explicit Blocks(const Reflectors& Q) {
    const auto V = Q.lower ? Q.V.tril() : Q.V;
    const auto batch = V.size(0), m = V.size(1), k = V.size(2);
    const auto magnitudes = V.is_complex() ? at::view_as_real(V).abs().amax({1, 3}) : V.abs().amax(1);
    const auto largest = fastlr::exponents(magnitudes).unsqueeze(1);
    const auto scaled = lowered(V, largest);
    const auto of_norm = fastlr::exponents(at::linalg_vector_norm(scaled, 2, at::IntArrayRef{1}, true));
    exponents = largest + of_norm;
    // Zero columns, which are identities, fill the last block.
    const auto width = std::min(kWidth, k), count = (k + width - 1) / width;
    const auto padded = at::constant_pad_nd(lowered(scaled, of_norm), {0, count * width - k});
    const auto U = padded.reshape({batch, m, count, width}).permute({2, 0, 1, 3}).contiguous();
    const auto [T, Y] = block_factors(U);
    for (int64_t i = 0; i < count; ++i) {
      const auto row = Q.lower ? i * width : 0;
      blocks.push_back({U[i].narrow(1, row, m - row), Y[i].narrow(1, row, m - row), T[i], i * width, row});
    }
  }
};

// X - A B, in place.
void subtract(const at::Tensor& X, const at::Tensor& A, const at::Tensor& B) {
  auto target = X;
  target.baddbmm_(A, B, 1, -1);
}

// A^H X. Long sums of terms of one sign are made of short ones, or what nearly parallel vectors lose would grow with
// the square root of their length.
at::Tensor adjoint_product(const at::Tensor& A, const at::Tensor& X) {
  const auto parts = A.size(1) / kRows, whole = parts * kRows;
  if (parts < 2) return at::bmm(A.mH(), X);
  const auto cut = [&](const at::Tensor& M) {
    return M.narrow(1, 0, whole).reshape({M.size(0), parts, kRows, M.size(2)});
  };
  const auto sum = at::matmul(cut(A).mH(), cut(X)).sum(1);
  const auto left = A.size(1) - whole;
  return left ? at::baddbmm(sum, A.narrow(1, whole, left).mH(), X.narrow(1, whole, left)) : sum;
}

// The rows of X that a block changes. Those of the identity have entries in the last columns only.
at::Tensor changed(const at::Tensor& X, const Block& block, bool of_identity) {
  const auto rows = X.narrow(1, block.row, X.size(1) - block.row);
  if (!of_identity) return rows;
  const auto skipped = std::min(block.row, X.size(2));
  return rows.narrow(2, skipped, X.size(2) - skipped);
}

// X <- H_1 ... H_k X, or its adjoint.
void apply_in_place(const Blocks& Q, const at::Tensor& X, bool adjoint, bool of_identity) {
  const auto count = static_cast<int64_t>(Q.blocks.size());
  for (int64_t step = 0; step < count; ++step) {
    const auto& block = Q.blocks[adjoint ? step : count - 1 - step];
    const auto& [left, right] = adjoint ? std::tie(block.U, block.Y) : std::tie(block.Y, block.U);
    const auto part = changed(X, block, of_identity);
    subtract(part, left, adjoint_product(right, part));
  }
}

// What the gradient S of T^-1 says of U: 2 Re<S, striu(U^H U) + diag(U^H U) / 2> is of U^H U by this Hermitian matrix.
at::Tensor of_gram(const at::Tensor& S) {
  const auto M = S.triu(1) + at::diag_embed(S.diagonal(0, -2, -1) / 2);
  return M + M.mH();
}

}  // namespace

at::Tensor householder_product(const Reflectors& Q, int64_t columns) {
  check_finite(Q.V, "householder_product", "V");
  const auto batch = Q.V.size(0), m = Q.V.size(1);
  auto X = at::eye(m, columns, Q.V.options()).expand({batch, m, columns}).contiguous();
  if (Q.V.numel()) apply_in_place(Blocks(Q), X, /*adjoint=*/false, Q.lower);
  return X;
}

at::Tensor householder_apply(const Reflectors& Q, const at::Tensor& X, bool adjoint) {
  check_finite(Q.V, "householder_apply", "V");
  auto result = X.clone(at::MemoryFormat::Contiguous);
  if (Q.V.numel() && X.numel()) apply_in_place(Blocks(Q), result, adjoint, /*of_identity=*/false);
  return result;
}

std::pair<at::Tensor, at::Tensor> householder_backward(const Reflectors& Q, const at::Tensor& result,
                                                       const at::Tensor& grad, bool adjoint, bool of_identity) {
  auto G = grad.clone(at::MemoryFormat::Contiguous);
  if (!Q.V.numel() || !grad.numel()) return {at::zeros_like(Q.V), G};
  const Blocks reflectors(Q);
  const auto X = result.clone(at::MemoryFormat::Contiguous);
  const auto count = static_cast<int64_t>(reflectors.blocks.size()), width = reflectors.blocks[0].U.size(2);
  auto gradient = at::zeros({Q.V.size(0), Q.V.size(1), count * width}, Q.V.options());
  for (int64_t step = 0; step < count; ++step) {
    const auto& block = reflectors.blocks[adjoint ? count - 1 - step : step];
    const auto& [U, Y, T, column, row] = block;
    const auto x = changed(X, block, of_identity && Q.lower), g = changed(G, block, of_identity && Q.lower);
    auto found = gradient.narrow(2, column, width).narrow(1, row, U.size(1));
    if (adjoint) {
      const auto of_x = adjoint_product(U, x), of_g = adjoint_product(U, g);
      const auto p = at::bmm(T, of_x), r = at::bmm(T, of_g);
      subtract(x, Y, of_x);
      found.baddbmm_(g, p.mH());
      found.baddbmm_(x, r.mH(), 1, -1);
      found.baddbmm_(U, of_gram(at::bmm(p, r.mH())), 1, -1);
      subtract(g, Y, of_g);
    } else {
      const auto p = adjoint_product(Y, g), r = adjoint_product(Y, x);
      subtract(g, U, p);
      subtract(x, U, r);
      const auto S = at::bmm(p, r.mH());
      found.baddbmm_(g, r.mH());
      found.baddbmm_(x, p.mH(), 1, -1);
      found.baddbmm_(U, S - of_gram(S));
    }
  }
  gradient = lowered(gradient.narrow(2, 0, Q.V.size(2)), reflectors.exponents);
  return {Q.lower ? gradient.tril() : gradient, G};
}

namespace {

// The LU factorization of columns [begin, end) of W, in place, rows above `begin` being done.
void eliminate(const at::Tensor& W, const at::Tensor& phases, int64_t begin, int64_t end) {
  const auto m = W.size(1);
  if (end - begin == 1) {
    auto pivot = W.select(2, begin).select(1, begin);
    const auto phase = at::where(pivot == 0, -1, -at::sgn(pivot)).to(W.scalar_type());
    phases.select(1, begin).copy_(phase);
    pivot.sub_(phase);
    W.narrow(1, begin + 1, m - begin - 1).select(2, begin).div_(pivot.unsqueeze(1));
    return;
  }
  const auto middle = begin + (end - begin) / 2;
  eliminate(W, phases, begin, middle);
  const auto left = W.narrow(2, begin, middle - begin), right = W.narrow(2, middle, end - middle);
  auto top = right.narrow(1, begin, middle - begin);
  top.copy_(at::linalg_solve_triangular(left.narrow(1, begin, middle - begin), top, /*upper=*/false, /*left=*/true,
                                        /*unitriangular=*/true));
  subtract(right.narrow(1, middle, m - middle), left.narrow(1, middle, m - middle), top);
  eliminate(W, phases, middle, end);
}

}  // namespace

std::pair<at::Tensor, at::Tensor> householder_vectors(const at::Tensor& Q) {
  check_finite(Q, "householder_vectors", "Q");
  const auto W = Q.clone(at::MemoryFormat::Contiguous);
  const auto batch = Q.size(0), m = Q.size(1), k = Q.size(2);
  auto phases = at::ones({batch, k}, Q.options());
  if (batch && k) eliminate(W, phases, 0, k);
  return {W.tril(-1) + at::eye(m, k, Q.options()), phases};
}

}  // namespace fastlr
