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
#include "reflector_blocks.hpp"

namespace fastlr {
namespace {

// Vectors of a block: enough for fast matrix products, few enough for what is done in twice the precision.
constexpr int64_t kWidth = 64;

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

// 2^-e in two factors, as it may overflow itself.
std::pair<at::Tensor, at::Tensor> lowering(const at::Tensor& e, at::ScalarType type) {
  const auto half = e.div(2, "floor");
  return {power_of_two(-half).to(type), power_of_two(half - e).to(type)};
}

// V * 2^-e
at::Tensor lowered(const at::Tensor& V, const at::Tensor& e) {
  const auto [first, second] = lowering(e, at::toRealValueType(V.scalar_type()));
  return (V * first).mul_(second);
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
    return M.narrow(1, 0, whole).reshape({M.size(0) * parts, kRows, M.size(2)});
  };
  const auto sums = at::bmm(cut(A).mH(), cut(X)).view({A.size(0), parts, A.size(2), X.size(2)});
  const auto sum = sums.sum(1);
  const auto left = A.size(1) - whole;
  return left ? at::baddbmm(sum, A.narrow(1, whole, left).mH(), X.narrow(1, whole, left)) : sum;
}

// The columns of V in blocks.
class Columns {
 public:
  const int64_t count;

  explicit Columns(const Reflectors& Q)
      : count((Q.V.size(2) + kWidth - 1) / kWidth), Q_{Q.V.stride(2) == 1 ? Q.V : Q.V.contiguous(), Q.lower} {}

  const at::Tensor& V() const { return Q_.V; }

  int64_t row(int64_t i) const { return Q_.lower ? i * kWidth : 0; }

  at::Tensor operator[](int64_t i) const {
    const auto column = i * kWidth, width = std::min(kWidth, Q_.V.size(2) - column);
    const auto V = Q_.V.narrow(2, column, width).narrow(1, row(i), Q_.V.size(1) - row(i));
    if (!Q_.lower) return V;
    auto trapezoid = V.clone(at::MemoryFormat::Contiguous);
    trapezoid.narrow(1, 0, width).tril_();
    return trapezoid;
  }

  // Block i of (count, batch, width, width).
  at::Tensor of(const at::Tensor& small, int64_t i) const {
    const auto width = std::min(kWidth, Q_.V.size(2) - i * kWidth);
    return small[i].narrow(1, 0, width).narrow(2, 0, width);
  }

  // As the kernels take them.
  kernels::ReflectorBlocks for_kernel() const {
    const auto& V = Q_.V;
    return {V.const_data_ptr<float>(),
            {V.stride(0), V.stride(1)},
            V.size(0),
            V.size(1),
            V.size(2),
            std::min(kWidth, V.size(2)),
            Q_.lower};
  }

