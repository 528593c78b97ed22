#include <fastlr/linear_operator.hpp>

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

#include <fastlr/random.hpp>
#include <fastlr/sketch.hpp>

#include "checks.hpp"
#include "residual.hpp"
#include "sparse.hpp"
#include "tall.hpp"

#ifdef FASTLR_WITH_CUDA
#include <cuda_runtime_api.h>
#endif

namespace fastlr {
namespace {

std::atomic<void (*)()> interrupt_check{nullptr};

}  // namespace

void set_interrupt_check(void (*check)()) { interrupt_check = check; }

void check_interrupt() {
  if (const auto check = interrupt_check.load()) check();
}

// ---- what all operators share ----

namespace {

// The columns `index` of the identity of order n.
at::Tensor unit_vectors(int64_t n, const at::Tensor& index, const at::TensorOptions& options) {
  auto E = at::zeros({n, index.size(0)}, options);
  E.index_put_({index, at::arange(index.size(0), index.options())}, at::ones({}, options));
  return E;
}

}  // namespace

LinearOperator::LinearOperator(int64_t rows, int64_t columns, at::TensorOptions options)
    : rows_(rows), columns_(columns), options_(options), passes_(std::make_shared<int64_t>(0)) {}

LinearOperator::LinearOperator(int64_t rows, int64_t columns, at::TensorOptions options, const LinearOperator& of,
                               bool counts)
    : rows_(rows), columns_(columns), options_(options), passes_(of.passes_), counts_(counts) {}

at::Tensor LinearOperator::checked(const at::Tensor& product, int64_t rows, int64_t columns, const char* name) const {
  TORCH_CHECK_VALUE(product.dim() >= 2 && product.size(-2) == rows && product.size(-1) == columns,
                    "LinearOperator: ", name, " must return shape (", rows, ", ", columns, "), got ", product.sizes());
  TORCH_CHECK_TYPE(product.scalar_type() == options_.dtype().toScalarType(), "LinearOperator: ", name,
                   " must return dtype ", options_.dtype(), ", got ", product.scalar_type());
  check_interrupt();
  return product;
}

at::Tensor LinearOperator::matmat(const at::Tensor& X) const {
  count_passes(1);
  return checked(do_matmat(X), rows_, X.size(-1), "matmat");
}

at::Tensor LinearOperator::rmatmat(const at::Tensor& Y) const {
  count_passes(1);
  return checked(do_rmatmat(Y), columns_, Y.size(-1), "rmatmat");
}

NormalProduct LinearOperator::normal_matmat(const at::Tensor& X, const NormalColumns& columns) const {
  count_passes(reads_once() ? 1 : 2);
  auto [image, co] = do_normal_matmat(X, columns);
  return {checked(image, rows_, X.size(-1) - columns.image_from, "matmat"),
          checked(co, columns_, columns.co_columns, "rmatmat")};
}

Residual LinearOperator::residual_product(const at::Tensor& B, const at::Tensor& X) const {
  count_passes(reads_once() ? 1 : 2);
  auto [residual, co] = do_residual_product(B, X);
  return {checked(residual, rows_, X.size(-1), "matmat"), checked(co, columns_, X.size(-1), "rmatmat")};
}

at::Tensor LinearOperator::sketched(const SketchOperator& S) const {
  count_passes(1);
  return checked(do_sketched(S), S.rows, columns_, "rmatmat");
}

at::Tensor LinearOperator::sketched_adjoint(const SketchOperator& S) const {
  count_passes(1);
  return checked(do_sketched_adjoint(S), S.rows, rows_, "matmat");
}

at::Tensor LinearOperator::triangle(const at::Tensor& B) const {
  return std::get<1>(at::linalg_qr(at::cat({to_dense(), B}, 1), "r"));
}

at::Tensor LinearOperator::gaussian_matmat(int64_t k, int64_t seed, int64_t column0) const {
  count_passes(1);
  return checked(do_gaussian_matmat(k, seed, column0), rows_, k, "matmat");
}

at::Tensor LinearOperator::gaussian_rmatmat(int64_t k, int64_t seed, int64_t column0) const {
  count_passes(1);
  return checked(do_gaussian_rmatmat(k, seed, column0), columns_, k, "rmatmat");
}

TwoSidedSketch LinearOperator::two_sided_sketch(const TwoSidedWidths& widths, int64_t right_seed,
                                                int64_t left_seed) const {
  const auto products = gaussian_matmat(widths.right + widths.core, right_seed);
  const auto gamma = products.narrow(1, widths.right, widths.core);
  auto core = gaussian_product(gamma.mH(), rows_, widths.core, left_seed, /*transposed=*/false, widths.left).mH();
  at::Tensor sums;
  if (widths.sums) sums = rmatmat(at::ones({rows_, 1}, options_)).mH();
  return {products.narrow(1, 0, widths.right), gaussian_rmatmat(widths.left, left_seed), core, sums};
}

std::optional<double> LinearOperator::frobenius_norm() const {
  const auto norm = do_frobenius_norm();
  if (norm) count_passes(1);
  return norm;
}

at::Tensor LinearOperator::row_mean() const {
  const auto sums = rmatmat(at::ones({rows_, 1}, options_)).squeeze(1);
  return (sums.is_complex() ? at::conj_physical(sums) : sums) / std::max<int64_t>(rows_, 1);
}

std::optional<double> LinearOperator::distance_from_row(const at::Tensor&) const { return std::nullopt; }

void LinearOperator::check_finite(const char*) const {}

Lowered LinearOperator::lowered(bool) const { return {nullptr, 0.0}; }

Operator LinearOperator::select(const at::Tensor&) const {
  TORCH_INTERNAL_ASSERT(false, "only dense matrices come in batches");
}

at::Tensor LinearOperator::to_dense() const {
  if (columns_ <= rows_) return matmat(at::eye(columns_, options_));
  return materialized_adjoint(rmatmat(at::eye(rows_, options_)));
}

at::Tensor LinearOperator::columns_at(const at::Tensor& index) const {
  return matmat(unit_vectors(columns_, index, options_));
}

at::Tensor LinearOperator::rows_at(const at::Tensor& index) const {
  return materialized_adjoint(rmatmat(unit_vectors(rows_, index, options_)));
}

NormalProduct LinearOperator::do_normal_matmat(const at::Tensor& X, const NormalColumns& columns) const {
  const auto Y = do_matmat(X);
  return {Y.narrow(-1, columns.image_from, X.size(-1) - columns.image_from),
          do_rmatmat(Y.narrow(-1, 0, columns.co_columns))};
}

Residual LinearOperator::do_residual_product(const at::Tensor& B, const at::Tensor& X) const {
  auto residual = B - do_matmat(X);
  return {residual, do_rmatmat(residual)};
}

// Columns of Sᵀ are made some at a time.
template <typename Product>
static at::Tensor by_columns_of_sketch(const SketchOperator& S, const at::TensorOptions& options,
                                       const Product& product) {
  constexpr int64_t kColumns = 256;
  std::vector<at::Tensor> parts;
  for (int64_t row = 0; row < S.rows; row += kColumns) {
    const int64_t count = std::min(kColumns, S.rows - row);
    auto chosen = at::zeros({S.rows, count}, options);
    chosen.narrow(0, row, count).fill_diagonal_(1.0);
    parts.push_back(materialized_adjoint(product(S.apply_adjoint(chosen, 0, S.columns))));
  }
  return at::cat(parts);
}

at::Tensor LinearOperator::do_sketched(const SketchOperator& S) const {
  return by_columns_of_sketch(S, options_, [&](const at::Tensor& columns) { return do_rmatmat(columns); });
}

at::Tensor LinearOperator::do_sketched_adjoint(const SketchOperator& S) const {
  return by_columns_of_sketch(S, options_, [&](const at::Tensor& columns) { return do_matmat(columns); });
}

at::Tensor LinearOperator::do_gaussian_matmat(int64_t k, int64_t seed, int64_t column0) const {
  return do_matmat(gaussian(columns_, k, seed, column0, options_));
}

at::Tensor LinearOperator::do_gaussian_rmatmat(int64_t k, int64_t seed, int64_t column0) const {
  return do_rmatmat(gaussian(rows_, k, seed, column0, options_));
}

// ---- dense and sparse matrices ----

namespace {

// Products in blocks of rows pay where a few hundred rows fit the cache, and A does not.
constexpr int64_t kFusedRowBytes = 32 << 10, kCachedBytes = 8 << 20;

at::ScalarType half_of(at::ScalarType type) {
  switch (type) {
    case at::kDouble:
      return at::kFloat;
    case at::kComplexDouble:
      return at::kComplexFloat;
    case at::kFloat:
      return at::kBFloat16;
    default:
      return at::ScalarType::Undefined;
  }
}

double roundoff_of(at::ScalarType type) {
  return type == at::kBFloat16 ? 0x1p-9 : c10::toRealValueType(type) == at::kFloat ? 0x1p-24 : 0x1p-53;
}

// Whether products in `type` are about twice as fast as in the type of twice its size.
bool multiplies_fast(const at::Tensor& A, at::ScalarType type) {
  if (type != at::kBFloat16) return true;
#if defined(__x86_64__)
  if (A.is_cpu()) return __builtin_cpu_supports("amx-bf16") != 0;
#endif
#ifdef FASTLR_WITH_CUDA
  if (A.is_cuda()) {
    int major = 0;
    const auto status = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, A.device().index());
    return status == cudaSuccess && major >= 8;
  }
#endif
  return false;
}

// `type` may be another one than that of the entries: that of operands and products.
class DenseOperator final : public LinearOperator {
 public:
  explicit DenseOperator(const at::Tensor& A) : LinearOperator(A.size(-2), A.size(-1), A.options()), A_(A) {}
  DenseOperator(const at::Tensor& A, const DenseOperator& of, bool adjoint = false)
      : LinearOperator(A.size(-2), A.size(-1), of.options(), of, /*counts=*/true),
        A_(A),
        adjoint_(of.adjoint_ != adjoint) {}

