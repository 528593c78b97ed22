#include <fastlr/low_rank_linear.hpp>

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>

#include <algorithm>

#include "few_rows.hpp"
#include "take_columns.hpp"
#include "token_rows.hpp"

namespace fastlr {
namespace {

// Up to so many tokens, factors that are read row by row take less time than products of blocks.
constexpr int64_t kFewTokens = 8;
// Entries of what lies between the factors of a tile of tokens.
constexpr int64_t kTile = int64_t(1) << 20;
// Products of fewer tokens spend their time packing the factors.
constexpr int64_t kLeastTokens = 256;
// Products are a third slower where rows or columns do not begin at a multiple of 64 bytes, this many entries.
constexpr int64_t kAligned = 32;

// torch has the processor's own conversion for float16, and is faster.
bool are_few(const at::Tensor& X) {
  return X.is_cpu() && X.dim() > 0 && X.scalar_type() != at::kHalf &&
         c10::multiply_integers(X.sizes().slice(0, X.dim() - 1)) <= kFewTokens;
}

int64_t aligned(int64_t columns) { return (columns + kAligned - 1) / kAligned * kAligned; }

// Calls work(first, count, memory) for tiles of `tokens`, as equal as they can be. The memory, of `width` entries for
// each token of the tile, is the same for all; its rows begin at aligned addresses.
template <typename Work>
void for_tiles(int64_t tokens, int64_t width, const at::TensorOptions& options, const Work& work) {
  const int64_t most = std::max(kLeastTokens, kTile / std::max<int64_t>(1, width));
  const int64_t tiles = (tokens + most - 1) / most;
  if (tiles == 0) return;
  const auto memory = at::empty({(tokens + tiles - 1) / tiles, aligned(width)}, options);
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t first = tokens * tile / tiles, count = tokens * (tile + 1) / tiles - first;
    work(first, count, memory.narrow(0, 0, count).narrow(1, 0, width));
  }
}

// ---- what a call is given ----

void check_factor(const at::Tensor& factor, at::IntArrayRef shape, const at::Tensor& like, const char* caller,
                  const char* name) {
  TORCH_CHECK_VALUE(factor.sizes() == shape, caller, ": ", name, " must have shape ", shape, ", got ", factor.sizes());
  TORCH_CHECK_TYPE(factor.scalar_type() == like.scalar_type(), caller, ": ", name, " must be ", like.scalar_type(),
                   ", got ", factor.scalar_type());
  TORCH_CHECK_VALUE(factor.device() == like.device(), caller, ": ", name, " must be on ", like.device(), ", got ",
                    factor.device());
}

void check_matrix(const at::Tensor& matrix, const char* caller, const char* name) {
  const auto type = matrix.scalar_type();
  TORCH_CHECK_TYPE(at::isFloatingType(type) && c10::elementSize(type) > 1, caller, ": ", name,
                   " must be float16, bfloat16, float32 or float64, got ", type);
  TORCH_CHECK_VALUE(matrix.dim() == 2, caller, ": ", name, " must have 2 dimensions, got shape ", matrix.sizes());
}

std::optional<at::Tensor> checked_bias(const std::optional<at::Tensor>& bias, int64_t outputs, const at::Tensor& like,
                                       const char* caller) {
  if (!bias) return std::nullopt;
  check_factor(*bias, {outputs}, like, caller, "bias");
  return bias->contiguous();
}

void check_order(const at::Tensor& order, int64_t n, const at::Tensor& like, const char* caller) {
  TORCH_CHECK_TYPE(order.scalar_type() == at::kInt, caller, ": order must be int32, got ", order.scalar_type());
  TORCH_CHECK_VALUE(order.dim() == 1 && order.size(0) == n, caller, ": order must have shape [", n, "], got ",
                    order.sizes());
  TORCH_CHECK_VALUE(order.device() == like.device(), caller, ": order must be on ", like.device(), ", got ",
                    order.device());
}

// Where each number of `order`, int32, stands in it, once all from 0 to n - 1 are seen to be there.
at::Tensor inverse_of(const at::Tensor& order, const char* caller) {
  // A GPU reports a number that is out of range by itself, later.
  if (!order.is_cpu()) return order.argsort().to(at::kInt);
  const int64_t n = order.size(0);
  auto inverse = at::empty_like(order);
  const auto* numbers = order.const_data_ptr<int32_t>();
  auto* places = inverse.mutable_data_ptr<int32_t>();
  std::fill_n(places, n, -1);
  for (int64_t place = 0; place < n; ++place) {
    const int32_t number = numbers[place];
    const bool within = number >= 0 && number < n;
    TORCH_CHECK_VALUE(within && places[number] < 0, caller, ": order must be a permutation of 0 to ", n - 1, ", got ",
                      number, within ? " twice" : "");
    places[number] = static_cast<int32_t>(place);
  }
  return inverse;
}

// ---- steps of a layer ----

at::Tensor widened(const at::Tensor& tensor) { return tensor.to(at::toOpMathType(tensor.scalar_type())); }

// out += X Wᵀ for few rows of X, in the wider type that X and out have.
void add_few(const at::Tensor& W, const at::Tensor& X, const at::Tensor& out) {
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, W.scalar_type(), "low_rank_linear", [&] {
    using Sum = at::opmath_type<scalar_t>;
    kernels::add_products_with_few<scalar_t>(W.const_data_ptr<scalar_t>(), W.size(0), W.size(1),
                                             {X.const_data_ptr<Sum>(), X.stride(0)}, X.size(0),
                                             {out.mutable_data_ptr<Sum>(), out.stride(0)});
  });
}

