// Operator schemas torch.ops.fastlr.*; fake implementations and autograd are in python/fastlr/_ops.py.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <fastlr/interpolative.hpp>
#include <fastlr/orthonormalize.hpp>
#include <fastlr/random.hpp>
#include <fastlr/randomized_svd.hpp>
#include <fastlr/sketch.hpp>

namespace {

at::Tensor random_matrix(int64_t rows, int64_t columns, c10::string_view kind, int64_t seed, int64_t row0,
                         int64_t column0, at::ScalarType dtype, at::Device device) {
  TORCH_CHECK_VALUE(rows >= 0 && columns >= 0, "random_matrix: rows and columns must be non-negative, got ", rows,
                    " and ", columns);
  const auto parsed = fastlr::parse_random_kind(std::string_view(kind.data(), kind.size()));
  auto out = at::empty({rows, columns}, at::TensorOptions().dtype(dtype).device(device));
  fastlr::fill_random(out, parsed, seed, row0, column0);
  return out;
}

// What Python turns into `.info`, in one small float64 tensor: fake implementations cannot return numbers.
at::Tensor info(std::initializer_list<double> values) { return at::tensor(values, at::kDouble); }

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> randomized_svd(const at::Tensor& A, int64_t rank,
                                                                          int64_t oversample,
                                                                          std::optional<int64_t> power_iters,
                                                                          int64_t seed) {
  auto r = fastlr::randomized_svd(A, rank, oversample, power_iters, seed);
  return {r.U, r.S, r.Vh,
          info({static_cast<double>(r.passes), r.error, static_cast<double>(r.probes),
                static_cast<double>(r.power_iters), static_cast<double>(r.converged)})};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> interpolative(const at::Tensor& A, int64_t rank, int64_t seed) {
  auto r = fastlr::interpolative(A, rank, seed);
  return {r.indices, r.coefficients, info({static_cast<double>(r.passes), r.error, static_cast<double>(r.probes)})};
}

void register_kernels(torch::Library& library) {
  library.impl("gaussian_product", TORCH_FN(fastlr::gaussian_product));
  library.impl("orthonormalize", TORCH_FN(fastlr::orthonormalize));
  library.impl("randomized_svd", TORCH_FN(randomized_svd));
  library.impl("interpolative", TORCH_FN(interpolative));
}

}  // namespace

TORCH_LIBRARY(fastlr, library) {
  library.def(
      "random_matrix(int rows, int columns, str kind, int seed, int row0, int column0, ScalarType dtype, "
      "Device device) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  library.def("gaussian_product(Tensor X, int rows, int columns, int seed, bool transposed) -> Tensor",
              {at::Tag::pt2_compliant_tag});
  library.def("orthonormalize(Tensor Y) -> Tensor", {at::Tag::pt2_compliant_tag});
  library.def(
      "randomized_svd(Tensor A, int rank, int oversample, int? power_iters, int seed) -> "
      "(Tensor U, Tensor S, Tensor Vh, Tensor info)",
      {at::Tag::pt2_compliant_tag});
  library.def("interpolative(Tensor A, int rank, int seed) -> (Tensor indices, Tensor coefficients, Tensor info)",
              {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(fastlr, CPU, library) { register_kernels(library); }
TORCH_LIBRARY_IMPL(fastlr, CUDA, library) { register_kernels(library); }
// No tensor argument says where random_matrix runs: its device argument does.
TORCH_LIBRARY_IMPL(fastlr, CompositeExplicitAutograd, library) {
  library.impl("random_matrix", TORCH_FN(random_matrix));
}