 private:
  Reflectors Q_;
};

// The last block is filled up with zero vectors, which are identities.
at::Tensor small_matrices(const Reflectors& Q, int64_t count) {
  const auto width = std::min(kWidth, Q.V.size(2));
  return at::zeros({count, Q.V.size(0), width, width}, Q.V.options().dtype(double_type(Q.V)));
}

bool is_wide(const at::Tensor& V) { return V.scalar_type() == double_type(V); }

bool has_kernel(const at::Tensor& V) { return V.is_cpu() && V.scalar_type() == at::kFloat; }

Factors from_kernel(const Reflectors& Q) {
  const Columns columns(Q);
  const auto T = small_matrices(Q, columns.count);
  const auto exponents = at::zeros({T.size(0), T.size(1), 1, T.size(3)}, T.options().dtype(at::kInt));
  kernels::reflector_factors_cpu(columns.for_kernel(), T.data_ptr<double>(), exponents.data_ptr<int32_t>());
  return {T.unsqueeze(0), exponents};
}

// Nothing of vectors in float32 overflows in float64.
Factors from_float(const Reflectors& Q) {
  const Columns columns(Q);
  auto G = small_matrices(Q, columns.count);
  for (int64_t i = 0; i < columns.count; ++i) {
    const auto V = columns[i].to(G.scalar_type());
    columns.of(G, i).copy_(adjoint_product(V, V));
  }
  const auto e = exponents(at::real(G.diagonal(0, -2, -1)).sqrt()).unsqueeze(2);
  const auto scale = power_of_two(-e);
  return {triangular_inverse(half_of_gram(G.mul_(scale).mul_(scale.mT()))).contiguous().unsqueeze(0), e};
}

// From products in twice the precision.
Factors from_double(const Reflectors& Q) {
  const Columns columns(Q);
  auto high = small_matrices(Q, columns.count), low = at::zeros_like(high);
  const auto all = at::zeros({columns.count, high.size(1), 1, high.size(2)}, high.options().dtype(at::kInt));
  for (int64_t i = 0; i < columns.count; ++i) {
    const auto V = columns[i];
    const auto magnitudes = V.is_complex() ? at::view_as_real(V).abs().amax({1, 3}) : V.abs().amax(1);
    const auto largest = exponents(magnitudes).unsqueeze(1);
    const auto norms = at::linalg_vector_norm(lowered(V, largest), 2, at::IntArrayRef{1}, /*keepdim=*/true);
    const auto e = largest + exponents(norms);
    const auto U = lowered(V, e);
    const auto G = product(materialized_adjoint(U), U);
    columns.of(high, i).copy_(G.high), columns.of(low, i).copy_(G.low);
    all[i].narrow(2, 0, V.size(2)).copy_(e);
  }
  const auto S = half_of_gram(high), below = low.triu(1) + at::diag_embed(low.diagonal(0, -2, -1) / 2);
  const auto T = triangular_inverse(S);
  const auto ST = product(S, T);
  const auto rest = at::matmul(T, ((identity(S) - ST.high) - ST.low) - at::matmul(below, T));
  return {at::stack({T, rest}), all};
}

// Some reflectors as I - U T U^H, with Y = U T.
struct Block {
  at::Tensor U, Y, T;
  int64_t column;  // its first
  int64_t row;     // above it U and Y are zero
};

// U and Y are made anew whenever a block is asked for, and used while they are in the cache.
class Blocks {
 public:
  Blocks(const Reflectors& Q, const Factors& factors)
      : columns_(Q), factors_{factors.T.contiguous(), factors.exponents.contiguous()} {}

  int64_t count() const { return columns_.count; }

  Block operator[](int64_t i) const {
    if (has_kernel(columns_.V())) return of_kernel(i);
    const auto V = columns_[i], T = columns_.of(factors_.T[0], i);
    const auto e = factors_.exponents[i].narrow(2, 0, V.size(2));
    if (is_wide(V)) {
      const auto U = lowered(V, e);
      const auto Y = product(U, T);
      return {U, Y.high + (Y.low + at::bmm(U, columns_.of(factors_.T[1], i))), T, i * kWidth, columns_.row(i)};
    }
    const auto type = V.scalar_type();
    const auto U = V.to(T.scalar_type()).mul_(power_of_two(-e));
    return {U.to(type), at::bmm(U, T).to(type), T.to(type), i * kWidth, columns_.row(i)};
  }

 private:
  Columns columns_;
  Factors factors_;

