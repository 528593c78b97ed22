#include <fastlr/linear_operator.hpp>

#include <ATen/ATen.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

#include <fastlr/random.hpp>
#include <fastlr/sketch.hpp>

#include "checks.hpp"
#include "sparse.hpp"

namespace fastlr {
namespace {

std::atomic<void (*)()> interrupt_check{nullptr};

}  // namespace

void set_interrupt_check(void (*check)()) { interrupt_check = check; }

void check_interrupt() {
  if (const auto check = interrupt_check.load()) check();
}

// ---- what all operators share ----

LinearOperator::LinearOperator(int64_t rows, int64_t columns, at::TensorOptions options)
    : rows_(rows), columns_(columns), options_(options) {}

at::Tensor LinearOperator::checked(const at::Tensor& product, int64_t rows, int64_t columns, const char* name) const {
  TORCH_CHECK_VALUE(product.dim() == 2 && product.size(0) == rows && product.size(1) == columns,
                    "LinearOperator: ", name, " must return shape (", rows, ", ", columns, "), got ", product.sizes());
  TORCH_CHECK_TYPE(product.scalar_type() == options_.dtype().toScalarType(), "LinearOperator: ", name,
                   " must return dtype ", options_.dtype(), ", got ", product.scalar_type());
  check_interrupt();
  return product;
}

at::Tensor LinearOperator::matmat(const at::Tensor& X) const {
  ++passes_;
  return checked(do_matmat(X), rows_, X.size(1), "matmat");
}

at::Tensor LinearOperator::rmatmat(const at::Tensor& Y) const {
  ++passes_;
  return checked(do_rmatmat(Y), columns_, Y.size(1), "rmatmat");
}

std::pair<at::Tensor, at::Tensor> LinearOperator::normal_matmat(const at::Tensor& X) const {
  passes_ += fuses_normal() ? 1 : 2;
  auto [Y, Z] = do_normal_matmat(X);
  return {checked(Y, rows_, X.size(1), "matmat"), checked(Z, columns_, X.size(1), "rmatmat")};
}

at::Tensor LinearOperator::gaussian_matmat(int64_t k, int64_t seed, int64_t column0) const {
  ++passes_;
  return checked(do_gaussian_matmat(k, seed, column0), rows_, k, "matmat");
}

at::Tensor LinearOperator::gaussian_rmatmat(int64_t k, int64_t seed, int64_t column0) const {
  ++passes_;
  return checked(do_gaussian_rmatmat(k, seed, column0), columns_, k, "rmatmat");
}

TwoSidedSketch LinearOperator::two_sided_sketch(const TwoSidedWidths& widths, int64_t right_seed,
                                                int64_t left_seed) const {
  const auto products = gaussian_matmat(widths.right + widths.core, right_seed);
  const auto gamma = products.narrow(1, widths.right, widths.core);
  auto core = gaussian_product(gamma.mH(), rows_, widths.core, left_seed, /*transposed=*/false, widths.left).mH();
  return {products.narrow(1, 0, widths.right), gaussian_rmatmat(widths.left, left_seed), core};
}

std::optional<double> LinearOperator::frobenius_norm() const {
  const auto norm = do_frobenius_norm();
  if (norm) ++passes_;
  return norm;
}

at::Tensor LinearOperator::row_mean() const {
  const auto sums = rmatmat(at::ones({rows_, 1}, options_)).squeeze(1);
  return (sums.is_complex() ? at::conj_physical(sums) : sums) / std::max<int64_t>(rows_, 1);
}

std::optional<double> LinearOperator::distance_from_row(const at::Tensor&) const { return std::nullopt; }

void LinearOperator::check_finite(const char*) const {}

at::Tensor LinearOperator::to_dense() const {
  if (columns_ <= rows_) return matmat(at::eye(columns_, options_));
  return materialized_adjoint(rmatmat(at::eye(rows_, options_)));
}

std::pair<at::Tensor, at::Tensor> LinearOperator::do_normal_matmat(const at::Tensor& X) const {
  auto Y = do_matmat(X);
  auto Z = do_rmatmat(Y);
  return {std::move(Y), std::move(Z)};
}

at::Tensor LinearOperator::do_gaussian_matmat(int64_t k, int64_t seed, int64_t column0) const {
  return do_matmat(gaussian(columns_, k, seed, column0, options_));
}

at::Tensor LinearOperator::do_gaussian_rmatmat(int64_t k, int64_t seed, int64_t column0) const {
  return do_rmatmat(gaussian(rows_, k, seed, column0, options_));
}

// ---- dense and sparse matrices ----

namespace {

class DenseOperator final : public LinearOperator {
 public:
  explicit DenseOperator(const at::Tensor& A) : LinearOperator(A.size(0), A.size(1), A.options()), A_(A) {}