  Operator adjoint() const { return std::make_shared<DenseOperator>(A_.mH(), *this, /*adjoint=*/true); }
  Operator select(const at::Tensor& index) const override {
    return std::make_shared<DenseOperator>(A_.index_select(0, index), *this);
  }
  Lowered lowered(bool even_if_slow) const override {
    const auto type = half_of(A_.scalar_type());
    if (type == at::ScalarType::Undefined || A_.dim() != 2 || !(even_if_slow || multiplies_fast(A_, type)))
      return {nullptr, 0.0};
    return {std::make_shared<DenseOperator>(A_.to(type), *this), roundoff_of(type)};
  }

  void check_finite(const char* caller) const override {
    count_passes(1);
    fastlr::check_finite(adjoint_ ? A_.mH() : A_, caller);  // the index is the caller's
  }
  std::optional<double> largest_magnitude() const override {
    count_passes(1);
    return fastlr::largest_magnitude(A_);
  }
  at::Tensor to_dense() const override {
    count_passes(1);
    return A_;
  }
  at::Tensor columns_at(const at::Tensor& index) const override { return lines_at(1, index); }
  at::Tensor rows_at(const at::Tensor& index) const override { return lines_at(0, index); }
  std::optional<int64_t> stored_entries() const override { return A_.numel(); }
  // at::mean sums pairwise: its rounding does not grow with the number of rows as a product's does.
  at::Tensor row_mean() const override {
    count_passes(1);
    return rows() == 0 ? at::zeros({columns()}, options()) : A_.mean(0);
  }
  std::optional<double> distance_from_row(const at::Tensor& row) const override {
    count_passes(1);
    constexpr int64_t kEntries = 1 << 20;
    double distance = 0.0;
    for (const auto& block : A_.split(std::max<int64_t>(kEntries / std::max<int64_t>(columns(), 1), 1)))
      distance = std::hypot(distance, fastlr::frobenius_norm(block - row));
    return distance;
  }

