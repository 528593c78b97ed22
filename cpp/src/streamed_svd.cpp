#include "streamed_svd.hpp"

#include <ATen/ATen.h>

#include <cmath>

#include "svd_parts.hpp"

namespace fastlr {

StreamedSvd as_streamed(StreamedSvd svd, int64_t exponent, at::ScalarType type) {
  const int back = static_cast<int>(-exponent);
  auto V = materialized_adjoint(svd.Vh).clone(at::MemoryFormat::Contiguous), Vh = svd.Vh;
  fix_signs(V, Vh);
  return {scaled(svd.S, back).to(c10::toRealValueType(type)), materialized_adjoint(V).to(type).contiguous(),
          scaled(svd.error, back), std::ldexp(svd.bound, 2 * back)};
}

}  // namespace fastlr
