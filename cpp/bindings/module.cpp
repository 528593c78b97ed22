// pybind11: what an operator schema cannot carry.
#include <pybind11/complex.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <tuple>

#include <fastlr/kkt.hpp>
#include <fastlr/lstsq.hpp>
#include <fastlr/norms.hpp>
#include <fastlr/philox.hpp>
#include <fastlr/sketch_operator.hpp>
#include <fastlr/spectral_density.hpp>
#include <fastlr/top_eigenvector.hpp>
#include <fastlr/trace.hpp>
#include <torch/csrc/Exceptions.h>

#include "completion.hpp"
#include "tucker.hpp"
#include "cur.hpp"
#include "guards.hpp"
#include "hermitian.hpp"
#include "incremental.hpp"
#include "interpolative.hpp"
#include "python_operators.hpp"
#include "streaming.hpp"
#include "svd.hpp"

namespace py = pybind11;
using fastlr::LinearOperator;
using fastlr::bindings::PythonOperator;
using fastlr::bindings::PythonRowBlocks;
using fastlr::bindings::Released;

namespace {

// Python's signal handlers, Ctrl-C's among them, run at most this often: taking the GIL may mean waiting for it.
constexpr auto kSignalInterval = std::chrono::milliseconds(50);

void run_signal_handlers() {
  using Clock = std::chrono::steady_clock;
  static std::atomic<Clock::rep> last{0};
  const auto now = Clock::now().time_since_epoch();
  if (now.count() - last.load() < Clock::duration(kSignalInterval).count()) return;
  last = now.count();
  const py::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

at::TensorOptions options(at::ScalarType dtype, at::Device device) {
  return at::TensorOptions().dtype(dtype).device(device);
}

auto numbers(const fastlr::NormEstimate& r) {
  return std::make_tuple(r.value, r.lower, r.upper, r.failure, r.passes, static_cast<int64_t>(r.method));
}

}  // namespace

PYBIND11_MODULE(_core, module) {
  module.doc() = "The C++ core of fastlr; its operators are registered as torch.ops.fastlr.*";
  fastlr::set_interrupt_check(run_signal_handlers);
  // ATen's errors become Python's own here as they do in the operators of torch.
  py::register_local_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const c10::Error&) {
      torch::translate_exception_to_python(error);
    }
  });

  module.def(
      "philox4x32_10",
      [](const std::array<uint32_t, 4>& counter, const std::array<uint32_t, 2>& key) {
        const auto w = fastlr::philox::draw(counter[0], counter[1], counter[2], counter[3], key[0], key[1]);
        return py::make_tuple(w.w0, w.w1, w.w2, w.w3);
      },
      py::arg("counter"), py::arg("key"), "The four words of Philox4x32-10 at a counter, for a key.");

  py::class_<LinearOperator, std::shared_ptr<LinearOperator>>(
      module, "Operator", "A matrix known by its products, as the core calls them back.")
      .def_property_readonly("shape", [](const LinearOperator& A) { return py::make_tuple(A.rows(), A.columns()); })
      .def("matmat", &LinearOperator::matmat, py::arg("X"), Released())
      .def(
          "check_finite", [](const LinearOperator& A, const std::string& caller) { A.check_finite(caller.c_str()); },
          py::arg("caller"), Released())
      .def("row_mean", &LinearOperator::row_mean, Released())
      .def("distance_from_row", &LinearOperator::distance_from_row, py::arg("row"), Released());
  module.def(
      "operator_of_matrix",
      [](const at::Tensor& A) { return std::const_pointer_cast<LinearOperator>(fastlr::as_operator(A)); }, py::arg("A"),
      "A dense or sparse matrix.");
  module.def(
      "operator_of_functions",
      [](int64_t rows, int64_t columns, at::ScalarType dtype, at::Device device, py::object matmat,
         py::object rmatmat) -> std::shared_ptr<LinearOperator> {
        return std::make_shared<PythonOperator>(rows, columns, options(dtype, device), std::move(matmat),
                                                std::move(rmatmat));
      },
      py::arg("rows"), py::arg("columns"), py::arg("dtype"), py::arg("device"), py::arg("matmat"), py::arg("rmatmat"),
      "X -> A X and Y -> Aᴴ Y as functions of tensors.");
  module.def(
      "operator_of_blocks",
      [](std::optional<int64_t> rows, int64_t columns, at::ScalarType dtype, at::Device device, bool of_adjoint,
         py::object iterate) {
        return std::const_pointer_cast<LinearOperator>(fastlr::as_operator(
            std::make_shared<PythonRowBlocks>(rows, columns, options(dtype, device), of_adjoint, std::move(iterate))));
      },
      py::arg("rows"), py::arg("columns"), py::arg("dtype"), py::arg("device"), py::arg("of_adjoint"),
      py::arg("iterate"),
      "Blocks of rows, of A or of Aᴴ, from a function that begins a read and returns an iterator of tensors; rows "
      "None: unknown.");
  // Sparse tensors do not pass an operator of torch under autograd.
  module.def(
      "sketch_sparse",
      [](const at::Tensor& A, std::string_view kind, int64_t rows, int64_t columns, int64_t seed, int64_t nonzeros,
         int64_t first) {
        const fastlr::SketchOperator S{fastlr::parse_sketch_kind(kind), rows, columns, seed, nonzeros};
        S.check("sketch");
        return S.apply(A, first);
      },
      py::arg("A"), py::arg("kind"), py::arg("rows"), py::arg("columns"), py::arg("seed"), py::arg("nonzeros"),
      py::arg("first"), Released());
  module.def("randomized_svd", &fastlr::bindings::svd, py::arg("A"), py::arg("rank"), py::arg("oversample"),
             py::arg("power_iters"), py::arg("method"), py::arg("precision"), py::arg("center"), py::arg("seed"),
             Released());
  module.def("adaptive_svd", &fastlr::bindings::svd_to_tolerance, py::arg("A"), py::arg("tol"), py::arg("most_rank"),
             py::arg("oversample"), py::arg("power_iters"), py::arg("center"), py::arg("seed"), Released());
  module.def("interpolative", &fastlr::bindings::interpolative, py::arg("A"), py::arg("rank"), py::arg("tol"),
             py::arg("of_rows"), py::arg("seed"), Released());
  module.def("cur", &fastlr::bindings::cur, py::arg("A"), py::arg("rank"), py::arg("columns"), py::arg("rows"),
             py::arg("middle"), py::arg("seed"), Released());
  module.def("nystrom", &fastlr::bindings::nystrom, py::arg("A"), py::arg("rank"), py::arg("oversample"),
             py::arg("seed"), Released());
  module.def("randomized_eigh", &fastlr::bindings::randomized_eigh, py::arg("A"), py::arg("rank"),
             py::arg("oversample"), py::arg("power_iters"), py::arg("seed"), Released());
  module.def(
      "spectral_norm",
      [](const std::shared_ptr<const LinearOperator>& A, double rtol, double failure, int64_t seed) {
        return numbers(fastlr::spectral_norm(A, rtol, failure, seed));
      },
      py::arg("A"), py::arg("rtol"), py::arg("failure"), py::arg("seed"), Released());
  module.def(
      "frobenius_norm",
      [](const std::shared_ptr<const LinearOperator>& A, double failure, int64_t seed) {
        return numbers(fastlr::frobenius_norm_estimate(A, failure, seed));
      },
      py::arg("A"), py::arg("failure"), py::arg("seed"), Released());
  module.def(
      "estimate_rank",
      [](const std::shared_ptr<const LinearOperator>& A, std::optional<double> tol, std::optional<int64_t> most,
         int64_t seed) {
        const auto r = fastlr::estimate_rank(A, tol, most, seed);
        return std::make_tuple(r.rank, r.lower, r.upper, r.norm, r.residual, r.failure, r.passes, r.converged, r.dense);
      },
      py::arg("A"), py::arg("tol"), py::arg("most"), py::arg("seed"), Released());
  module.def(
      "hutchpp",
      [](const std::shared_ptr<const LinearOperator>& A, int64_t products, std::optional<double> tol, int64_t seed) {
        const auto r = fastlr::hutchpp(A, {products, tol, seed});
        return std::make_tuple(r.value, r.std_error, r.products, r.passes, r.converged, r.exact);
      },
      py::arg("A"), py::arg("products"), py::arg("tol"), py::arg("seed"), Released());
  module.def(
      "solve_kkt",
      [](const std::shared_ptr<const LinearOperator>& H, const std::shared_ptr<const LinearOperator>& A,
         const at::Tensor& f, const at::Tensor& c, double tol, int64_t most_sketches, int64_t seed, int64_t entries) {
        const auto r = fastlr::solve_kkt(H, A, f, c, {tol, most_sketches, seed, entries});
        return std::make_tuple(r.x, r.multipliers, static_cast<int64_t>(r.method), r.sketches, r.products, r.residual,
                               r.converged);
      },
      py::arg("H"), py::arg("A"), py::arg("f"), py::arg("c"), py::arg("tol"), py::arg("most_sketches"), py::arg("seed"),
      py::arg("entries"), Released());
  module.def(
      "spectral_density",
      [](const std::shared_ptr<const LinearOperator>& A, int64_t n_vectors, int64_t steps, int64_t seed) {
        const auto r = fastlr::spectral_density(A, n_vectors, steps, seed);
        return std::make_tuple(r.nodes, r.weights, r.resolution, r.passes);
      },
      py::arg("A"), py::arg("n_vectors"), py::arg("steps"), py::arg("seed"), Released());
  module.def(
      "lstsq",
      [](const std::shared_ptr<const LinearOperator>& A, const at::Tensor& B, std::string_view method,
         std::string_view sketch, std::optional<int64_t> sketch_rows, int64_t nonzeros, double damp,
         std::optional<double> tol, std::optional<int64_t> max_iters, int64_t seed) {
        const auto r = fastlr::lstsq(A, B,
                                     {fastlr::parse_lstsq_method(method), fastlr::parse_sketch_kind(sketch),
                                      sketch_rows, nonzeros, damp, tol, max_iters, seed});
        return std::make_tuple(r.x, r.residual, r.backward_error, r.condition, r.rank, r.sketch_rows, r.iterations,
                               r.passes, static_cast<int64_t>(r.method), r.recovered, r.converged);
      },
      py::arg("A"), py::arg("B"), py::arg("method"), py::arg("sketch"), py::arg("sketch_rows"), py::arg("nonzeros"),
      py::arg("damp"), py::arg("tol"), py::arg("max_iters"), py::arg("seed"), Released());
  fastlr::bindings::define_completion(module);
  fastlr::bindings::define_tucker(module);
  fastlr::bindings::define_streaming(module);
  module.def("copy_of_plain_lines", &fastlr::bindings::copy_of_plain_lines, py::arg("block"), py::arg("axis"),
             py::arg("dtype"), py::arg("width"), py::arg("most"),
             "A block that is dense, in memory, of this type, small and finite, as rows of their own; else None.");
  module.def(
      "top_eigenvector",
      [](int64_t columns, at::ScalarType dtype, at::Device device, py::object iterate,
         std::optional<int64_t> most_heavy, int64_t seed) {
        const PythonRowBlocks rows(std::nullopt, columns, options(dtype, device), false, std::move(iterate));
        const py::gil_scoped_release released;
        const auto r = most_heavy ? fastlr::random_order_eigenvector(rows, *most_heavy, seed)
                                  : fastlr::oja_eigenvector(rows, seed);
        return std::make_tuple(r.vector, r.singular_value, r.std_error, r.residual, r.growth, r.rate, r.rows, r.blocks,
                               r.heavy, r.complete);
      },
      py::arg("columns"), py::arg("dtype"), py::arg("device"), py::arg("iterate"), py::arg("most_heavy"),
      py::arg("seed"), "From blocks of rows as in operator_of_blocks; most_heavy None: Oja's method.");
}