  void check_finite(const char* caller) const override {
    count_passes(1);
    fastlr::check_finite(A_, caller);
  }
  std::optional<double> largest_magnitude() const override {
    count_passes(1);
    return fastlr::largest_magnitude(A_);
  }
  at::Tensor to_dense() const override {
    count_passes(1);
    return A_;
  }
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
  at::Tensor do_matmat(const at::Tensor& X) const override { return at::mm(A_, X); }
  at::Tensor do_rmatmat(const at::Tensor& Y) const override { return at::mm(A_.mH(), Y); }
  // Omega is made block by block, where the product finds it in the cache.
  at::Tensor do_gaussian_matmat(int64_t k, int64_t seed, int64_t column0) const override {
    return gaussian_product(A_, columns(), k, seed, /*transposed=*/false, column0);
  }
  at::Tensor do_gaussian_rmatmat(int64_t k, int64_t seed, int64_t column0) const override {
    return gaussian_product(A_.mH(), rows(), k, seed, /*transposed=*/false, column0);
  }
  std::optional<double> do_frobenius_norm() const override { return fastlr::frobenius_norm(A_); }

 private:
  at::Tensor A_;
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

 protected:
  at::Tensor do_matmat(const at::Tensor& X) const override { return at::mm(A_, X.contiguous()); }
  at::Tensor do_rmatmat(const at::Tensor& Y) const override { return at::mm(adjoint_, Y.contiguous()); }
  std::optional<double> do_frobenius_norm() const override {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return fastlr::frobenius_norm(A_.values());
  }

 private:
  at::Tensor A_, adjoint_;
};

// ---- operators made of another one ----

class AdjointOperator final : public LinearOperator {
 public:
  explicit AdjointOperator(Operator A) : LinearOperator(A->columns(), A->rows(), A->options()), A_(std::move(A)) {}

  void check_finite(const char* caller) const override { A_->check_finite(caller); }
  std::optional<double> largest_magnitude() const override { return A_->largest_magnitude(); }
  at::Tensor to_dense() const override { return materialized_adjoint(A_->to_dense()); }

 protected:
  at::Tensor do_matmat(const at::Tensor& X) const override { return A_->rmatmat(X); }
  at::Tensor do_rmatmat(const at::Tensor& Y) const override { return A_->matmat(Y); }
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
  explicit CenteredOperator(Operator A) : LinearOperator(A->rows(), A->columns(), A->options()), A_(std::move(A)) {}

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
      : LinearOperator(A->rows(), A->columns(), A->options()), A_(std::move(A)), exponent_(exponent) {}

  void check_finite(const char* caller) const override { A_->check_finite(caller); }
  std::optional<double> largest_magnitude() const override {
    const auto magnitude = A_->largest_magnitude();
    return magnitude ? std::optional(std::ldexp(*magnitude, exponent_)) : magnitude;
  }
  at::Tensor to_dense() const override { return fastlr::scaled(A_->to_dense(), exponent_); }
  bool fuses_normal() const override { return false; }

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

  bool fuses_normal() const override { return true; }