  Block of_kernel(int64_t i) const {
    const auto T = columns_.of(factors_.T[0], i);
    const auto& V = columns_.V();
    const auto row = columns_.row(i), width = T.size(2);
    const auto U = at::empty({V.size(0), V.size(1) - row, width}, V.options()), Y = at::empty_like(U);
    kernels::reflector_block_cpu(columns_.for_kernel(), i, factors_.T.const_data_ptr<double>(),
                                 factors_.exponents.const_data_ptr<int32_t>(), U.data_ptr<float>(),
                                 Y.data_ptr<float>());
    return {U, Y, T.to(at::kFloat), i * kWidth, row};
  }
};

// The rows of X that a block changes. Those of the identity have entries in the last columns only.
at::Tensor changed(const at::Tensor& X, const Block& block, bool of_identity) {
  const auto rows = X.narrow(1, block.row, X.size(1) - block.row);
  if (!of_identity) return rows;
  const auto skipped = std::min(block.row, X.size(2));
  return rows.narrow(2, skipped, X.size(2) - skipped);
}

// X <- H_1 ... H_k X, or its adjoint.
void apply_in_place(const Blocks& Q, const at::Tensor& X, bool adjoint, bool of_identity) {
  for (int64_t step = 0; step < Q.count(); ++step) {
    const auto block = Q[adjoint ? step : Q.count() - 1 - step];
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

// S - of_gram(S)
at::Tensor besides_gram(const at::Tensor& S) {
  auto difference = S - S.mH();
  difference.diagonal(0, -2, -1).div_(2);
  return difference.tril_();
}

}  // namespace

Factors householder_factors(const Reflectors& Q) {
  check_finite(Q.V, "householder_product", "V");
  if (!Q.V.numel()) {
    const auto T = small_matrices(Q, Columns(Q).count);
    return {at::stack(std::vector<at::Tensor>(is_wide(Q.V) ? 2 : 1, T)), T.sum(2, true).to(at::kInt)};
  }
  if (has_kernel(Q.V)) return from_kernel(Q);
  return is_wide(Q.V) ? from_double(Q) : from_float(Q);
}

at::Tensor householder_product(const Reflectors& Q, const Factors& factors, int64_t columns) {
  const auto batch = Q.V.size(0), m = Q.V.size(1);
  auto X = at::eye(m, columns, Q.V.options()).expand({batch, m, columns}).contiguous();
  if (Q.V.numel()) apply_in_place({Q, factors}, X, /*adjoint=*/false, Q.lower);
  return X;
}

at::Tensor householder_apply(const Reflectors& Q, const Factors& factors, const at::Tensor& X, bool adjoint) {
  auto result = X.clone(at::MemoryFormat::Contiguous);
  if (Q.V.numel() && X.numel()) apply_in_place({Q, factors}, result, adjoint, /*of_identity=*/false);
  return result;
}

std::pair<at::Tensor, at::Tensor> householder_backward(const Reflectors& Q, const Factors& factors,
                                                       const at::Tensor& result, const at::Tensor& grad, bool adjoint,
                                                       bool of_identity) {
  auto G = grad.clone(at::MemoryFormat::Contiguous);
  if (!Q.V.numel() || !grad.numel()) return {at::zeros_like(Q.V), G};
  const Blocks blocks(Q, factors);
  const auto [first, second] = lowering(factors.exponents, at::toRealValueType(Q.V.scalar_type()));
  const auto X = result.clone(at::MemoryFormat::Contiguous);
  auto gradient = at::zeros_like(Q.V, at::MemoryFormat::Contiguous);
  for (int64_t step = 0; step < blocks.count(); ++step) {
    const auto i = adjoint ? blocks.count() - 1 - step : step;
    const auto block = blocks[i];
    const auto& [U, Y, T, column, row] = block;
    const auto x = changed(X, block, of_identity && Q.lower), g = changed(G, block, of_identity && Q.lower);
    at::Tensor found;
    if (adjoint) {
      const auto of_x = adjoint_product(U, x), of_g = adjoint_product(U, g);
      const auto p = at::bmm(T, of_x), r = at::bmm(T, of_g);
      subtract(x, Y, of_x);
      found = at::bmm(g, p.mH());
      found.baddbmm_(x, r.mH(), 1, -1);
      found.baddbmm_(U, of_gram(adjoint_product(p.mH(), r.mH())), 1, -1);
      subtract(g, Y, of_g);
    } else {
      const auto p = adjoint_product(Y, g), r = adjoint_product(Y, x);
      subtract(g, U, p);
      subtract(x, U, r);
      const auto S = adjoint_product(p.mH(), r.mH());
      found = at::bmm(g, r.mH());
      found.baddbmm_(x, p.mH(), 1, -1);
      found.baddbmm_(U, besides_gram(S));
    }
    // Of U = V 2^-exponents to of V.
    found.mul_(first[i].narrow(2, 0, U.size(2))).mul_(second[i].narrow(2, 0, U.size(2)));
    if (Q.lower) found.narrow(1, 0, U.size(2)).tril_();
    gradient.narrow(2, column, U.size(2)).narrow(1, row, U.size(1)).copy_(found);
  }
  return {gradient, G};
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
