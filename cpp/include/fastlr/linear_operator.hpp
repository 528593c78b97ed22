// Matrices known by their products: what the algorithms are written over.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <optional>
#include <utility>

#include <fastlr/sketch_operator.hpp>

namespace fastlr {

// What one read of A leaves behind, for Gaussian matrices of two seeds.
struct TwoSidedSketch {
  at::Tensor right;  // A * Omega, columns [0, k)
  at::Tensor left;   // Aᴴ * Psi, columns [0, l)
  at::Tensor core;   // Phiᴴ A Gamma, s x s: Phi and Gamma are the s columns that follow those of Psi and Omega
  at::Tensor sums;   // of the columns of A, 1 x n, where they are asked for
};
struct TwoSidedWidths {
  int64_t right, left, core;
  bool sums = false;
};

// Columns [image_from, k) of A X, and columns [0, co_columns) of AᴴA X.
struct NormalProduct {
  at::Tensor image, co;
};
struct NormalColumns {
  int64_t image_from, co_columns;
};

// R = B - A X, and Aᴴ R.
struct Residual {
  at::Tensor residual, co;
};

class LinearOperator;
struct Lowered {
  std::shared_ptr<const LinearOperator> A;  // its operands and products have the type of the original
  double roundoff;                          // of the type that it computes in
};

// An m x n matrix A of float32, float64, complex64 or complex128, or a batch of dense ones, whose products are then
// batches too. Products of it are counted, checked for their shape and type, and give Ctrl-C a chance; derived classes
// implement the virtual functions.
class LinearOperator {
 public:
  LinearOperator(int64_t rows, int64_t columns, at::TensorOptions options);
  // Made of another one, on whose account its passes go; `counts` where they are not that one's own products.
  LinearOperator(int64_t rows, int64_t columns, at::TensorOptions options, const LinearOperator& of, bool counts);
  virtual ~LinearOperator() = default;
  LinearOperator(const LinearOperator&) = delete;
  LinearOperator& operator=(const LinearOperator&) = delete;

  int64_t rows() const { return rows_; }
  int64_t columns() const { return columns_; }
  const at::TensorOptions& options() const { return options_; }

  // Passes over A so far: products, reads of a source of row blocks, scans.
  int64_t passes() const { return *passes_; }

  at::Tensor matmat(const at::Tensor& X) const;   // A X
  at::Tensor rmatmat(const at::Tensor& Y) const;  // Aᴴ Y

  // Both products for X of k columns, of which only some may be wanted: the others are not kept. One pass where a
  // source is read row block by row block, two elsewhere.
  virtual bool reads_once() const { return false; }
  NormalProduct normal_matmat(const at::Tensor& X, const NormalColumns& columns) const;

  // One pass where a source or a dense matrix is read row block by row block, two elsewhere.
  Residual residual_product(const at::Tensor& B, const at::Tensor& X) const;

  // S A and S Aᴴ, dense. One pass; where only products are known, those with the dense S.
  at::Tensor sketched(const SketchOperator& S) const;
  at::Tensor sketched_adjoint(const SketchOperator& S) const;

  // The upper triangle R, min(m, n + k) x (n + k), of [A, B] = Q R: A itself is not kept. One pass.
  virtual at::Tensor triangle(const at::Tensor& B) const;

  // Some columns, m x k, and some rows, k x n, in their order: read where the entries lie in memory, elsewhere one
  // product with unit vectors, which is exact.
  virtual at::Tensor columns_at(const at::Tensor& index) const;
  virtual at::Tensor rows_at(const at::Tensor& index) const;

  // Entries that are stored; nothing where there are only products.
  virtual std::optional<int64_t> stored_entries() const { return std::nullopt; }

  // The same matrix in a type of half the size; nothing where there is none that the hardware multiplies faster, or
  // with `even_if_slow` where there is none at all. Costs a copy.
  virtual Lowered lowered(bool even_if_slow) const;

