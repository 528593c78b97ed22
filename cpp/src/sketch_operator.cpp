#include <fastlr/sketch_operator.hpp>

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <unordered_set>
#include <vector>

#include <fastlr/sketch.hpp>
#include <fastlr/sketch_draws.hpp>

#include "checks.hpp"
#include "sketch.hpp"

#ifdef FASTLR_WITH_CUDA
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace fastlr {
namespace {

// Columns of a matrix that is not row-major that are copied at a time, and rows of a sparse one that are made dense.
constexpr int64_t kCopiedColumns = 512, kDenseRows = 1024;

double scale_of(const SketchOperator& S) {
  switch (S.kind) {
    case SketchKind::sparse_sign:
      return 1 / std::sqrt(static_cast<double>(S.nonzeros));
    case SketchKind::uniform:
      return std::sqrt(static_cast<double>(S.columns) / static_cast<double>(S.rows));
    default:
      return 1 / std::sqrt(static_cast<double>(S.rows));
  }
}

// A number in [0, below), from word pairs 2 i and 2 i + 1 of the stream of samples.
int64_t sample(int64_t seed, int64_t i, int64_t below) {
  const auto words =
      sketch_draws::draw(static_cast<uint64_t>(seed), static_cast<uint64_t>(i) / 2, 0, sketch_draws::kSample);
  const uint64_t low = i % 2 == 0 ? words.w0 : words.w2, high = i % 2 == 0 ? words.w1 : words.w3;
  __extension__ using Wide = unsigned __int128;
  return static_cast<int64_t>(Wide(high << 32 | low) * static_cast<uint64_t>(below) >> 64);
}

// Floyd's algorithm: `count` distinct numbers below `below`, every set as likely as any other.
std::vector<int64_t> distinct_samples(int64_t seed, int64_t count, int64_t below) {
  std::vector<int64_t> picks;
  std::unordered_set<int64_t> taken;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t last = below - count + i, drawn = sample(seed, i, last + 1);
    const int64_t pick = taken.insert(drawn).second ? drawn : last;
    taken.insert(pick);
    picks.push_back(pick);
  }
  return picks;
}

// The rows that an SRHT keeps, or those that are drawn uniformly.
std::vector<int64_t> picks_of(const SketchOperator& S) {
  if (S.kind == SketchKind::srht)
    return distinct_samples(S.seed, S.rows, static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(S.columns))));
  std::vector<int64_t> picks(S.rows);
  for (int64_t i = 0; i < S.rows; ++i) picks[i] = sample(S.seed, i, S.columns);
  return picks;
}

kernels::SparseSigns signs_of(const SketchOperator& S) { return {static_cast<uint64_t>(S.seed), S.rows, S.nonzeros}; }

template <typename T>
kernels::RowMajor<const T> read(const at::Tensor& A) {
  return {A.const_data_ptr<T>(), A.size(0), A.size(1), A.stride(0)};
}
template <typename T>
kernels::RowMajor<T> written(const at::Tensor& A) {
  return {A.mutable_data_ptr<T>(), A.size(0), A.size(1), A.stride(0)};
}

// Real columns: the parts of a complex one side by side.
at::Tensor as_real(const at::Tensor& A) {
  if (!A.is_complex()) return A;
  return at::view_as_real(A.resolve_conj().contiguous()).reshape({A.size(0), 2 * A.size(1)});
}
at::Tensor as_complex(const at::Tensor& A, bool complex) {
  return complex ? at::view_as_complex(A.reshape({A.size(0), A.size(1) / 2, 2})) : A;
}

// Calls work(from, to) for columns of `from` that are row-major, and those of `to` that belong to them.
template <typename Work>
void by_row_major_columns(const at::Tensor& from, const at::Tensor& to, const Work& work) {
  if (from.stride(1) == 1 || from.size(1) <= 1) return work(from.size(1) == 1 ? from.contiguous() : from, to);
  for (int64_t column = 0; column < from.size(1); column += kCopiedColumns) {
    const int64_t width = std::min(kCopiedColumns, from.size(1) - column);
    work(from.narrow(1, column, width).contiguous(), to.narrow(1, column, width));
  }
}

// A Hadamard sketch and its picks, in memory of `device`.
struct Hadamard {
  at::Tensor picks;
  kernels::HadamardRows rows;

  Hadamard(const SketchOperator& S, at::Device device) {
    if (S.kind != SketchKind::srht) return;
    picks = at::tensor(picks_of(S), at::kLong).to(device);
    rows = {static_cast<uint64_t>(S.seed), S.rows, picks.const_data_ptr<int64_t>()};
  }
};