 protected:
  // Products are stored by columns: BLAS takes a result with a long first dimension about a quarter faster than its
  // transpose.
  at::Tensor do_matmat(const at::Tensor& X) const override { return after(at::matmul(before(X).mT(), A_.mT()).mT()); }
  at::Tensor do_rmatmat(const at::Tensor& Y) const override {
    return after(materialized_adjoint(at::matmul(before(Y).mH(), A_)));
  }
  // Omega is made block by block, where the product finds it in the cache.
  at::Tensor do_gaussian_matmat(int64_t k, int64_t seed, int64_t column0) const override {
    return gaussian_product(A_, columns(), k, seed, /*transposed=*/false, column0);
  }
  at::Tensor do_gaussian_rmatmat(int64_t k, int64_t seed, int64_t column0) const override {
    return gaussian_product(A_.mH(), rows(), k, seed, /*transposed=*/false, column0);
  }
  std::optional<double> do_frobenius_norm() const override { return fastlr::frobenius_norm(A_); }
  at::Tensor do_sketched(const SketchOperator& S) const override { return S.apply(A_); }
  at::Tensor do_sketched_adjoint(const SketchOperator& S) const override { return S.apply(A_.mH()); }

  // One read for a vector; several share it as the columns of a product do.
  Residual do_residual_product(const at::Tensor& B, const at::Tensor& X) const override {
    return X.size(1) == 1 && residual_fits(X) ? residual_of(B, X) : LinearOperator::do_residual_product(B, X);
  }

