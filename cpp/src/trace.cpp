#include <fastlr/trace.hpp>

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include <fastlr/random.hpp>

#include "checks.hpp"
#include "first_product.hpp"
#include "hermitian_checks.hpp"
#include "orthonormal_beside.hpp"

namespace fastlr {
namespace {

constexpr const char* kCaller = "hutchpp";
// With a tolerance, products to begin with.
constexpr int64_t kFirstProducts = 30;

// xᴴ y of every column, in double precision.
at::Tensor column_products(const at::Tensor& X, const at::Tensor& Y) {
  return (X.conj() * Y).sum(0, /*keepdim=*/false, double_type(X));
}

std::complex<double> as_complex(const at::Tensor& number) {
  const auto value = number.item();
  return value.isComplex() ? static_cast<std::complex<double>>(value.toComplexDouble()) : value.toDouble();
}

// A basis of the sketches so far, the probes so far, and the products of A with both.
struct Sketches {
  at::Tensor Q, AQ, G, AG;
  int64_t completed = 0;  // directions of Q that no sketch has

  explicit Sketches(const LinearOperator& A) : Q(at::empty({A.rows(), 0}, A.options())), AQ(Q), G(Q), AG(Q) {}

  // From the product of A with `width` vectors for the sketch and the probes that follow.
  void add(const LinearOperator& A, const at::Tensor& omega, const at::Tensor& product, int64_t width) {
    const auto sketch = product.narrow(1, 0, width);
    const auto basis = orthonormal_beside(Q, sketch - at::mm(Q, at::mm(Q.mH(), sketch)), completed);
    Q = at::cat({Q, basis}, 1);
    AQ = at::cat({AQ, A.matmat(basis)}, 1);
    G = at::cat({G, omega.narrow(1, width, omega.size(1) - width)}, 1);
    AG = at::cat({AG, product.narrow(1, width, omega.size(1) - width)}, 1);
  }

  int64_t products() const { return 2 * Q.size(1) + G.size(1); }

  TraceEstimate estimate() const {
    const auto inside = column_products(Q, AQ);
    // (I - QQᴴ) g, uniform on a sphere of the complement when it is normalized.
    const auto along = at::mm(Q.mH(), G);
    const auto H = G - at::mm(Q, along);
    const auto samples =
        column_products(H, AG - at::mm(AQ, along)) * static_cast<double>(Q.size(0) - Q.size(1)) / column_products(H, H);
    const int64_t count = samples.size(0);
    const double spread = at::linalg_vector_norm(samples - samples.mean()).item<double>();
    const double rounding = 10 * unit_roundoff(Q) * std::sqrt(static_cast<double>(Q.size(1))) * frobenius_norm(AQ);
    return {as_complex(inside.sum() + samples.mean()),
            std::hypot(spread / std::sqrt(static_cast<double>(count * (count - 1))), rounding),
            products(),
            0,
            true,
            false};
  }
};

TraceEstimate exact_trace(const LinearOperator& A) {
  const auto dense = A.to_dense();
  check_finite(dense, kCaller);
  const auto diagonal = dense.diagonal();
  const double rounding = 10 * unit_roundoff(dense) * std::sqrt(static_cast<double>(A.rows())) *
                          (diagonal.numel() > 0 ? frobenius_norm(diagonal.unsqueeze(1)) : 0.0);
  return {as_complex(diagonal.sum(double_type(dense))), rounding, A.rows(), 0, true, true};
}

}  // namespace

TraceEstimate hutchpp(const Operator& A, const TraceOptions& options) {
  check_square(*A, kCaller);
  TORCH_CHECK_VALUE(options.products >= 6, kCaller, ": products must be at least 6, got ", options.products);
  TORCH_CHECK_VALUE(!options.tol || *options.tol > 0, kCaller, ": tol must be positive, got ", options.tol.value_or(0));
  const int64_t n = A->rows(), before = A->passes();
  const auto with_passes = [&](TraceEstimate estimate) {
    estimate.passes = A->passes() - before;
    return estimate;
  };
  const bool all = options.products >= n;
  if (all && (!options.tol || kFirstProducts >= n)) return with_passes(exact_trace(*A));

  const int64_t most = std::min(options.products, n - 1);
  int64_t third = (options.tol ? std::min(kFirstProducts, most) : most) / 3;
  auto omega = gaussian(n, 2 * third, options.seed, 0, A->options());
  const auto first = first_product(A, kCaller, [&](const Operator& op) { return op->matmat(omega); });
  auto product = first.product;
  Sketches sketches(*first.A);
  for (int64_t drawn = 2 * third;; drawn += 2 * third) {
    sketches.add(*first.A, omega, product, third);
    auto estimate = sketches.estimate();
    const bool met = !options.tol || estimate.std_error <= *options.tol * std::abs(estimate.value);
    third = std::min(sketches.products(), most - sketches.products()) / 3;
    if (met || third == 0) {
      if (!met && all) return with_passes(exact_trace(*A));
      estimate.value = {std::ldexp(estimate.value.real(), -first.exponent),
                        std::ldexp(estimate.value.imag(), -first.exponent)};
      estimate.std_error = std::ldexp(estimate.std_error, -first.exponent);
      estimate.converged = met;
      return with_passes(estimate);
    }
    omega = gaussian(n, 2 * third, options.seed, drawn, A->options());
    product = first.A->matmat(omega);
  }
}

}  // namespace fastlr