template <typename T>
void add_product(const SketchOperator& S, const Hadamard& hadamard, const at::Tensor& A, int64_t first,
                 const at::Tensor& Y) {
#ifdef FASTLR_WITH_CUDA
  if (A.is_cuda()) {
    const c10::cuda::CUDAGuard guard(A.device());
    const auto stream = c10::cuda::getCurrentCUDAStream().stream();
    if (S.kind == SketchKind::sparse_sign) {
      kernels::add_sparse_sign_cuda<T>(signs_of(S), read<T>(A), first, written<T>(Y), stream);
    } else {
      kernels::add_hadamard_cuda<T>(hadamard.rows, read<T>(A), first, written<T>(Y), stream);
    }
    return;
  }
#endif
  if (S.kind == SketchKind::sparse_sign) {
    kernels::add_sparse_sign_cpu<T>(signs_of(S), read<T>(A), first, written<T>(Y));
  } else {
    kernels::add_hadamard_cpu<T>(hadamard.rows, read<T>(A), first, written<T>(Y));
  }
}

template <typename T>
void adjoint_product(const SketchOperator& S, const Hadamard& hadamard, const at::Tensor& Y, int64_t first,
                     const at::Tensor& X) {
#ifdef FASTLR_WITH_CUDA
  if (Y.is_cuda()) {
    const c10::cuda::CUDAGuard guard(Y.device());
    const auto stream = c10::cuda::getCurrentCUDAStream().stream();
    if (S.kind == SketchKind::sparse_sign) {
      kernels::sparse_sign_adjoint_cuda<T>(signs_of(S), read<T>(Y), first, written<T>(X), stream);
    } else {
      kernels::hadamard_adjoint_cuda<T>(hadamard.rows, read<T>(Y), first, written<T>(X), stream);
    }
    return;
  }
#endif
  if (S.kind == SketchKind::sparse_sign) {
    kernels::sparse_sign_adjoint_cpu<T>(signs_of(S), read<T>(Y), first, written<T>(X));
  } else {
    kernels::hadamard_adjoint_cpu<T>(hadamard.rows, read<T>(Y), first, written<T>(X));
  }
}

void check_device(const at::Tensor& A) {
#ifdef FASTLR_WITH_CUDA
  if (A.is_cuda()) return;
#endif
  TORCH_CHECK_VALUE(A.is_cpu(), "sketch: this build of fastlr has no kernel for device ", A.device(),
                    "; rebuild it where torch and nvcc have CUDA");
}

at::Tensor apply_structured(const SketchOperator& S, const at::Tensor& A, int64_t first) {
  check_device(A);
  const auto real = as_real(A);
  auto Y = at::zeros({S.rows, real.size(1)}, real.options());
  const Hadamard hadamard(S, A.device());
  by_row_major_columns(real, Y, [&](const at::Tensor& from, const at::Tensor& to) {
    AT_DISPATCH_FLOATING_TYPES(from.scalar_type(), "sketch",
                               [&] { add_product<scalar_t>(S, hadamard, from, first, to); });
  });
  return as_complex(Y.mul_(scale_of(S)), A.is_complex());
}

at::Tensor adjoint_structured(const SketchOperator& S, const at::Tensor& Y, int64_t first, int64_t count) {
  check_device(Y);
  const auto real = as_real(Y);
  auto X = at::empty({count, real.size(1)}, real.options());
  const Hadamard hadamard(S, Y.device());
  by_row_major_columns(real, X, [&](const at::Tensor& from, const at::Tensor& to) {
    AT_DISPATCH_FLOATING_TYPES(from.scalar_type(), "sketch",
                               [&] { adjoint_product<scalar_t>(S, hadamard, from, first, to); });
  });
  return as_complex(X.mul_(scale_of(S)), Y.is_complex());
}

// Which rows of S draw one of the rows [first, first + count), and which of these.
struct Drawn {
  at::Tensor by, rows;
};
Drawn drawn_from(const SketchOperator& S, int64_t first, int64_t count, at::Device device) {
  const auto picks = at::tensor(picks_of(S), at::kLong).sub_(first).to(device);
  const auto by = at::nonzero(picks.ge(0).logical_and_(picks.lt(count))).squeeze(1);
  return {by, picks.index_select(0, by)};
}

at::Tensor apply_samples(const SketchOperator& S, const at::Tensor& A, int64_t first) {
  const auto drawn = drawn_from(S, first, A.size(0), A.device());
  return at::zeros({S.rows, A.size(1)}, A.options())
      .index_copy_(0, drawn.by, A.index_select(0, drawn.rows).mul_(scale_of(S)));
}

// Dense rows of a CSR matrix.
at::Tensor dense_rows(const at::Tensor& csr, int64_t first, int64_t count) {
  const auto starts = csr.crow_indices().narrow(0, first, count + 1);
  const int64_t begin = starts[0].item<int64_t>(), end = starts[-1].item<int64_t>();
  const auto values = csr.values().narrow(0, begin, end - begin);
  const auto columns = csr.col_indices().narrow(0, begin, end - begin).to(at::kLong);
  const auto rows = at::repeat_interleave(at::arange(count, columns.options()), starts.diff().to(at::kLong));
  // Entries that are given twice are added up.
  return at::zeros({count, csr.size(1)}, values.options()).index_put_({rows, columns}, values, /*accumulate=*/true);
}