  // Every block of rows is multiplied by X, and its adjoint by the result, while it is in the cache.
  NormalProduct do_normal_matmat(const at::Tensor& X, const NormalColumns& wanted) const override {
    if (X.size(1) == 1 && wanted.co_columns == 1 && residual_fits(X)) {
      const auto [residual, co] = residual_of(at::Tensor(), X);
      return {residual.neg().narrow(1, wanted.image_from, 1 - wanted.image_from), co.neg()};
    }
    const int64_t row_bytes = columns() * A_.element_size();
    if (A_.dim() > 2 || !A_.is_cpu() || row_bytes > kFusedRowBytes || rows() * row_bytes < kCachedBytes)
      return LinearOperator::do_normal_matmat(X, wanted);
    // Blocks that fit the cache, but not so small that the sum of the results is most of the work.
    const int64_t height = std::max<int64_t>(256, cached_rows(row_bytes)), shares = row_shares(A_, rows(), height);
    const int64_t kept = X.size(1) - wanted.image_from;
    const bool in_place = wanted.image_from == 0 && A_.scalar_type() == X.scalar_type();
    const bool columns_first = !in_place || (A_.stride(0) == 1 && A_.stride(1) != 1);
    const auto image = columns_first ? at::empty({kept, rows()}, options()).t() : at::empty({rows(), kept}, options());
    const auto operand = before(X).t().contiguous();
    const auto parts = at::zeros({shares, wanted.co_columns, columns()}, options());  // of (AᴴA X)ᴴ
    const auto buffers = at::empty({shares, X.size(1), in_place ? 0 : height}, A_.options());
    for_row_blocks(rows(), height, shares, [&](int64_t share, int64_t row0, int64_t count) {
      const auto block = A_.narrow(0, row0, count);
      at::Tensor product;  // (block X)ᵀ
      if (in_place) {
        auto rows_of_image = image.narrow(0, row0, count);
        at::mm_out(rows_of_image, block, X);
        product = rows_of_image.t();
      } else {
        product = buffers.select(0, share).narrow(1, 0, count);
        at::mm_out(product, operand, block.t());
        if (kept > 0) image.narrow(0, row0, count).copy_(product.narrow(0, wanted.image_from, kept).t());
      }
      const auto conjugate = product.narrow(0, 0, wanted.co_columns).conj();
      auto part = parts.select(0, share);
      if (part.scalar_type() == A_.scalar_type()) {
        part.addmm_(conjugate, block);
      } else {
        part.add_(at::mm(conjugate, block));
      }
      if (share == 0) check_interrupt();
    });
    return {image, materialized_adjoint(shares == 1 ? parts.squeeze(0) : parts.sum(0))};
  }

 private:
  // Whether there is a kernel that reads A once for both products with a vector.
  bool residual_fits(const at::Tensor& x) const {
    return A_.dim() == 2 && A_.is_cpu() && !A_.is_complex() && A_.scalar_type() == x.scalar_type() &&
           (A_.stride(0) == 1 || A_.stride(1) == 1);
  }
  // For vectors; an undefined B is zero.
  Residual residual_of(const at::Tensor& B, const at::Tensor& X) const {
    const auto x = X.contiguous(), b = B.defined() ? B.contiguous() : B;
    const auto residual = at::empty({rows(), 1}, options());
    const auto sum = at::empty({columns(), 1}, options().dtype(at::kDouble));
    AT_DISPATCH_FLOATING_TYPES(A_.scalar_type(), "residual", [&] {
      kernels::residual_cpu<scalar_t>({A_.const_data_ptr<scalar_t>(), rows(), columns(), A_.stride(0), A_.stride(1)},
                                      x.const_data_ptr<scalar_t>(),
                                      b.defined() ? b.const_data_ptr<scalar_t>() : nullptr,
                                      residual.mutable_data_ptr<scalar_t>(), sum.mutable_data_ptr<double>());
    });
    return {residual, sum.to(A_.scalar_type())};
  }
  // Of a lazily conjugated matrix, without a copy of the whole.
  at::Tensor lines_at(int64_t axis, const at::Tensor& index) const {
    if (A_.is_conj()) return at::conj_physical(A_.conj().index_select(axis, index));
    return after(A_.index_select(axis, index));
  }
  at::Tensor before(const at::Tensor& X) const { return X.to(A_.scalar_type()); }
  at::Tensor after(const at::Tensor& Y) const { return Y.to(options().dtype().toScalarType()); }

