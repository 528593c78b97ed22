// The trace of a matrix known by its products.
#pragma once

#include <fastlr/linear_operator.hpp>

#include <complex>
#include <optional>

namespace fastlr {

struct TraceEstimate {
  std::complex<double> value;
  double std_error;  // of value; rounding where it is exact
  int64_t products;  // with vectors
  int64_t passes;    // over A
  bool converged;    // false: a tolerance was not met by as many products as were allowed
  bool exact;        // the sum of the diagonal
};

struct TraceOptions {
  int64_t products;                          // at most
  std::optional<double> tol = std::nullopt;  // stop where std_error <= tol |value|
  int64_t seed = 0;
};

// Hutch++: the exact trace on the span of a sketch, and probes of what is left. Unbiased for every square A; of a third
// of the products each the sketch, its basis and the probes. Two passes, and two for every doubling with a tolerance.
//
// Sources: Meyer, Musco, Musco, Woodruff, "Hutch++: optimal stochastic trace estimation", SOSA 2021; Persson,
// Cortinovis, Kressner, "Improved variants of the Hutch++ algorithm for trace estimation", SIMAX 43 (2022); probes
// normalized to a sphere as in Epperly, Tropp, Webber, "XTrace: making the most of every sample in stochastic trace
// estimation", SIMAX 45 (2024).
TraceEstimate hutchpp(const Operator& A, const TraceOptions& options);

}  // namespace fastlr