// Rows that hold the bias, or zeros, in its wider type.
at::Tensor rows_of_bias(const std::optional<at::Tensor>& bias, const at::Tensor& X, int64_t outputs) {
  auto rows = at::zeros({X.size(0), outputs}, X.options());
  if (bias) rows.add_(*bias);
  return rows;
}

// out = X Wᵀ + bias for a tile.
void multiply(const at::Tensor& X, const at::Tensor& W, const std::optional<at::Tensor>& bias, at::Tensor out) {
  if (bias)
    at::addmm_out(out, *bias, X, W.t());
  else
    at::mm_out(out, X, W.t());
}

// out[:, j] = in[:, order[j]] + bias[j]
void take_columns(const at::Tensor& in, const at::Tensor& order, const std::optional<at::Tensor>& bias,
                  const at::Tensor& out) {
  if (!in.is_cpu()) {
    const auto taken = in.index_select(1, order);
    out.copy_(bias ? taken.add_(*bias) : taken);
    return;
  }
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, in.scalar_type(), "interpolative_linear", [&] {
    kernels::take_columns(in.const_data_ptr<scalar_t>(), in.stride(0), in.size(0), order.size(0),
                          order.const_data_ptr<int32_t>(), bias ? bias->const_data_ptr<scalar_t>() : nullptr,
                          out.mutable_data_ptr<scalar_t>(), out.stride(0));
  });
}

// An interpolative weight, once its factors are seen to fit. What lies between them are rows [kept, others], one a
// token, whose `others` begin at an aligned address where there are many.
class Interpolation {
 public:
  struct Tokens {
    at::Tensor whole, kept, others;
  };

  const at::Tensor skeleton, coefficients;
  const int64_t rank, others;  // how many rows or columns are kept, and how many are not

  Interpolation(const at::Tensor& S, const at::Tensor& C, const at::Tensor& order, bool of_rows, bool are_many,
                const char* caller)
      : skeleton(S.contiguous()),
        coefficients(C.contiguous()),
        rank(S.dim() == 2 ? S.size(of_rows ? 0 : 1) : 0),
        others(C.dim() == 2 ? C.size(of_rows ? 0 : 1) : 0),
        begin_(are_many ? aligned(rank) : rank) {
    check_matrix(S, caller, "skeleton");
    check_matrix(C, caller, "coefficients");
    check_factor(C, of_rows ? at::IntArrayRef{others, rank} : at::IntArrayRef{rank, others}, S, caller, "coefficients");
    check_order(order, size(), S, caller);
    const auto given = order.contiguous(), inverse = inverse_of(given, caller);
    numbers_ = of_rows ? inverse : given;
    places_ = of_rows ? given : inverse;
    if (begin_ != rank) places_ = at::where(places_ < rank, places_, places_ + (begin_ - rank));
  }

  int64_t size() const { return rank + others; }

  // The entries between the factors for each token, in memory of such rows.
  int64_t width() const { return begin_ + others; }
  Tokens in(const at::Tensor& memory) const {
    return {memory, memory.narrow(1, 0, rank), memory.narrow(1, begin_, others)};
  }
  // From the order of the inputs (for columns) or outputs (for rows) to [kept, others], and back.
  void gather(const at::Tensor& from, const Tokens& to) const {
    take_columns(from, numbers_.narrow(0, 0, rank), std::nullopt, to.kept);
    take_columns(from, numbers_.narrow(0, rank, others), std::nullopt, to.others);
  }
  void scatter(const Tokens& from, const std::optional<at::Tensor>& bias, const at::Tensor& to) const {
    take_columns(from.whole, places_, bias, to);
  }

