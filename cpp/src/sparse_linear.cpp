#include <fastlr/sparse_linear.hpp>

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>

#include <algorithm>

#include "sparse_linear.hpp"
#include "token_rows.hpp"

#ifdef FASTLR_WITH_CUDA
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace fastlr {
namespace {

// Up to so many rows of X, expanding each row of W where it is multiplied is faster than products of blocks.
constexpr int64_t kFewTokens = 8;
// A block of rows of so many entries is expanded at once: few enough to stay in the cache until they are multiplied,
// and more where the product takes long enough, since every product packs X again.
constexpr int64_t kLeastBlock = int64_t(1) << 20, kMostBlock = int64_t(1) << 23, kBlockOfToken = int64_t(1) << 13;

// The bits of a matrix, of which `nonzeros` should be set.
class Mask {
 public:
  // `operand` is on the device of the mask, or there is an error.
  Mask(const at::Tensor& mask, const at::Tensor& operand, int64_t columns, int64_t nonzeros, const char* caller)
      : caller_(caller), nonzeros_(nonzeros), columns_(columns), bits_(mask.contiguous()) {
    TORCH_CHECK_VALUE(mask.device() == operand.device(), caller, ": mask must be on ", operand.device(), ", got ",
                      mask.device());
    TORCH_CHECK_TYPE(mask.scalar_type() == at::kByte, caller, ": mask must be uint8, got ", mask.scalar_type());
    TORCH_CHECK_VALUE(mask.dim() == 2 && mask.size(1) == (columns + 7) / 8, caller, ": mask must have a row of ",
                      (columns + 7) / 8, " bytes for ", columns, " columns, got shape ", mask.sizes());
#ifdef FASTLR_WITH_CUDA
    if (mask.is_cuda()) return;
#endif
    TORCH_CHECK_VALUE(mask.is_cpu(), caller, ": this build of fastlr has no kernel for device ", mask.device(),
                      "; rebuild it where torch and nvcc have CUDA");
  }

  int64_t rows() const { return bits_.size(0); }
  const uint8_t* row(int64_t r) const { return bits_.const_data_ptr<uint8_t>() + r * bits_.size(1); }

  // out = X Wᵀ, row by row of W.
  void multiply(const at::Tensor& values, const at::Tensor& X, const at::Tensor& out) const {
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, values.scalar_type(), "sparse_linear", [&] {
#ifdef FASTLR_WITH_CUDA
      if (bits_.is_cuda()) {
        const auto starts = row_starts();
        kernels::multiply_cuda<scalar_t>({row(0), starts.const_data_ptr<int64_t>(), rows(), columns_},
                                         values.const_data_ptr<scalar_t>(), nonzeros_, X.const_data_ptr<scalar_t>(),
                                         X.size(0), out.mutable_data_ptr<scalar_t>(), stream());
        return;
      }
#endif
      using Sum = at::opmath_type<scalar_t>;
      const int64_t padding = (kernels::kWord - columns_ % kernels::kWord) % kernels::kWord;
      const auto inputs = at::constant_pad_nd(X.to(c10::CppTypeToScalarType<Sum>::value), {0, padding});
      const bool fits = kernels::multiply_cpu<scalar_t>(
          row(0), rows(), columns_, values.const_data_ptr<scalar_t>(), nonzeros_,
          {inputs.const_data_ptr<Sum>(), X.size(0), inputs.size(1)}, out.mutable_data_ptr<scalar_t>());
      if (!fits) row_starts();
    });
  }

 protected:
  // Where the values of each row begin, and on the CPU an error if there are more or fewer of them than bits.
  at::Tensor row_starts() const {
    auto starts = at::zeros({rows() + 1}, bits_.options().dtype(at::kLong));
#ifdef FASTLR_WITH_CUDA
    if (bits_.is_cuda()) {
      kernels::count_kept_cuda(row(0), rows(), columns_, starts.mutable_data_ptr<int64_t>() + 1, stream());
      return starts.cumsum(0);
    }
#endif
    int64_t* first = starts.mutable_data_ptr<int64_t>();
    kernels::count_kept_cpu(row(0), rows(), columns_, first);
    TORCH_CHECK_VALUE(first[rows()] == nonzeros_, caller_, ": mask keeps ", first[rows()], " entries, got ", nonzeros_,
                      " values");
    return starts;
  }

#ifdef FASTLR_WITH_CUDA
  static void* stream() { return c10::cuda::getCurrentCUDAStream().stream(); }
#endif

  const char* caller_;
  int64_t nonzeros_, columns_;
  at::Tensor bits_;
#ifdef FASTLR_WITH_CUDA
  c10::cuda::OptionalCUDAGuard guard_{bits_.is_cuda() ? std::make_optional(bits_.device()) : std::nullopt};
#endif
};

// The same, and where the values of each row begin.
class KeptEntries : public Mask {
 public:
  KeptEntries(const at::Tensor& mask, const at::Tensor& operand, int64_t columns, int64_t nonzeros, const char* caller)
      : Mask(mask, operand, columns, nonzeros, caller), starts_(row_starts()) {}

  // Calls work(first, block) for blocks of rows from `first` on, `block` being memory for them, of a size for
  // products with `tokens` inputs.
  template <typename Work>
  void for_blocks(int64_t tokens, const at::TensorOptions& options, const Work& work) const {
    const int64_t entries = std::clamp(tokens * kBlockOfToken, kLeastBlock, kMostBlock);
    const int64_t height = std::max<int64_t>(1, entries / std::max<int64_t>(1, columns_));
    const auto memory = at::empty({std::min(height, rows()), columns_}, options);
    for (int64_t first = 0; first < rows(); first += height)
      work(first, memory.narrow(0, 0, std::min(height, rows() - first)));
  }

  void expand(const at::Tensor& values, int64_t first, const at::Tensor& dense) const {
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, values.scalar_type(), "sparse_expand", [&] {
#ifdef FASTLR_WITH_CUDA
      if (bits_.is_cuda())
        return kernels::expand_cuda(kept(first, dense.size(0)), values.const_data_ptr<scalar_t>(), nonzeros_,
                                    dense.mutable_data_ptr<scalar_t>(), stream());
#endif
      kernels::expand_cpu(kept(first, dense.size(0)), values.const_data_ptr<scalar_t>(),
                          dense.mutable_data_ptr<scalar_t>());
    });
  }

  void gather(const at::Tensor& dense, int64_t first, const at::Tensor& values) const {
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, values.scalar_type(), "sparse_gather", [&] {
#ifdef FASTLR_WITH_CUDA
      if (bits_.is_cuda())
        return kernels::gather_cuda(kept(first, dense.size(0)), dense.const_data_ptr<scalar_t>(), dense.stride(0),
                                    values.mutable_data_ptr<scalar_t>(), nonzeros_, stream());
#endif
      kernels::gather_cpu(kept(first, dense.size(0)), dense.const_data_ptr<scalar_t>(), dense.stride(0),
                          values.mutable_data_ptr<scalar_t>());
    });
  }

 private:
  kernels::KeptRows kept(int64_t first, int64_t rows) const {
    return {row(first), starts_.const_data_ptr<int64_t>() + first, rows, columns_};
  }

  at::Tensor starts_;
};