  at::Tensor A_;
  bool adjoint_ = false;  // of what the caller gave
};

at::Tensor with_index_type(const at::Tensor& csr) {
  // MKL multiplies by 32-bit indices three times as fast as torch does by 64-bit ones.
  const auto limit = std::numeric_limits<int32_t>::max();
  const auto type = csr._nnz() < limit && csr.size(0) < limit && csr.size(1) < limit ? at::kInt : at::kLong;
  return at::_sparse_csr_tensor_unsafe(csr.crow_indices().to(type), csr.col_indices().to(type), csr.values(),
                                       csr.sizes(), csr.values().scalar_type(), at::kSparseCsr, csr.device(),
                                       std::nullopt);
}

// Views of the values of a sparse tensor are made below autograd, which has none of their kind.
class SparseOperator final : public LinearOperator {
 public:
  explicit SparseOperator(const at::Tensor& csr)
      : LinearOperator(csr.size(0), csr.size(1), csr.values().options()),
        A_(with_index_type(csr)),
        adjoint_(conjugate_transpose(A_)) {}

  void check_finite(const char* caller) const override {
    count_passes(1);
    const at::AutoDispatchBelowADInplaceOrView guard;
    const auto bad = at::isfinite(A_.values()).logical_not_().nonzero();
    if (bad.size(0) == 0) return;
    const int64_t first = bad[0][0].item<int64_t>();
    const int64_t row = (A_.crow_indices() <= first).sum().item<int64_t>() - 1;
    TORCH_CHECK_VALUE(false, caller, ": A must be finite, got ", A_.values()[first].item(), " at index (", row, ", ",
                      A_.col_indices()[first].item<int64_t>(), ")");
  }
  std::optional<double> largest_magnitude() const override {
    count_passes(1);
    const at::AutoDispatchBelowADInplaceOrView guard;
    return fastlr::largest_magnitude(A_.values());
  }
  // The entries that are stored, and of every column as many times |row_j| as are not.
  std::optional<double> distance_from_row(const at::Tensor& row) const override {
    count_passes(1);
    const at::AutoDispatchBelowADInplaceOrView guard;
    const auto columns_of_entries = A_.col_indices().to(at::kLong);
    const auto absent = rows() - at::bincount(columns_of_entries, {}, columns());
    return std::hypot(fastlr::frobenius_norm(A_.values() - row.index_select(0, columns_of_entries)),
                      fastlr::frobenius_norm(row * absent.to(at::kDouble).sqrt()));
  }
  std::optional<int64_t> stored_entries() const override { return A_._nnz(); }

 protected:
  at::Tensor do_matmat(const at::Tensor& X) const override { return at::mm(A_, X.contiguous()); }
  at::Tensor do_rmatmat(const at::Tensor& Y) const override { return at::mm(adjoint_, Y.contiguous()); }
  std::optional<double> do_frobenius_norm() const override {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return fastlr::frobenius_norm(A_.values());
  }
  at::Tensor do_sketched(const SketchOperator& S) const override {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return S.apply(A_);
  }
  at::Tensor do_sketched_adjoint(const SketchOperator& S) const override {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return S.apply(adjoint_);
  }

 private:
  at::Tensor A_, adjoint_;
};

// ---- operators made of another one ----

class AdjointOperator final : public LinearOperator {
 public:
  explicit AdjointOperator(Operator A)
      : LinearOperator(A->columns(), A->rows(), A->options(), *A, /*counts=*/false), A_(std::move(A)) {}

  const Operator& inner() const { return A_; }

  // The two sides change places.
  TwoSidedSketch two_sided_sketch(const TwoSidedWidths& widths, int64_t right_seed, int64_t left_seed) const override {
    if (widths.sums) return LinearOperator::two_sided_sketch(widths, right_seed, left_seed);
    auto sketch = A_->two_sided_sketch({widths.left, widths.right, widths.core}, left_seed, right_seed);
    return {std::move(sketch.left), std::move(sketch.right), sketch.core.mH(), {}};
  }
  void check_finite(const char* caller) const override { A_->check_finite(caller); }
  std::optional<double> largest_magnitude() const override { return A_->largest_magnitude(); }
  at::Tensor to_dense() const override { return materialized_adjoint(A_->to_dense()); }
  std::optional<int64_t> stored_entries() const override { return A_->stored_entries(); }

