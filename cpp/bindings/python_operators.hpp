// Python objects as the core's operators: called back with the GIL taken, in the middle of an algorithm that has
// released it.
#pragma once

#include <fastlr/linear_operator.hpp>
#include <torch/csrc/utils/pybind.h>

namespace fastlr::bindings {

namespace py = pybind11;

// A Python object that is let go with the GIL held, wherever its owner is destroyed.
class Held {
 public:
  explicit Held(py::object object) : object_(std::move(object)) {}
  Held(const Held&) = delete;
  Held& operator=(const Held&) = delete;
  ~Held() {
    const py::gil_scoped_acquire gil;
    object_ = py::object();
  }
  const py::object& operator*() const { return object_; }

 private:
  py::object object_;
};

// Products by two functions of tensors.
class PythonOperator final : public LinearOperator {
 public:
  PythonOperator(int64_t rows, int64_t columns, at::TensorOptions options, py::object matmat, py::object rmatmat)
      : LinearOperator(rows, columns, options), matmat_(std::move(matmat)), rmatmat_(std::move(rmatmat)) {}

 protected:
  at::Tensor do_matmat(const at::Tensor& X) const override { return call(*matmat_, X); }
  at::Tensor do_rmatmat(const at::Tensor& Y) const override { return call(*rmatmat_, Y); }

 private:
  static at::Tensor call(const py::object& function, const at::Tensor& X) {
    const py::gil_scoped_acquire gil;
    return py::cast<at::Tensor>(function(X));
  }
  Held matmat_, rmatmat_;
};

}  // namespace fastlr::bindings
