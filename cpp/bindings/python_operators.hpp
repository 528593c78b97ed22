// Python objects as the core's operators: called back with the GIL taken, in the middle of an algorithm that has
// released it.
#pragma once

#include <optional>

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

// Rows from an iterator of tensors, a new one for every read; the GIL is held only while the next block is fetched.
// `rows` is nothing where it shows only when they are read.
class PythonRowBlocks final : public RowBlocks {
 public:
  PythonRowBlocks(std::optional<int64_t> rows, int64_t columns, at::TensorOptions options, bool of_adjoint,
                  py::object iterate)
      : rows_(rows.value_or(kUnknown)),
        columns_(columns),
        options_(options),
        of_adjoint_(of_adjoint),
        iterate_(std::move(iterate)) {}

  int64_t rows() const override { return rows_; }
  int64_t columns() const override { return columns_; }
  at::TensorOptions options() const override { return options_; }
  bool of_adjoint() const override { return of_adjoint_; }
  void read(const Visitor& visit) const override {
    // A generator that is let go in the middle runs its `finally`: what it had opened is closed on an error, too.
    const Held iterator([&] {
      const py::gil_scoped_acquire gil;
      return py::object((*iterate_)());
    }());
    int64_t row0 = 0;
    while (const auto block = next(*iterator)) {
      visit(row0, *block);
      row0 += block->size(0);
    }
  }

 private:
  static std::optional<at::Tensor> next(const py::object& iterator) {
    const py::gil_scoped_acquire gil;
    const auto block = py::reinterpret_steal<py::object>(PyIter_Next(iterator.ptr()));
    if (PyErr_Occurred()) throw py::error_already_set();
    return block ? std::optional(py::cast<at::Tensor>(block)) : std::nullopt;
  }

  int64_t rows_, columns_;
  at::TensorOptions options_;
  bool of_adjoint_;
  Held iterate_;
};

}  // namespace fastlr::bindings
