#include "small_matrices.hpp"

#include <ATen/ATen.h>

#include "batched_cholesky.hpp"
#include "batched_gram.hpp"
#include "batched_svd.hpp"

namespace fastlr {
namespace {

// Beyond so many columns BLAS and LAPACK, one matrix after the other, are faster.
constexpr int64_t kMostForProducts = 48, kMostForEigenvectors = 28, kMostForSvd = 40;

bool is_batch_on_host(const at::Tensor& M, int64_t most_columns) {
  return M.dim() == 3 && M.is_cpu() && !M.is_complex() && M.size(-1) <= most_columns;
}

}  // namespace

std::optional<at::Tensor> batched_gram(const at::Tensor& Y, at::ScalarType of) {
  if (!is_batch_on_host(Y, kMostForProducts)) return std::nullopt;
  const int64_t count = Y.size(0), rows = Y.size(1), columns = Y.size(2);
  const auto G = at::empty({count, columns, columns}, Y.options().dtype(of));
  const auto compute = [&]<typename In, typename Out>(In, Out) {
    kernels::gram_cpu(Y.const_data_ptr<In>(), count, rows, columns, Y.strides().data(), G.mutable_data_ptr<Out>());
  };
  if (of == at::kFloat) {
    compute(float{}, float{});
  } else if (Y.scalar_type() == at::kFloat) {
    compute(float{}, double{});
  } else {
    compute(double{}, double{});
  }
  return G;
}

std::optional<CholeskyFactors> batched_cholesky(const at::Tensor& G) {
  if (!is_batch_on_host(G, kMostForProducts)) return std::nullopt;
  const auto matrices = G.contiguous();
  const int64_t count = G.size(0);
  const auto R = at::empty_like(matrices), T = at::empty_like(matrices),
             amplification = at::empty({count}, G.options()), valid = at::empty({count}, G.options().dtype(at::kBool));
  AT_DISPATCH_FLOATING_TYPES(G.scalar_type(), "batched_cholesky", [&] {
    kernels::cholesky_cpu(matrices.const_data_ptr<scalar_t>(), count, G.size(1), R.mutable_data_ptr<scalar_t>(),
                          T.mutable_data_ptr<scalar_t>(), valid.mutable_data_ptr<bool>(),
                          amplification.mutable_data_ptr<scalar_t>());
  });
  return CholeskyFactors{R, T, valid, amplification};
}

SmallSvd small_svd(const at::Tensor& core) {
  if (!is_batch_on_host(core, kMostForSvd) || core.scalar_type() != at::kDouble) {
    const auto [U, S, Vh] = at::linalg_svd(core, /*full_matrices=*/false);
    return {U, S, Vh.mH()};
  }
  const auto matrices = core.contiguous();
  const auto U = at::empty_like(matrices), S = at::empty({core.size(0), core.size(1)}, core.options()),
             V = at::empty_like(matrices);
  kernels::svd_cpu(matrices.const_data_ptr<double>(), core.size(0), core.size(1), U.mutable_data_ptr<double>(),
                   S.mutable_data_ptr<double>(), V.mutable_data_ptr<double>());
  return {U, S, V};
}

std::pair<at::Tensor, at::Tensor> small_eigenvectors(const at::Tensor& G) {
  if (!is_batch_on_host(G, kMostForEigenvectors) || G.scalar_type() != at::kDouble) {
    const auto [values, vectors] = at::linalg_eigh(G);
    return {values.clamp_min(0).flip(-1), vectors.flip(-1)};
  }
  const auto matrices = G.contiguous();
  const auto vectors = at::empty_like(matrices), values = at::empty({G.size(0), G.size(1)}, G.options());
  kernels::svd_cpu(matrices.const_data_ptr<double>(), G.size(0), G.size(1), vectors.mutable_data_ptr<double>(),
                   values.mutable_data_ptr<double>(), nullptr);
  return {values, vectors};
}

}  // namespace fastlr
