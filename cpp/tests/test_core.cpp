// What Python cannot reach: the C++ API from a plain libtorch program, and the bits of the draws on another
// instruction set than the one the kernels choose.
#include <ATen/ATen.h>

#include <cstdio>
#include <cstdlib>

#include <fastlr/interpolative.hpp>
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
  // Rank 4 exactly: only rounding is left, 40 sqrt(k) u of the norm.
  CHECK((A - product).norm().item<double>() <= 80 * 0x1p-53 * scale);
  const auto columns = fastlr::interpolative(A, 4, 0);
  CHECK((A - at::mm(A.index_select(1, columns.indices), columns.coefficients)).norm().item<double>() <=
        1e3 * 0x1p-53 * scale);
  const auto Q = fastlr::orthonormalize(A);
  CHECK((at::mm(Q.t(), Q) - at::eye(50, at::kDouble)).norm().item<double>() <= 10 * 7.1 * 0x1p-53);
  const auto sketched = fastlr::gaussian_product(A, 50, 3, 1);
  CHECK(sketched.size(0) == 60 && sketched.size(1) == 3);
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
  check_algorithms();
  check_errors();
  std::puts("all checks of the C++ API passed");
}