  void check_finite(const char* caller) const override {
    read([&](int64_t row0, const at::Tensor& block) { check_block(caller, row0, block); });
  }
  TwoSidedSketch two_sided_sketch(const TwoSidedWidths& widths, int64_t right_seed, int64_t left_seed) const override {
    const auto omega = gaussian(columns(), widths.right + widths.core, right_seed, 0, options());
    auto left = at::zeros({columns(), widths.left}, options());
    auto core = at::zeros({widths.core, widths.core}, options());
    std::vector<at::Tensor> right;  // of every block: the number of rows may not be known yet
    read([&](int64_t row0, const at::Tensor& block) {
      const auto products = at::mm(block, omega);
      if (!std::isfinite(fastlr::largest_magnitude(products))) check_block("randomized_svd", row0, block);
      const auto psi = gaussian(block.size(0), widths.left + widths.core, left_seed, 0, options(), row0);
      right.push_back(products.narrow(1, 0, widths.right).clone(at::MemoryFormat::Contiguous));
      left.addmm_(block.mH(), psi.narrow(1, 0, widths.left));
      core.addmm_(psi.narrow(1, widths.left, widths.core).mH(), products.narrow(1, widths.right, widths.core));
    });
    if (right.empty()) right.push_back(at::empty({0, widths.right}, options()));
    return {at::cat(right), left, core};
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
    source_->read([&](int64_t row0, const at::Tensor& block) {
      auto part = Y.narrow(0, row0, block.size(0));
      at::mm_out(part, block, X);
    });
    return Y;
  }
  at::Tensor do_rmatmat(const at::Tensor& Y) const override {
    auto Z = at::zeros({columns(), Y.size(1)}, options());
    source_->read(
        [&](int64_t row0, const at::Tensor& block) { Z.addmm_(block.mH(), Y.narrow(0, row0, block.size(0))); });
    return Z;
  }
  std::pair<at::Tensor, at::Tensor> do_normal_matmat(const at::Tensor& X) const override {
    auto Y = at::empty({rows(), X.size(1)}, options());
    auto Z = at::zeros({columns(), X.size(1)}, options());
    source_->read([&](int64_t row0, const at::Tensor& block) {
      auto part = Y.narrow(0, row0, block.size(0));
      at::mm_out(part, block, X);
      Z.addmm_(block.mH(), part);
    });
    return {Y, Z};
  }
  // The rows of Omega that a block needs are made when it is read.
  at::Tensor do_gaussian_rmatmat(int64_t k, int64_t seed, int64_t column0) const override {
    auto Z = at::zeros({columns(), k}, options());
    source_->read([&](int64_t row0, const at::Tensor& block) {
      Z.addmm_(block.mH(), gaussian(block.size(0), k, seed, column0, options(), row0));
    });
    return Z;
  }
  std::optional<double> do_frobenius_norm() const override {
    double norm = 0.0;
    source_->read([&](int64_t, const at::Tensor& block) { norm = std::hypot(norm, fastlr::frobenius_norm(block)); });
    return norm;
  }

 private:
  static void check_block(const char* caller, int64_t row0, const at::Tensor& block) {
    const auto bad = at::isfinite(block).logical_not_().nonzero();
    if (bad.size(0) == 0) return;
    const int64_t row = bad[0][0].item<int64_t>(), column = bad[0][1].item<int64_t>();
    TORCH_CHECK_VALUE(false, caller, ": A must be finite, got ", block[row][column].item(), " at index (", row0 + row,
                      ", ", column, ")");
  }
  void read(const RowBlocks::Visitor& visit) const {
    count_passes(1);
    source_->read(visit);
  }

  std::shared_ptr<const RowBlocks> source_;
};

}  // namespace

Operator as_operator(const at::Tensor& A) {
  TORCH_CHECK_VALUE(A.dim() == 2, "A must have 2 dimensions, got shape ", A.sizes());
  if (A.layout() == at::kStrided) return std::make_shared<DenseOperator>(A);
  const at::AutoDispatchBelowADInplaceOrView guard;
  return std::make_shared<SparseOperator>(A.layout() == at::kSparseCsr ? A : A.to_sparse_csr());
}

Operator as_operator(std::shared_ptr<const RowBlocks> blocks) {
  return std::make_shared<RowBlocksOperator>(std::move(blocks));
}

Operator adjoint(Operator A) { return std::make_shared<AdjointOperator>(std::move(A)); }
Operator centered(Operator A) { return std::make_shared<CenteredOperator>(std::move(A)); }
Operator scaled(Operator A, int exponent) {
  return exponent == 0 ? A : std::make_shared<ScaledOperator>(std::move(A), exponent);
}

}  // namespace fastlr