 protected:
  at::Tensor do_matmat(const at::Tensor& X) const override { return A_->rmatmat(X); }
  at::Tensor do_rmatmat(const at::Tensor& Y) const override { return A_->matmat(Y); }
  at::Tensor do_sketched(const SketchOperator& S) const override { return A_->sketched_adjoint(S); }
  at::Tensor do_sketched_adjoint(const SketchOperator& S) const override { return A_->sketched(S); }
  at::Tensor do_gaussian_matmat(int64_t k, int64_t seed, int64_t column0) const override {
    return A_->gaussian_rmatmat(k, seed, column0);
  }
  at::Tensor do_gaussian_rmatmat(int64_t k, int64_t seed, int64_t column0) const override {
    return A_->gaussian_matmat(k, seed, column0);
  }
  std::optional<double> do_frobenius_norm() const override { return A_->frobenius_norm(); }

 private:
  Operator A_;
};

// (I - 1 1ᵀ / m) A: no mean of A is needed, only means of thin products.
class CenteredOperator final : public LinearOperator {
 public:
  explicit CenteredOperator(Operator A)
      : LinearOperator(A->rows(), A->columns(), A->options(), *A, /*counts=*/false), A_(std::move(A)) {}

  // One read sees the mean when it is over: what it adds to the sketches is taken away from them. `left` and `core`
  // are linear in the rows of A, and the mean is one row 1 μᵀ of them.
  TwoSidedSketch two_sided_sketch(const TwoSidedWidths& widths, int64_t right_seed, int64_t left_seed) const override {
    if (!A_->reads_once()) return LinearOperator::two_sided_sketch(widths, right_seed, left_seed);
    auto sketch = A_->two_sided_sketch({widths.right, widths.left, widths.core, /*sums=*/true}, right_seed, left_seed);
    const int64_t m = sketch.right.size(0);
    if (m == 0) return sketch;
    const auto mean = sketch.sums / m;
    const auto ones = at::ones({1, m}, options());
    const auto psi = gaussian_product(ones, m, widths.left + widths.core, left_seed);
    const auto gamma = gaussian(columns(), widths.core, right_seed, widths.right, options());
    sketch.right = without_mean(sketch.right);
    sketch.left -= at::mm(mean.mH(), psi.narrow(1, 0, widths.left));
    sketch.core -= at::mm(psi.narrow(1, widths.left, widths.core).mH(), at::mm(mean, gamma));
    return sketch;
  }
  void check_finite(const char* caller) const override { A_->check_finite(caller); }
  std::optional<double> largest_magnitude() const override { return A_->largest_magnitude(); }
  at::Tensor to_dense() const override { return without_mean(A_->to_dense()); }

 protected:
  at::Tensor do_matmat(const at::Tensor& X) const override { return without_mean(A_->matmat(X)); }
  at::Tensor do_rmatmat(const at::Tensor& Y) const override { return A_->rmatmat(without_mean(Y)); }
  at::Tensor do_gaussian_matmat(int64_t k, int64_t seed, int64_t column0) const override {
    return without_mean(A_->gaussian_matmat(k, seed, column0));
  }
  std::optional<double> do_frobenius_norm() const override { return A_->distance_from_row(A_->row_mean()); }

 private:
  static at::Tensor without_mean(const at::Tensor& Y) { return Y.size(0) == 0 ? Y : Y - Y.mean(0, /*keepdim=*/true); }

  Operator A_;
};

// The power is shared between the factor and the product, so that neither leaves the range of the type.
class ScaledOperator final : public LinearOperator {
 public:
  ScaledOperator(Operator A, int exponent)
      : LinearOperator(A->rows(), A->columns(), A->options(), *A, /*counts=*/false),
        A_(std::move(A)),
        exponent_(exponent) {}

  void check_finite(const char* caller) const override { A_->check_finite(caller); }
  std::optional<double> largest_magnitude() const override {
    const auto magnitude = A_->largest_magnitude();
    return magnitude ? std::optional(std::ldexp(*magnitude, exponent_)) : magnitude;
  }
  at::Tensor to_dense() const override { return fastlr::scaled(A_->to_dense(), exponent_); }

 protected:
  at::Tensor do_matmat(const at::Tensor& X) const override { return after(A_->matmat(before(X))); }
  at::Tensor do_rmatmat(const at::Tensor& Y) const override { return after(A_->rmatmat(before(Y))); }
  std::optional<double> do_frobenius_norm() const override {
    const auto norm = A_->frobenius_norm();
    return norm ? std::optional(std::ldexp(*norm, exponent_)) : norm;
  }

 private:
  at::Tensor before(const at::Tensor& X) const { return fastlr::scaled(X, exponent_ / 2); }
  at::Tensor after(const at::Tensor& Y) const { return fastlr::scaled(Y, exponent_ - exponent_ / 2); }

