// Tucker decompositions as Python calls them.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <fastlr/tucker.hpp>

#include "guards.hpp"

namespace fastlr::bindings {

// core, factors, norm, error, errors of the start and the sweeps, converged
using Decomposed = std::tuple<at::Tensor, std::vector<at::Tensor>, double, double, std::vector<double>, bool>;

inline TuckerMethod tucker_method_of(const std::string& name) {
  if (name == "st_hosvd") return TuckerMethod::kSequential;
  return name == "randomized" ? TuckerMethod::kRandomized : TuckerMethod::kAlternating;
}

inline void define_tucker(pybind11::module_& module) {
  namespace py = pybind11;
  module.def(
      "tucker",
      [](const at::Tensor& X, std::vector<int64_t> modes, std::vector<int64_t> ranks, std::optional<double> tol,
         const std::string& method, int64_t most_sweeps, int64_t seed) {
        auto r = tucker(X, {.modes = std::move(modes),
                            .ranks = std::move(ranks),
                            .tol = tol,
                            .method = tucker_method_of(method),
                            .most_sweeps = most_sweeps,
                            .seed = seed});
        return Decomposed{r.core, r.factors, r.norm, r.error, r.errors, r.converged};
      },
      py::arg("X"), py::arg("modes"), py::arg("ranks"), py::arg("tol"), py::arg("method"), py::arg("most_sweeps"),
      py::arg("seed"), Released());
  module.def(
      "sparse_tucker",
      [](const at::Tensor& indices, const at::Tensor& values, const std::vector<int64_t>& sizes,
         const std::vector<int64_t>& ranks, int64_t most_sweeps, int64_t seed) {
        const auto r = sparse_tucker(indices, values, sizes, ranks, most_sweeps, seed);
        return Decomposed{r.core, r.factors, r.norm, r.error, r.errors, r.converged};
      },
      py::arg("indices"), py::arg("values"), py::arg("sizes"), py::arg("ranks"), py::arg("most_sweeps"),
      py::arg("seed"), Released());
  module.def(
      "tucker_sweep",
      [](const at::Tensor& X, const std::vector<int64_t>& modes, std::vector<at::Tensor> factors) {
        const auto core = tucker_sweep(X, modes, factors);
        return std::pair(core, factors);
      },
      py::arg("X"), py::arg("modes"), py::arg("factors"), Released());
}

}  // namespace fastlr::bindings
