// pybind11: what an operator schema cannot carry.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>

#include <fastlr/philox.hpp>

namespace py = pybind11;

PYBIND11_MODULE(_core, module) {
  module.doc() = "The C++ core of fastlr; its operators are registered as torch.ops.fastlr.*";
  module.def(
      "philox4x32_10",
      [](const std::array<uint32_t, 4>& counter, const std::array<uint32_t, 2>& key) {
        const auto w = fastlr::philox::draw(counter[0], counter[1], counter[2], counter[3], key[0], key[1]);
        return py::make_tuple(w.w0, w.w1, w.w2, w.w3);
      },
      py::arg("counter"), py::arg("key"), "The four words of Philox4x32-10 at a counter, for a key.");
}