  // A * Omega and Aᴴ * Omega for the Gaussian Omega of `seed`, columns [column0, column0 + k).
  at::Tensor gaussian_matmat(int64_t k, int64_t seed, int64_t column0 = 0) const;
  at::Tensor gaussian_rmatmat(int64_t k, int64_t seed, int64_t column0 = 0) const;

  // One pass where rows are read block by block, two elsewhere.
  virtual TwoSidedSketch two_sided_sketch(const TwoSidedWidths& widths, int64_t right_seed, int64_t left_seed) const;

  // ‖A‖_F, where it is known but for rounding; nothing where only products are.
  std::optional<double> frobenius_norm() const;

  // The mean of the rows, of length n.
  virtual at::Tensor row_mean() const;

  // ‖A - 1 rowᵀ‖_F, where the entries can be seen: free of the cancellation of ‖A‖² - m ‖row‖².
  virtual std::optional<double> distance_from_row(const at::Tensor& row) const;

  // Raises ValueError with the first index at which A is not finite, where its entries can be seen.
  virtual void check_finite(const char* caller) const;

  // A itself, m x n.
  virtual at::Tensor to_dense() const;

  // Some matrices of a batch.
  virtual std::shared_ptr<const LinearOperator> select(const at::Tensor& index) const;

  // The largest magnitude of an entry, where the entries can be seen.
  virtual std::optional<double> largest_magnitude() const { return std::nullopt; }

 protected:
  virtual at::Tensor do_matmat(const at::Tensor& X) const = 0;
  virtual at::Tensor do_rmatmat(const at::Tensor& Y) const = 0;
  virtual NormalProduct do_normal_matmat(const at::Tensor& X, const NormalColumns& columns) const;
  virtual Residual do_residual_product(const at::Tensor& B, const at::Tensor& X) const;
  virtual at::Tensor do_sketched(const SketchOperator& S) const;
  virtual at::Tensor do_sketched_adjoint(const SketchOperator& S) const;
  virtual at::Tensor do_gaussian_matmat(int64_t k, int64_t seed, int64_t column0) const;
  virtual at::Tensor do_gaussian_rmatmat(int64_t k, int64_t seed, int64_t column0) const;
  virtual std::optional<double> do_frobenius_norm() const { return std::nullopt; }
  void count_passes(int64_t passes) const { *passes_ += counts_ ? passes : 0; }

 private:
  at::Tensor checked(const at::Tensor& product, int64_t rows, int64_t columns, const char* name) const;

  int64_t rows_, columns_;
  at::TensorOptions options_;
  std::shared_ptr<int64_t> passes_;
  bool counts_ = true;
};

using Operator = std::shared_ptr<const LinearOperator>;

// A dense matrix or a batch of them, or a sparse matrix of layout COO, CSR or CSC. A sparse one is kept twice, by rows
// and by columns, so that both products run over rows of the result.
Operator as_operator(const at::Tensor& A);

// Aᴴ, A - 1 μᵀ with μ the mean of the rows of A, and A * 2^exponent, by products with A.
Operator adjoint(Operator A);
Operator centered(Operator A);
Operator scaled(Operator A, int exponent);

// Rows of A that are read block by block, in order; every read visits all of them once, or is a ValueError. Where the
// number of rows shows only when they are read (rows() is kUnknown), they can be read once, by two_sided_sketch.
constexpr int64_t kUnknown = -1;
class RowBlocks {
 public:
  using Visitor = std::function<void(int64_t first_row, const at::Tensor& block)>;
  virtual ~RowBlocks() = default;
  virtual int64_t rows() const = 0;
  virtual int64_t columns() const = 0;
  virtual at::TensorOptions options() const = 0;
  virtual bool of_adjoint() const { return false; }  // whether these are the rows of Aᴴ
  virtual void read(const Visitor& visit) const = 0;
};

Operator as_operator(std::shared_ptr<const RowBlocks> blocks);

// Called between products; may throw to stop an algorithm. Set once, when the library is loaded.
void set_interrupt_check(void (*check)());
void check_interrupt();

}  // namespace fastlr
