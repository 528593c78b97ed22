#include <fastlr/random.hpp>

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <c10/util/Exception.h>

#include <limits>
#include <numbers>

#include "random.hpp"

#ifdef FASTLR_WITH_CUDA
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace fastlr {

RandomKind parse_random_kind(std::string_view name) {
  if (name == "gaussian") return RandomKind::gaussian;
  if (name == "uniform") return RandomKind::uniform;
  if (name == "sign") return RandomKind::sign;
  TORCH_CHECK_VALUE(false, "kind must be 'gaussian', 'uniform' or 'sign', got '", name, "'");
}

void fill_random(const at::Tensor& out, RandomKind kind, int64_t seed, int64_t row0, int64_t column0) {
  TORCH_CHECK_VALUE(out.dim() == 2 && (out.size(1) <= 1 || out.stride(1) == 1),
                    "fill_random: out must be a matrix with unit stride along its rows");
  TORCH_CHECK_VALUE(row0 >= 0 && column0 >= 0 && column0 + out.size(1) <= std::numeric_limits<uint32_t>::max(),
                    "fill_random: row0 and column0 must be non-negative and columns below 2^32, got row0 = ", row0,
                    ", column0 = ", column0);
  if (out.numel() == 0) return;
  if (out.is_complex()) {
    TORCH_CHECK_TYPE(kind == RandomKind::gaussian, "fill_random: a complex matrix must be Gaussian");
    // Column j is made of the real columns 2 j and 2 j + 1.
    const auto parts = at::view_as_real(out).as_strided({out.size(0), 2 * out.size(1)}, {2 * out.stride(0), 1});
    fill_random(parts, kind, seed, row0, 2 * column0);
    parts.mul_(std::numbers::sqrt2 / 2);
    return;
  }
  const kernels::RandomWindow window{
      static_cast<uint64_t>(seed), row0, out.size(0), column0, out.size(1), out.stride(0)};
  AT_DISPATCH_FLOATING_TYPES(out.scalar_type(), "fill_random", [&] {
    if (out.is_cpu()) {
      kernels::fill_random_cpu(out.mutable_data_ptr<scalar_t>(), kind, window);
      return;
    }
#ifdef FASTLR_WITH_CUDA
    if (out.is_cuda()) {
      const c10::cuda::CUDAGuard guard(out.device());
      kernels::fill_random_cuda(out.mutable_data_ptr<scalar_t>(), kind, window,
                                c10::cuda::getCurrentCUDAStream().stream());
      return;
    }
#endif
    TORCH_CHECK_VALUE(false, "fill_random: this build of fastlr has no kernel for device ", out.device(),
                      "; rebuild it where torch and nvcc have CUDA");
  });
}

at::Tensor gaussian(int64_t rows, int64_t columns, int64_t seed, int64_t column0, const at::TensorOptions& options,
                    int64_t row0) {
  const auto out = at::empty({rows, columns}, options.requires_grad(std::nullopt));
  fill_random(out, RandomKind::gaussian, seed, row0, column0);
  return out;
}

}  // namespace fastlr
