#include "sparse.hpp"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>

#include "csr_transpose.hpp"

namespace fastlr {
namespace {

at::Tensor transposed_on_cpu(const at::Tensor& csr) {
  const auto rows = csr.crow_indices().contiguous(), columns = csr.col_indices().contiguous();
  const auto values = csr.values().resolve_conj().contiguous();
  auto new_rows = at::empty({csr.size(1) + 1}, rows.options());
  auto new_columns = at::empty_like(columns), new_values = at::empty_like(values);
  AT_DISPATCH_INDEX_TYPES(rows.scalar_type(), "csr_transpose", [&] {
    AT_DISPATCH_FLOATING_AND_COMPLEX_TYPES(values.scalar_type(), "csr_transpose", [&] {
      kernels::csr_transpose<scalar_t, index_t>({csr.size(0), csr.size(1), rows.const_data_ptr<index_t>(),
                                                 columns.const_data_ptr<index_t>(), values.const_data_ptr<scalar_t>()},
                                                new_rows.mutable_data_ptr<index_t>(),
                                                new_columns.mutable_data_ptr<index_t>(),
                                                new_values.mutable_data_ptr<scalar_t>());
    });
  });
  return at::_sparse_csr_tensor_unsafe(new_rows, new_columns, new_values, {csr.size(1), csr.size(0)},
                                       values.scalar_type(), at::kSparseCsr, csr.device(), std::nullopt);
}

}  // namespace

at::Tensor conjugate_transpose(const at::Tensor& csr) {
  if (csr.is_cpu()) {
    const auto transpose = transposed_on_cpu(csr);
    if (csr.values().is_complex()) transpose.values().copy_(transpose.values().conj().resolve_conj());
    return transpose;
  }
  const auto csc = csr.to_sparse_csc();
  return at::_sparse_csr_tensor_unsafe(csc.ccol_indices(), csc.row_indices(), csc.values().conj().resolve_conj(),
                                       {csr.size(1), csr.size(0)}, csc.values().scalar_type(), at::kSparseCsr,
                                       csr.device(), std::nullopt);
}

}  // namespace fastlr
