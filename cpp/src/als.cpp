#include <fastlr/completion.hpp>

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include <fastlr/linear_operator.hpp>
#include <fastlr/random.hpp>

#include "checks.hpp"
#include "observed.hpp"

namespace fastlr {
namespace {

// What the ridge adds to the objective for the rows of a factor.
double penalty(const RowFactor& U, const Ridge& ridge) {
  const auto rows = ridge.rows.to(at::kDouble), unknowns = ridge.unknowns.to(at::kDouble);
  const int64_t k = U.U.size(1);
  auto squares = at::mv(U.U.to(at::kDouble).square(), unknowns.narrow(0, 0, k));
  if (U.bias) squares += unknowns[k] * U.bias->to(at::kDouble).square();
  return squares.dot(rows).item<double>();
}

double mean_of(const ObservedRows& observed) {
  if (observed.values.numel() == 0) return 0;
  if (!observed.weights) return observed.values.mean(at::kDouble).item<double>();
  const auto weights = observed.weights->to(at::kDouble);
  const double total = weights.sum().item<double>();
  return total > 0 ? weights.dot(observed.values.to(at::kDouble)).item<double>() / total : 0;
}

// Of conjugate gradients, which begin at the row of the last sweep: more would be lost in the next half-sweep.
constexpr double kInexact = 0.1;
constexpr int64_t kMostSteps = 10;

// What is minimised, for values times 2^exponent: factors are 2^(exponent / 2), biases 2^exponent times as large.
class Problem {
 public:
  Problem(const ObservedRows& observed, const std::optional<ObservedRows>& validation, const AlsOptions& options)
      : options_(options), exponent_(even_exponent(observed.values)) {
    const auto centred = [&](const ObservedRows& part) {
      return with_values(part, scaled(part.values, exponent_) - mean_);
    };
    if (options.bias_ridge) mean_ = mean_of(with_values(observed, scaled(observed.values, exponent_)));
    rows_ = centred(observed);
    columns_ = transposed(rows_);
    if (validation) validation_ = centred(*validation);
    // A larger ridge than this leaves nothing of values below 1. Biases are scaled as the values are, and no factors.
    const double ridge = std::min(std::ldexp(options.ridge, exponent_), std::ldexp(1.0, 100));
    row_ridge_ = ridge_of(rows_, options.rank, ridge, options.bias_ridge, options.weighted);
    column_ridge_ = ridge_of(columns_, options.rank, ridge, options.bias_ridge, options.weighted);
    solve_ = {.solver = options.solver, .tolerance = kInexact, .steps = kMostSteps};
  }

  // The rows that were given, or of such a size that the columns for them are of the same.
  RowFactor start() const {
    if (options_.start) return {scaled(*options_.start, exponent_ / 2), {}};
    const auto type = rows_.values.options();
    const double size = squares_left(rows_, zero(rows_.count()), zero(rows_.width)).root_mean();
    const double k = static_cast<double>(std::max<int64_t>(options_.rank, 1));
    RowFactor U = zero(rows_.count());
    U.U = gaussian(rows_.count(), options_.rank, options_.seed, 0, type) * std::sqrt(size / std::sqrt(k));
    return U;
  }

  RowFactor rows_for(const RowFactor& V, const RowFactor* before) const {
    return solve_rows(rows_, V, row_ridge_, solve_, before);
  }
  RowFactor columns_for(const RowFactor& U, const RowFactor* before) const {
    return solve_rows(columns_, U, column_ridge_, solve_, before);
  }

  // Of the scaled values.
  Sweep measure(const RowFactor& U, const RowFactor& V) const {
    const auto fit = squares_left(rows_, U, V);
    const double objective = fit.sum + penalty(U, row_ridge_) + penalty(V, column_ridge_);
    return {objective, fit.root_mean(),
            validation_ ? squares_left(*validation_, U, V).root_mean() : std::numeric_limits<double>::quiet_NaN()};
  }

  Completion unscaled(const RowFactor& U, const RowFactor& V, std::vector<Sweep> sweeps) const {
    const double unit = std::ldexp(1.0, -exponent_);
    for (auto& sweep : sweeps) sweep = {unit * unit * sweep.objective, unit * sweep.training, unit * sweep.validation};
    const auto factor = [&](const RowFactor& F) {
      RowFactor result{scaled(F.U, -exponent_ / 2), {}};
      if (F.bias) result.bias = scaled(*F.bias, -exponent_);
      return result;
    };
    return {factor(U),         factor(V), unit * mean_, options_.ridge, options_.bias_ridge.value_or(0),
            std::move(sweeps), false};
  }

 private:
  RowFactor zero(int64_t count) const {
    const auto type = rows_.values.options();
    RowFactor result{at::zeros({count, options_.rank}, type), {}};
    if (options_.bias_ridge) result.bias = at::zeros({count}, type);
    return result;
  }

  const AlsOptions& options_;
  int exponent_;
  double mean_ = 0;
  ObservedRows rows_, columns_;
  std::optional<ObservedRows> validation_;
  Ridge row_ridge_, column_ridge_;
  RowOptions solve_;
};

}  // namespace

Completion als(const ObservedRows& observed, const std::optional<ObservedRows>& validation, const AlsOptions& options) {
  const Problem problem(observed, validation, options);
  RowFactor U = problem.start();
  std::optional<RowFactor> V;
  std::vector<Sweep> sweeps;
  bool converged = false;
  while (!converged && static_cast<int64_t>(sweeps.size()) < options.most_sweeps) {
    check_interrupt();
    V = problem.columns_for(U, V ? &*V : nullptr);
    check_interrupt();
    U = problem.rows_for(*V, &U);
    sweeps.push_back(problem.measure(U, *V));
    if (options.tol && sweeps.size() > 1)
      converged =
          sweeps[sweeps.size() - 2].objective - sweeps.back().objective <= *options.tol * sweeps.back().objective;
  }
  auto result = problem.unscaled(U, *V, std::move(sweeps));
  result.converged = converged;
  return result;
}

}  // namespace fastlr