void check_values(const at::Tensor& values, const char* caller) {
  const auto type = values.scalar_type();
  TORCH_CHECK_TYPE(at::isFloatingType(type) && c10::elementSize(type) > 1, caller,
                   ": values must be float16, bfloat16, float32 or float64, got ", type);
  TORCH_CHECK_VALUE(values.dim() == 1, caller, ": values must have 1 dimension, got shape ", values.sizes());
}

}  // namespace

at::Tensor sparse_expand(const at::Tensor& values, const at::Tensor& mask, int64_t columns) {
  check_values(values, "sparse_expand");
  const KeptEntries kept(mask, values, columns, values.numel(), "sparse_expand");
  auto dense = at::empty({kept.rows(), columns}, values.options());
  kept.expand(values.contiguous(), 0, dense);
  return dense;
}

at::Tensor sparse_gather(const at::Tensor& matrix, const at::Tensor& mask, int64_t nonzeros) {
  TORCH_CHECK_VALUE(matrix.dim() == 2 && mask.dim() == 2 && matrix.size(0) == mask.size(0),
                    "sparse_gather: matrix must have as many rows as mask, got shapes ", matrix.sizes(), " and ",
                    mask.sizes());
  const KeptEntries kept(mask, matrix, matrix.size(1), nonzeros, "sparse_gather");
  auto values = at::empty({nonzeros}, matrix.options());
  kept.gather(matrix.contiguous(), 0, values);
  return values;
}

at::Tensor sparse_linear(const at::Tensor& X, const at::Tensor& values, const at::Tensor& mask) {
  check_values(values, "sparse_linear");
  TORCH_CHECK_VALUE(X.dim() >= 1, "sparse_linear: X must have a dimension at least, got a number");
  const int64_t columns = X.size(-1);
  const auto inputs = as_rows(X, columns, values, "sparse_linear", "X"), weights = values.contiguous();
  const Mask bits(mask, values, columns, values.numel(), "sparse_linear");
  auto out = at::empty({inputs.size(0), bits.rows()}, values.options());
  if (inputs.size(0) <= kFewTokens) {
    bits.multiply(weights, inputs, out);
  } else {
    const KeptEntries kept(mask, values, columns, values.numel(), "sparse_linear");
    kept.for_blocks(inputs.size(0), values.options(), [&](int64_t first, const at::Tensor& block) {
      kept.expand(weights, first, block);
      auto part = out.narrow(1, first, block.size(0));
      at::mm_out(part, inputs, block.t());
    });
  }
  return out.view(shape_with(X, bits.rows()));
}

at::Tensor sparse_linear_adjoint(const at::Tensor& Y, const at::Tensor& values, const at::Tensor& mask,
                                 int64_t columns) {
  check_values(values, "sparse_linear_adjoint");
  const KeptEntries kept(mask, values, columns, values.numel(), "sparse_linear_adjoint");
  const auto inputs = as_rows(Y, kept.rows(), values, "sparse_linear_adjoint", "Y"), weights = values.contiguous();
  auto out = at::zeros({inputs.size(0), columns}, values.options());
  kept.for_blocks(inputs.size(0), values.options(), [&](int64_t first, const at::Tensor& block) {
    kept.expand(weights, first, block);
    out.addmm_(inputs.narrow(1, first, block.size(0)), block);
  });
  return out.view(shape_with(Y, columns));
}

at::Tensor sparse_products(const at::Tensor& Y, const at::Tensor& X, const at::Tensor& mask, int64_t nonzeros) {
  TORCH_CHECK_VALUE(Y.dim() >= 1 && X.dim() >= 1, "sparse_products: X and Y must have a dimension at least");
  const int64_t columns = X.size(-1);
  const KeptEntries kept(mask, X, columns, nonzeros, "sparse_products");
  const auto right = as_rows(X, columns, Y, "sparse_products", "X");
  const auto left = as_rows(Y, kept.rows(), Y, "sparse_products", "Y");
  auto values = at::empty({nonzeros}, X.options());
  kept.for_blocks(right.size(0), X.options(), [&](int64_t first, at::Tensor block) {
    at::mm_out(block, left.narrow(1, first, block.size(0)).t(), right);
    kept.gather(block, first, values);
  });
  return values;
}

}  // namespace fastlr
