// What Python cannot reach: the C++ API from a plain libtorch program, and the bits of the draws on another
// instruction set than the one the kernels choose.
#include <ATen/ATen.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include <fastlr/interpolative.hpp>
#include <fastlr/lstsq.hpp>
#include <fastlr/orthonormalize.hpp>
#include <fastlr/philox.hpp>
#include <fastlr/random.hpp>
#include <fastlr/randomized_svd.hpp>
#include <fastlr/sketch.hpp>

namespace {

using fastlr::RandomKind;

#define CHECK(condition)                                                            \
  do {                                                                              \
    if (!(condition)) {                                                             \
      std::fprintf(stderr, "%s:%d: %s is false\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                                 \
    }                                                                               \
  } while (false)

// Every entry again, one at a time, by this file's scalar code: the library's vector code must agree to the bit.
template <typename T, RandomKind kind>
void check_bits(at::ScalarType dtype) {
  constexpr int64_t seed = 0x0123456789abcdef, row0 = 3, column0 = 1000, rows = 21, columns = 130;
  constexpr int64_t height = fastlr::philox::Variates<T>::count;
  const auto drawn = at::empty({rows, columns}, dtype);
  fastlr::fill_random(drawn, kind, seed, row0, column0);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      const int64_t row = row0 + i;
      const auto group = fastlr::philox::variates_at<T, kind>(seed, row / height, column0 + j);
      CHECK(drawn.const_data_ptr<T>()[i * columns + j] == group.v[row % height]);
    }
  }
}

template <typename T>
void check_all_kinds(at::ScalarType dtype) {
  check_bits<T, RandomKind::uniform>(dtype);
  check_bits<T, RandomKind::gaussian>(dtype);
  check_bits<T, RandomKind::sign>(dtype);
}

// A window of a larger tensor is filled, and nothing beside it.
void check_strided_fill() {
  const auto whole = at::zeros({6, 10}, at::kDouble), window = whole.narrow(0, 2, 3).narrow(1, 4, 5);
  fastlr::fill_random(window, RandomKind::sign, 7);
  CHECK(window.abs().sum().item<double>() == 15);
  CHECK(whole.abs().sum().item<double>() == 15);
}

void check_algorithms() {
  const auto A = at::mm(at::rand({60, 4}, at::kDouble), at::rand({4, 50}, at::kDouble));
  const auto svd = fastlr::randomized_svd(fastlr::as_operator(A), {.rank = 4});
  const auto product = at::mm(svd.U * svd.S, svd.Vh);
  const double scale = A.norm().item<double>();
  // Rank 4 exactly: only rounding is left, 40 sqrt(min(m, n)) u of the norm.
  CHECK((A - product).norm().item<double>() <= 40 * 7.1 * 0x1p-53 * scale);
  const auto columns = fastlr::interpolative(fastlr::as_operator(A), {.rank = 4, .tol = {}});
  CHECK((A - at::mm(A.index_select(1, columns.indices), columns.coefficients)).norm().item<double>() <=
        1e3 * 0x1p-53 * scale);
  const auto Q = fastlr::orthonormalize(A);
  CHECK((at::mm(Q.t(), Q) - at::eye(50, at::kDouble)).norm().item<double>() <= 10 * 7.1 * 0x1p-53);
  const auto sketched = fastlr::gaussian_product(A, 50, 3, 1);
  CHECK(sketched.size(0) == 60 && sketched.size(1) == 3);
}

// A matrix read in blocks of rows, which counts the reads.
class Blocks final : public fastlr::RowBlocks {
 public:
  Blocks(at::Tensor A, int64_t height, bool rows_known) : A_(std::move(A)), height_(height), rows_known_(rows_known) {}
  int64_t rows() const override { return rows_known_ ? A_.size(0) : fastlr::kUnknown; }
  int64_t columns() const override { return A_.size(1); }
  at::TensorOptions options() const override { return A_.options(); }
  void read(const Visitor& visit) const override {
    ++reads;
    for (int64_t row = 0; row < A_.size(0); row += height_)
      visit(row, A_.narrow(0, row, std::min(height_, A_.size(0) - row)));
  }
  mutable int64_t reads = 0;

 private:
  at::Tensor A_;
  int64_t height_;
  bool rows_known_;
};

// Blocks of any height give the singular values of the whole matrix, in the documented number of reads.
void check_row_blocks(at::ScalarType dtype) {
  const auto tall = at::mm(at::randn({90, 40}, dtype), at::diag(at::pow(0.7, at::arange(40, at::kDouble))).to(dtype));
  for (const auto& A : {tall, tall.mT().contiguous()}) {
    const auto whole = fastlr::randomized_svd(fastlr::as_operator(A), {.rank = 6, .power_iters = 2});
    for (const int64_t height : {1, 7, 90}) {
      const auto blocks = std::make_shared<Blocks>(A, height, true);
      const auto svd = fastlr::randomized_svd(fastlr::as_operator(blocks), {.rank = 6, .power_iters = 2});
      // The same draws, sums in another order: 40 sqrt(min(m, n)) u of the norm.
      CHECK((svd.S - whole.S).norm().item<double>() <= 40 * 6.4 * 0x1p-53 * A.norm().item<double>());
      const int64_t reads = A.size(0) > A.size(1) ? 3 : 6;  // 1 + q where Aᴴ A X is one read, 2 + 2 q elsewhere
      CHECK(blocks->reads == reads && svd.passes == reads);
    }
  }
}

// Rows that come by once, without their number: one read, and an error certified by its own probe.
void check_one_read() {
  const auto A = at::mm(at::randn({90, 5}, at::kDouble), at::randn({5, 40}, at::kDouble));
  for (const auto method : {fastlr::SvdMethod::single_pass, fastlr::SvdMethod::nystrom}) {
    const auto blocks = std::make_shared<Blocks>(A, 8, false);
    const auto svd = fastlr::randomized_svd(fastlr::as_operator(blocks), {.rank = 5, .method = method});
    CHECK(blocks->reads == 1 && svd.passes == 1);
    // Exact rank: rounding, times the condition of the sketches' least-squares problems, some hundred.
    CHECK((A - at::mm(svd.U * svd.S, svd.Vh)).norm().item<double>() <= 1e4 * 0x1p-53 * A.norm().item<double>());
  }
}

// Products with one vector, which a kernel of its own takes, in both layouts; and least squares over them.
void check_one_vector(at::ScalarType type) {
  const auto rows = at::randn({5000, 13}, type), x = at::randn({13, 1}, type), b = at::randn({5000, 1}, type);
  // Sums of 5000 products: a hundred roundoffs times the root of that.
  const double allowed = 7e3 * (type == at::kFloat ? 0x1p-24 : 0x1p-53);
  const auto near = [&](const at::Tensor& got, const at::Tensor& expected) {
    return (got - expected).norm().item<double>() <= allowed * expected.norm().item<double>();
  };
  for (const auto& A : {rows, rows.t().contiguous().t()}) {
    const auto op = fastlr::as_operator(A);
    const auto normal = op->normal_matmat(x, {/*image_from=*/0, /*co_columns=*/1});
    CHECK(near(normal.image, at::mm(A, x)) && near(normal.co, at::mm(A.t(), at::mm(A, x))));
    const auto residual = op->residual_product(b, x);
    CHECK(near(residual.residual, b - at::mm(A, x)) && near(residual.co, at::mm(A.t(), b - at::mm(A, x))));
    const auto found = fastlr::lstsq(op, at::mm(A, x),
                                     {.method = fastlr::LstsqMethod::refined,
                                      .sketch = fastlr::SketchKind::sparse_sign,
                                      .sketch_rows = std::nullopt,
                                      .nonzeros = 8,
                                      .damp = 0.0,
                                      .tol = std::nullopt,
                                      .max_iters = std::nullopt,
                                      .seed = 0});
    CHECK(found.converged && near(found.x, x));
  }
}

// ATen's exception types reach a C++ caller with their message.
void check_errors() {
  bool raised = false;
  try {
    fastlr::randomized_svd(fastlr::as_operator(at::ones({3, 3})), {.rank = 4});
  } catch (const c10::ValueError& error) {
    raised =
        std::string(error.what_without_backtrace()).find("between 1 and min(m, n) = 3, got 4") != std::string::npos;
  }
  CHECK(raised);
}

}  // namespace

int main() {
  check_all_kinds<float>(at::kFloat);
  check_all_kinds<double>(at::kDouble);
  check_strided_fill();
  at::manual_seed(0);
  check_algorithms();
  check_row_blocks(at::kDouble);
  check_row_blocks(at::kComplexDouble);
  check_one_read();
  check_one_vector(at::kFloat);
  check_one_vector(at::kDouble);
  check_errors();
  std::puts("all checks of the C++ API passed");
}
