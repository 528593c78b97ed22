// Blocks as Python holds them: most are rows that only have to be kept until there are more.
#pragma once

#include <pybind11/numpy.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <optional>
#include <vector>

#include <fastlr/incremental_svd.hpp>

namespace fastlr::bindings {

namespace py = pybind11;

// An array of NumPy as a tensor that shares its memory; nothing where entries are of another type, in another byte
// order, or at distances that a tensor cannot have.
inline std::optional<at::Tensor> tensor_of_array(const py::array& array, at::ScalarType type) {
  const auto dtype = array.dtype();
  const int64_t size = static_cast<int64_t>(c10::elementSize(type));
  if (dtype.kind() != (c10::isComplexType(type) ? 'c' : 'f') || dtype.itemsize() != size || dtype.byteorder() != '=')
    return std::nullopt;
  std::vector<int64_t> sizes(array.shape(), array.shape() + array.ndim()), strides;
  for (py::ssize_t axis = 0; axis < array.ndim(); ++axis) {
    if (array.strides(axis) < 0 || array.strides(axis) % size != 0) return std::nullopt;
    strides.push_back(array.strides(axis) / size);
  }
  return at::from_blob(const_cast<void*>(array.data()), sizes, strides, at::TensorOptions().dtype(type));
}

inline std::optional<at::Tensor> copy_of_plain_lines(py::handle block, int64_t axis, at::ScalarType type, int64_t width,
                                                     int64_t most) {
  std::optional<at::Tensor> tensor;
  if (THPVariable_CheckExact(block.ptr())) {
    tensor = THPVariable_Unpack(block.ptr());
  } else if (py::isinstance<py::array>(block)) {
    tensor = tensor_of_array(py::reinterpret_borrow<py::array>(block), type);
  }
  if (!tensor) return std::nullopt;
  const py::gil_scoped_release released;
  return fastlr::copy_of_plain_lines(*tensor, axis, type, width, most);
}

}  // namespace fastlr::bindings