 private:
  int64_t begin_;
  at::Tensor places_, numbers_;  // where each output or input is in `whole`, and the reverse without the gap
};

// A sum of products over tiles, if it is wanted.
class SumOfProducts {
 public:
  SumOfProducts(bool wanted, const at::Tensor& like)
      : total_(wanted ? at::zeros(like.sizes(), like.options().dtype(at::toOpMathType(like.scalar_type())))
                      : at::Tensor()),
        type_(like.scalar_type()) {}

  // += leftᵀ right
  void add(const at::Tensor& left, const at::Tensor& right) {
    if (!total_.defined()) return;
    if (total_.scalar_type() == type_)
      total_.addmm_(left.t(), right);
    else
      total_.add_(at::mm(left.t(), right));
  }

  void append_to(std::vector<at::Tensor>& gradients) const {
    if (total_.defined()) gradients.push_back(total_.to(type_));
  }

 private:
  at::Tensor total_;
  at::ScalarType type_;
};

}  // namespace

at::Tensor low_rank_linear(const at::Tensor& X, const at::Tensor& A, const at::Tensor& B,
                           const std::optional<at::Tensor>& bias) {
  constexpr auto caller = "low_rank_linear";
  check_matrix(A, caller, "A");
  check_matrix(B, caller, "B");
  const int64_t rank = A.size(0), outputs = B.size(0);
  check_factor(B, {outputs, rank}, A, caller, "B");
  const auto rows = as_rows(X, A.size(1), A, caller, "X");
  const auto shift = checked_bias(bias, outputs, A, caller);
  if (are_few(X)) {
    const auto inputs = widened(rows), inner = at::zeros({rows.size(0), rank}, inputs.options());
    add_few(A.contiguous(), inputs, inner);
    const auto sums = rows_of_bias(shift, inputs, outputs);
    add_few(B.contiguous(), inner, sums);
    return sums.to(X.scalar_type()).view(shape_with(X, outputs));
  }
  auto out = at::empty({rows.size(0), outputs}, rows.options());
  for_tiles(rows.size(0), rank, rows.options(), [&](int64_t first, int64_t count, const at::Tensor& inner) {
    multiply(rows.narrow(0, first, count), A, std::nullopt, inner);
    multiply(inner, B, shift, out.narrow(0, first, count));
  });
  return out.view(shape_with(X, outputs));
}

std::vector<at::Tensor> low_rank_linear_backward(const at::Tensor& gradient, const at::Tensor& X, const at::Tensor& A,
                                                 const at::Tensor& B, std::array<bool, 3> wanted) {
  constexpr auto caller = "low_rank_linear_backward";
  const auto rows = as_rows(X, A.size(1), A, caller, "X");
  const auto gradients = as_rows(gradient, B.size(0), A, caller, "gradient");
  SumOfProducts of_A(wanted[1], A), of_B(wanted[2], B);
  auto of_X = wanted[0] ? at::empty_like(rows) : at::Tensor();
  for_tiles(rows.size(0), A.size(0), rows.options(), [&](int64_t first, int64_t count, const at::Tensor& inner) {
    const auto inputs = rows.narrow(0, first, count), of_outputs = gradients.narrow(0, first, count);
    if (wanted[2]) {
      multiply(inputs, A, std::nullopt, inner);
      of_B.add(of_outputs, inner);
    }
    if (!wanted[0] && !wanted[1]) return;
    multiply(of_outputs, B.t(), std::nullopt, inner);
    of_A.add(inner, inputs);
    if (wanted[0]) multiply(inner, A.t(), std::nullopt, of_X.narrow(0, first, count));
  });
  std::vector<at::Tensor> found;
  if (wanted[0]) found.push_back(of_X.view(X.sizes()));
  of_A.append_to(found);
  of_B.append_to(found);
  return found;
}