at::Tensor apply_sparse(const SketchOperator& S, const at::Tensor& A, int64_t first) {
  if (S.kind == SketchKind::sparse_sign && !A.is_complex() && A.is_cpu()) {
    auto Y = at::zeros({S.rows, A.size(1)}, A.values().options());
    const auto starts = A.crow_indices().contiguous(), columns = A.col_indices().contiguous();
    const auto values = A.values().contiguous();
    AT_DISPATCH_FLOATING_TYPES(A.scalar_type(), "sketch", [&] {
      AT_DISPATCH_INDEX_TYPES(starts.scalar_type(), "sketch", [&] {
        kernels::add_sparse_sign_cpu<scalar_t, index_t>(
            signs_of(S),
            {starts.const_data_ptr<index_t>(), columns.const_data_ptr<index_t>(), values.const_data_ptr<scalar_t>(),
             A.size(0)},
            first, written<scalar_t>(Y));
      });
    });
    return Y.mul_(scale_of(S));
  }
  auto Y = at::zeros({S.rows, A.size(1)}, A.values().options());
  for (int64_t row = 0; row < A.size(0); row += kDenseRows) {
    const int64_t count = std::min(kDenseRows, A.size(0) - row);
    Y.add_(S.apply(dense_rows(A, row, count), first + row));
  }
  return Y;
}

RandomKind entries_of(SketchKind kind) {
  return kind == SketchKind::gaussian ? RandomKind::gaussian : RandomKind::sign;
}

void check_window(const SketchOperator& S, int64_t first, int64_t count, const char* caller) {
  TORCH_CHECK_VALUE(first >= 0 && count >= 0 && first + count <= S.columns, caller, ": columns ", first, " to ",
                    first + count, " of the sketch must lie between 0 and ", S.columns);
}

}  // namespace

SketchKind parse_sketch_kind(std::string_view name) {
  if (name == "gaussian") return SketchKind::gaussian;
  if (name == "rademacher") return SketchKind::rademacher;
  if (name == "sparse_sign" || name == "countsketch") return SketchKind::sparse_sign;
  if (name == "srht") return SketchKind::srht;
  if (name == "uniform") return SketchKind::uniform;
  TORCH_CHECK_VALUE(false, "kind must be 'gaussian', 'rademacher', 'sparse_sign', 'countsketch', 'srht' or 'uniform', ",
                    "got '", name, "'");
}

void SketchOperator::check(const char* caller) const {
  TORCH_CHECK_VALUE(rows >= 1 && columns >= 0, caller, ": a sketch must have at least 1 row, got shape (", rows, ", ",
                    columns, ")");
  TORCH_CHECK_VALUE(kind != SketchKind::sparse_sign || (nonzeros >= 1 && nonzeros <= rows), caller,
                    ": nonzeros must be between 1 and the size, ", rows, ", got ", nonzeros);
  TORCH_CHECK_VALUE(kind != SketchKind::sparse_sign || rows < int64_t{1} << 31, caller,
                    ": the size must be below 2^31, got ", rows);
  const auto padded = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(std::max<int64_t>(1, columns))));
  TORCH_CHECK_VALUE(kind != SketchKind::srht || rows <= padded, caller, ": the size of an srht must be at most ",
                    padded, ", the rows of A padded to a power of two, got ", rows);
  TORCH_CHECK_VALUE(kind != SketchKind::uniform || columns >= 1, caller, ": there are no rows to sample from");
}

at::Tensor SketchOperator::apply(const at::Tensor& A, int64_t first) const {
  check_window(*this, first, A.size(0), "sketch");
  if (A.layout() == at::kSparseCsr) return apply_sparse(*this, A, first);
  check_matrix(A, "sketch", "A");
  if (kind == SketchKind::uniform) return apply_samples(*this, A, first);
  if (kind == SketchKind::gaussian || kind == SketchKind::rademacher) {
    const auto real = as_real(A);
    const auto product = random_product(real.mT(), entries_of(kind), real.size(0), rows, seed, false, 0, first);
    return as_complex(product.mT().mul(scale_of(*this)).contiguous(), A.is_complex());
  }
  return apply_structured(*this, A, first);
}

at::Tensor SketchOperator::apply_adjoint(const at::Tensor& Y, int64_t first, int64_t count) const {
  check_matrix(Y, "sketch", "Y");
  check_window(*this, first, count, "sketch");
  TORCH_CHECK_VALUE(Y.size(0) == rows, "sketch: Y must have ", rows, " rows, got shape ", Y.sizes());
  if (kind == SketchKind::uniform) {
    const auto drawn = drawn_from(*this, first, count, Y.device());
    return at::zeros({count, Y.size(1)}, Y.options())
        .index_add_(0, drawn.rows, Y.index_select(0, drawn.by).mul_(scale_of(*this)));
  }
  if (kind == SketchKind::gaussian || kind == SketchKind::rademacher) {
    const auto product = random_product(as_real(Y).mT(), entries_of(kind), count, rows, seed, true, 0, first);
    return as_complex(product.mT().mul(scale_of(*this)).contiguous(), Y.is_complex());
  }
  return adjoint_structured(*this, Y, first, count);
}

}  // namespace fastlr
