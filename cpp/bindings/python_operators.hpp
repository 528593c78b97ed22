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

// Rows by a function that returns an iterator over (first row, block), called once for every read.
class PythonRowBlocks final : public RowBlocks {
 public:
  PythonRowBlocks(int64_t rows, int64_t columns, at::TensorOptions options, py::object read)
      : rows_(rows), columns_(columns), options_(options), read_(std::move(read)) {}

  int64_t rows() const override { return rows_; }
  int64_t columns() const override { return columns_; }
  at::TensorOptions options() const override { return options_; }
  void read(const Visitor& visit) const override {
    const py::gil_scoped_acquire gil;
    for (const py::handle item : (*read_)()) {
      const auto [row, block] = py::cast<std::pair<int64_t, at::Tensor>>(item);
      if (PyErr_CheckSignals() != 0) throw py::error_already_set();
      const py::gil_scoped_release released;
      visit(row, block);
    }
  }

 private:
  int64_t rows_, columns_;
  at::TensorOptions options_;
  Held read_;
};

}  // namespace fastlr::bindings