at::Tensor interpolative_linear(const at::Tensor& X, const at::Tensor& skeleton, const at::Tensor& coefficients,
                                const at::Tensor& order, const std::optional<at::Tensor>& bias, bool of_rows) {
  constexpr auto caller = "interpolative_linear";
  const bool few = are_few(X);
  const Interpolation W(skeleton, coefficients, order, of_rows, !few, caller);
  const int64_t outputs = of_rows ? W.size() : skeleton.size(0);
  const auto rows = as_rows(X, of_rows ? skeleton.size(1) : W.size(), skeleton, caller, "X");
  const auto shift = checked_bias(bias, outputs, skeleton, caller);
  if (few) {
    const auto inputs = widened(rows);
    const auto wide_shift = shift ? std::make_optional(widened(*shift)) : std::nullopt;
    const auto inner = W.in(at::empty({rows.size(0), W.width()}, inputs.options()));
    at::Tensor sums;
    if (of_rows) {
      inner.whole.zero_();
      add_few(W.skeleton, inputs, inner.kept);
      add_few(W.coefficients, inner.kept, inner.others);
      sums = at::empty({rows.size(0), outputs}, inputs.options());
      W.scatter(inner, wide_shift, sums);
    } else {
      W.gather(inputs, inner);
      add_few(W.coefficients, inner.others, inner.kept);
      sums = rows_of_bias(wide_shift, inputs, outputs);
      add_few(W.skeleton, inner.kept, sums);
    }
    return sums.to(X.scalar_type()).view(shape_with(X, outputs));
  }
  auto out = at::empty({rows.size(0), outputs}, rows.options());
  for_tiles(rows.size(0), W.width(), rows.options(), [&](int64_t first, int64_t count, const at::Tensor& memory) {
    const auto inputs = rows.narrow(0, first, count), results = out.narrow(0, first, count);
    const auto inner = W.in(memory);
    if (of_rows) {
      multiply(inputs, W.skeleton, std::nullopt, inner.kept);
      multiply(inner.kept, W.coefficients, std::nullopt, inner.others);
      W.scatter(inner, shift, results);
    } else {
      W.gather(inputs, inner);
      inner.kept.addmm_(inner.others, W.coefficients.t());
      multiply(inner.kept, W.skeleton, shift, results);
    }
  });
  return out.view(shape_with(X, outputs));
}

std::vector<at::Tensor> interpolative_linear_backward(const at::Tensor& gradient, const at::Tensor& X,
                                                      const at::Tensor& skeleton, const at::Tensor& coefficients,
                                                      const at::Tensor& order, bool of_rows,
                                                      std::array<bool, 3> wanted) {
  constexpr auto caller = "interpolative_linear_backward";
  const Interpolation W(skeleton, coefficients, order, of_rows, /*are_many=*/true, caller);
  const auto rows = as_rows(X, of_rows ? skeleton.size(1) : W.size(), skeleton, caller, "X");
  const auto gradients = as_rows(gradient, of_rows ? W.size() : skeleton.size(0), skeleton, caller, "gradient");
  SumOfProducts of_S(wanted[1], W.skeleton), of_C(wanted[2], W.coefficients);
  const auto of_X = wanted[0] ? at::empty_like(rows) : at::Tensor();
  for_tiles(rows.size(0), W.width(), rows.options(), [&](int64_t first, int64_t count, const at::Tensor& memory) {
    const auto inputs = rows.narrow(0, first, count), of_results = gradients.narrow(0, first, count);
    const auto inner = W.in(memory);
    if (of_rows) {
      W.gather(of_results, inner);
      if (wanted[2]) of_C.add(inner.others, at::mm(inputs, W.skeleton.t()));
      if (!wanted[0] && !wanted[1]) return;
      inner.kept.addmm_(inner.others, W.coefficients);
      of_S.add(inner.kept, inputs);
      if (wanted[0]) multiply(inner.kept, W.skeleton.t(), std::nullopt, of_X.narrow(0, first, count));
    } else {
      W.gather(inputs, inner);
      if (wanted[1]) of_S.add(of_results, at::addmm(inner.kept, inner.others, W.coefficients.t()));
      if (!wanted[0] && !wanted[2]) return;
      const auto of_inner = at::mm(of_results, W.skeleton);
      of_C.add(of_inner, inner.others);
      if (!wanted[0]) return;
      inner.kept.copy_(of_inner);
      multiply(of_inner, W.coefficients.t(), std::nullopt, inner.others);
      W.scatter(inner, std::nullopt, of_X.narrow(0, first, count));
    }
  });
  std::vector<at::Tensor> found;
  if (wanted[0]) found.push_back(of_X.view(X.sizes()));
  of_S.append_to(found);
  of_C.append_to(found);
  return found;
}

}  // namespace fastlr
