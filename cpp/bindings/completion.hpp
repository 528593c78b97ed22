// Completion as Python calls it: observed entries, factors and sweeps as tuples.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <fastlr/completion.hpp>

#include "guards.hpp"

namespace fastlr::bindings {

// offsets, columns, values, weights, width
using Observed = std::tuple<at::Tensor, at::Tensor, at::Tensor, std::optional<at::Tensor>, int64_t>;
// U, biases
using Factor = std::tuple<at::Tensor, std::optional<at::Tensor>>;
// rows, columns, mean, ridge, bias ridge, (objective, training, validation) of every sweep, converged
using Completed =
    std::tuple<Factor, Factor, double, double, double, std::vector<std::tuple<double, double, double>>, bool>;

inline ObservedRows observed_of(const Observed& entries) {
  const auto& [offsets, columns, values, weights, width] = entries;
  return {offsets, columns, values, weights, width};
}

inline RowFactor factor_of(const Factor& factor) { return {std::get<0>(factor), std::get<1>(factor)}; }

inline RowSolver solver_of(const std::string& name) {
  return name == "cg" ? RowSolver::kGradients : RowSolver::kCholesky;
}

inline Completed completed(const Completion& r) {
  Completed result{
      {r.rows.U, r.rows.bias}, {r.columns.U, r.columns.bias}, r.mean, r.ridge, r.bias_ridge, {}, r.converged};
  for (const auto& sweep : r.sweeps)
    std::get<5>(result).emplace_back(sweep.objective, sweep.training, sweep.validation);
  return result;
}

inline void define_completion(pybind11::module_& module) {
  namespace py = pybind11;
  module.def(
      "observed_rows",
      [](const at::Tensor& rows, const at::Tensor& columns, const at::Tensor& values,
         const std::optional<at::Tensor>& weights, int64_t count, int64_t width) {
        const auto r = observed_rows(rows, columns, values, weights, count, width);
        return Observed{r.offsets, r.columns, r.values, r.weights, r.width};
      },
      py::arg("rows"), py::arg("columns"), py::arg("values"), py::arg("weights"), py::arg("count"), py::arg("width"),
      Released());
  module.def(
      "entry_products",
      [](const Observed& observed, const at::Tensor& U, const at::Tensor& V) {
        return entry_products(observed_of(observed), U, V);
      },
      py::arg("observed"), py::arg("U"), py::arg("V"), Released());
  module.def(
      "solve_rows",
      [](const Observed& observed, const Factor& V, double ridge, double bias_ridge, bool weighted) {
        const auto entries = observed_of(observed);
        const auto factor = factor_of(V);
        const auto of_bias = factor.bias ? std::optional(bias_ridge) : std::nullopt;
        const auto r = solve_rows(entries, factor, ridge_of(entries, factor.U.size(1), ridge, of_bias, weighted), {});
        return Factor{r.U, r.bias};
      },
      py::arg("observed"), py::arg("V"), py::arg("ridge"), py::arg("bias_ridge"), py::arg("weighted"), Released());
  module.def(
      "als",
      [](const Observed& observed, const std::optional<Observed>& validation, int64_t rank, int64_t most_sweeps,
         std::optional<double> tol, int64_t seed, double ridge, bool weighted, std::optional<double> bias_ridge,
         const std::string& solver, const std::optional<at::Tensor>& start) {
        const auto left_out = validation ? std::optional(observed_of(*validation)) : std::nullopt;
        return completed(als(observed_of(observed), left_out,
                             {rank, most_sweeps, tol, seed, ridge, weighted, bias_ridge, solver_of(solver), start}));
      },
      py::arg("observed"), py::arg("validation"), py::arg("rank"), py::arg("most_sweeps"), py::arg("tol"),
      py::arg("seed"), py::arg("ridge"), py::arg("weighted"), py::arg("bias_ridge"), py::arg("solver"),
      py::arg("start"), Released());
  module.def(
      "altmin",
      [](const Observed& observed, const std::optional<Observed>& validation, int64_t rank, int64_t most_sweeps,
         double tol, int64_t seed, const std::string& solver) {
        const auto left_out = validation ? std::optional(observed_of(*validation)) : std::nullopt;
        return completed(altmin(observed_of(observed), left_out, {rank, most_sweeps, tol, seed, solver_of(solver)}));
      },
      py::arg("observed"), py::arg("validation"), py::arg("rank"), py::arg("most_sweeps"), py::arg("tol"),
      py::arg("seed"), py::arg("solver"), Released());
}

}  // namespace fastlr::bindings