  Operator A_;
  int exponent_;
};

// ---- row blocks: one read for a product, and for both products of a normal one ----

class RowBlocksOperator final : public LinearOperator {
 public:
  explicit RowBlocksOperator(std::shared_ptr<const RowBlocks> source)
      : LinearOperator(source->rows(), source->columns(), source->options()), source_(std::move(source)) {}

  bool reads_once() const override { return true; }

  void check_finite(const char* caller) const override {
    if (rows() == kUnknown) return;  // two_sided_sketch has looked, and there is no second read
    read([&](int64_t row0, const at::Tensor& block) { check_block(caller, row0, block); });
  }
  at::Tensor to_dense() const override {
    auto A = at::empty({rows(), columns()}, options());
    read([&](int64_t row0, const at::Tensor& block) { A.narrow(0, row0, block.size(0)).copy_(block); });
    return A;
  }
  // Of the triangle so far and the next rows, again and again.
  at::Tensor triangle(const at::Tensor& B) const override {
    auto R = at::empty({0, columns() + B.size(1)}, options());
    read([&](int64_t row0, const at::Tensor& block) {
      const auto own = at::cat({block, B.narrow(0, row0, block.size(0))}, 1);
      for (const auto& rows_of_own : own.split(std::max<int64_t>(2 * own.size(1), 1)))
        R = std::get<1>(at::linalg_qr(at::cat({R, rows_of_own}), "r"));
    });
    return R;
  }
  TwoSidedSketch two_sided_sketch(const TwoSidedWidths& widths, int64_t right_seed, int64_t left_seed) const override {
    const auto omega = gaussian(columns(), widths.right + widths.core, right_seed, 0, options());
    auto left = at::zeros({columns(), widths.left}, options());
    auto core = at::zeros({widths.core, widths.core}, options());
    at::Tensor sums;
    if (widths.sums) sums = at::zeros({1, columns()}, options());
    std::vector<at::Tensor> right;  // of every block: the number of rows may not be known yet
    read([&](int64_t row0, const at::Tensor& block) {
      const auto products = at::mm(block, omega);
      if (!std::isfinite(fastlr::largest_magnitude(products))) check_block("randomized_svd", row0, block);
      const auto psi = gaussian(block.size(0), widths.left + widths.core, left_seed, 0, options(), row0);
      right.push_back(products.narrow(1, 0, widths.right).clone(at::MemoryFormat::Contiguous));
      left.addmm_(block.mH(), psi.narrow(1, 0, widths.left));
      core.addmm_(psi.narrow(1, widths.left, widths.core).mH(), products.narrow(1, widths.right, widths.core));
      if (widths.sums) sums += block.sum(0);
    });
    if (right.empty()) right.push_back(at::empty({0, widths.right}, options()));
    return {at::cat(right), left, core, sums};
  }
  std::optional<double> largest_magnitude() const override {
    double magnitude = 0.0;
    read([&](int64_t, const at::Tensor& block) { magnitude = std::max(magnitude, fastlr::largest_magnitude(block)); });
    return magnitude;
  }

  std::optional<double> distance_from_row(const at::Tensor& row) const override {
    double distance = 0.0;
    read([&](int64_t, const at::Tensor& block) {
      distance = std::hypot(distance, fastlr::frobenius_norm(block - row));
    });
    return distance;
  }

