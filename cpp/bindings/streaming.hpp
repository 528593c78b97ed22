// The states of streams as Python holds them: tuples.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <string>
#include <tuple>

#include <fastlr/streaming_svd.hpp>

#include "guards.hpp"

namespace fastlr::bindings {

using Weights = std::optional<at::Tensor>;

// co, gram, exponent
using Sketch = std::tuple<at::Tensor, at::Tensor, int64_t>;
// rows, filled, shrunk, energy, exponent
using Directions = std::tuple<at::Tensor, int64_t, double, double, int64_t>;
// S, Vh, error estimate, upper bound of it, spectral norm, failure probability, bound of the squares
using Streamed = std::tuple<at::Tensor, at::Tensor, double, double, double, double, double>;

inline OnePassSketch sketch_of(const Sketch& state) {
  const auto& [co, gram, exponent] = state;
  return {co, gram, exponent};
}

inline FrequentDirections directions_of(const Directions& state) {
  const auto& [rows, filled, shrunk, energy, exponent] = state;
  return {rows, filled, shrunk, energy, exponent};
}

inline Streamed streamed(const StreamedSvd& r) {
  return {r.S, r.Vh, r.error.estimate, r.error.upper, r.error.spectral, r.error.failure, r.bound};
}

inline void define_streaming(pybind11::module_& module) {
  namespace py = pybind11;
  const auto tuple_of = [](const OnePassSketch& r) { return Sketch{r.co, r.gram, r.exponent}; };
  module.def(
      "empty_sketch",
      [=](int64_t columns, int64_t width, at::ScalarType dtype, at::Device device) {
        return tuple_of(empty_sketch(columns, width, at::TensorOptions().dtype(dtype).device(device)));
      },
      py::arg("columns"), py::arg("width"), py::arg("dtype"), py::arg("device"), Released());
  module.def(
      "one_pass_sketch",
      [=](const at::Tensor& rows, const Weights& weights, int64_t row0, int64_t width, int64_t seed,
          const std::string& caller) {
        return tuple_of(one_pass_sketch({rows, weights, row0}, width, seed, caller.c_str()));
      },
      py::arg("rows"), py::arg("weights"), py::arg("row0"), py::arg("width"), py::arg("seed"), py::arg("caller"),
      Released());
  module.def(
      "sketches_together",
      [=](const Sketch& first, double weight, const Sketch& second) {
        return tuple_of(together(sketch_of(first), weight, sketch_of(second)));
      },
      py::arg("first"), py::arg("weight"), py::arg("second"), Released());
  module.def(
      "one_pass_svd",
      [](const Sketch& sketch, int64_t rank, int64_t seed, int64_t seen, at::ScalarType dtype) {
        return streamed(one_pass_svd(sketch_of(sketch), rank, seed, seen, dtype));
      },
      py::arg("sketch"), py::arg("rank"), py::arg("seed"), py::arg("seen"), py::arg("dtype"), Released());
  const auto directions = [](const FrequentDirections& r) {
    return Directions{r.rows, r.filled, r.shrunk, r.energy, r.exponent};
  };
  module.def(
      "empty_frequent_directions",
      [=](int64_t columns, int64_t width, at::ScalarType dtype, at::Device device) {
        return directions(empty_directions(columns, width, at::TensorOptions().dtype(dtype).device(device)));
      },
      py::arg("columns"), py::arg("width"), py::arg("dtype"), py::arg("device"), Released());
  module.def(
      "append_frequent_directions",
      [=](const Directions& state, double weight, const at::Tensor& rows, const Weights& weights, int64_t row0,
          const std::string& caller) {
        return directions(appended(directions_of(state), weight, {rows, weights, row0}, caller.c_str()));
      },
      py::arg("state"), py::arg("weight"), py::arg("rows"), py::arg("weights"), py::arg("row0"), py::arg("caller"),
      Released());
  module.def(
      "merge_frequent_directions",
      [=](const Directions& first, double weight, const Directions& second) {
        return directions(together(directions_of(first), weight, directions_of(second)));
      },
      py::arg("first"), py::arg("weight"), py::arg("second"), Released());
  module.def(
      "frequent_directions_svd",
      [](const Directions& state, int64_t rank, at::ScalarType dtype) {
        return streamed(frequent_directions_svd(directions_of(state), rank, dtype));
      },
      py::arg("state"), py::arg("rank"), py::arg("dtype"), Released());
}

}  // namespace fastlr::bindings