 protected:
  at::Tensor do_matmat(const at::Tensor& X) const override {
    auto Y = at::empty({rows(), X.size(1)}, options());
    visit([&](int64_t row0, const at::Tensor& block) {
      auto part = Y.narrow(0, row0, block.size(0));
      at::mm_out(part, block, X);
    });
    return Y;
  }
  at::Tensor do_rmatmat(const at::Tensor& Y) const override {
    auto Z = at::zeros({columns(), Y.size(1)}, options());
    visit([&](int64_t row0, const at::Tensor& block) { Z.addmm_(block.mH(), Y.narrow(0, row0, block.size(0))); });
    return Z;
  }
  NormalProduct do_normal_matmat(const at::Tensor& X, const NormalColumns& wanted) const override {
    const int64_t kept = X.size(1) - wanted.image_from;
    auto image = at::empty({rows(), kept}, options());
    auto co = at::zeros({columns(), wanted.co_columns}, options());
    visit([&](int64_t row0, const at::Tensor& block) {
      const auto part = DenseOperator(block).normal_matmat(X, wanted);
      image.narrow(0, row0, block.size(0)).copy_(part.image);
      co += part.co;
    });
    return {image, co};
  }
  Residual do_residual_product(const at::Tensor& B, const at::Tensor& X) const override {
    auto residual = at::empty({rows(), X.size(1)}, options());
    auto co = at::zeros({columns(), X.size(1)}, options());
    visit([&](int64_t row0, const at::Tensor& block) {
      const auto part = DenseOperator(block).residual_product(B.narrow(0, row0, block.size(0)), X);
      residual.narrow(0, row0, block.size(0)).copy_(part.residual);
      co += part.co;
    });
    return {residual, co};
  }
  at::Tensor do_sketched(const SketchOperator& S) const override {
    auto Y = at::zeros({S.rows, columns()}, options());
    visit([&](int64_t row0, const at::Tensor& block) { Y += S.apply(block, row0); });
    return Y;
  }
  at::Tensor do_sketched_adjoint(const SketchOperator& S) const override {
    auto Y = at::empty({S.rows, rows()}, options());
    visit([&](int64_t row0, const at::Tensor& block) { Y.narrow(1, row0, block.size(0)).copy_(S.apply(block.mH())); });
    return Y;
  }
  // The rows of Omega that a block needs are made when it is read.
  at::Tensor do_gaussian_rmatmat(int64_t k, int64_t seed, int64_t column0) const override {
    auto Z = at::zeros({columns(), k}, options());
    visit([&](int64_t row0, const at::Tensor& block) {
      Z.addmm_(block.mH(), gaussian(block.size(0), k, seed, column0, options(), row0));
    });
    return Z;
  }
  std::optional<double> do_frobenius_norm() const override {
    double norm = 0.0;
    visit([&](int64_t, const at::Tensor& block) { norm = std::hypot(norm, fastlr::frobenius_norm(block)); });
    return norm;
  }

 private:
  void check_block(const char* caller, int64_t row0, const at::Tensor& block) const {
    const auto bad = at::isfinite(block).logical_not_().nonzero();
    if (bad.size(0) == 0) return;
    const int64_t row = bad[0][0].item<int64_t>(), column = bad[0][1].item<int64_t>();
    auto index = std::pair(row0 + row, column);
    if (source_->of_adjoint()) std::swap(index.first, index.second);
    TORCH_CHECK_VALUE(false, caller, ": A must be finite, got ", block[row][column].item(), " at index (", index.first,
                      ", ", index.second, ")");
  }
  void read(const RowBlocks::Visitor& visitor) const {
    count_passes(1);
    visit(visitor);
  }
  // What is filled block by block is whole only if every read gives the same number of rows.
  void visit(const RowBlocks::Visitor& visitor) const {
    int64_t seen = 0;
    source_->read([&](int64_t row0, const at::Tensor& block) {
      seen += block.size(0);
      TORCH_CHECK_VALUE(rows() == kUnknown || seen <= rows(), "row blocks: a read gave more than the ", rows(),
                        " rows of A; every read must give the same rows");
      visitor(row0, block);
      check_interrupt();
    });
    TORCH_CHECK_VALUE(rows() == kUnknown || seen == rows(), "row blocks: a read gave ", seen, " of the ", rows(),
                      " rows of A; every read must give the same rows");
  }

  std::shared_ptr<const RowBlocks> source_;
};

}  // namespace

Operator as_operator(const at::Tensor& A) {
  TORCH_CHECK_VALUE(A.dim() == 2 || (A.dim() == 3 && A.layout() == at::kStrided),
                    "A must have 2 dimensions, got shape ", A.sizes());
  if (A.layout() == at::kStrided) return std::make_shared<DenseOperator>(A);
  const at::AutoDispatchBelowADInplaceOrView guard;
  return std::make_shared<SparseOperator>(A.layout() == at::kSparseCsr ? A : A.to_sparse_csr());
}

Operator as_operator(std::shared_ptr<const RowBlocks> blocks) {
  const bool of_adjoint = blocks->of_adjoint();
  Operator rows = std::make_shared<RowBlocksOperator>(std::move(blocks));
  return of_adjoint ? adjoint(std::move(rows)) : rows;
}

Operator adjoint(Operator A) {
  if (const auto dense = std::dynamic_pointer_cast<const DenseOperator>(A)) return dense->adjoint();
  if (const auto* adjoint = dynamic_cast<const AdjointOperator*>(A.get())) return adjoint->inner();
  return std::make_shared<AdjointOperator>(std::move(A));
}
Operator centered(Operator A) { return std::make_shared<CenteredOperator>(std::move(A)); }
Operator scaled(Operator A, int exponent) {
  return exponent == 0 ? A : std::make_shared<ScaledOperator>(std::move(A), exponent);
}

}  // namespace fastlr
