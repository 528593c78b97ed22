#include "row_block.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include <fastlr/linear_operator.hpp>

#include "checks.hpp"
#include "tall.hpp"

namespace fastlr {
namespace {

// Of each of several threads, before they wait for each other.
constexpr int64_t kVisits = 8;

bool is_sparse(const at::Tensor& rows) { return rows.layout() == at::kSparseCsr; }

at::Tensor dense_rows(const at::Tensor& A, int64_t row0, int64_t height) {
  if (!is_sparse(A)) return A.narrow(0, row0, height);
  const auto ends = A.crow_indices().narrow(0, row0, height + 1);
  const int64_t begin = ends[0].item<int64_t>(), count = ends[height].item<int64_t>() - begin;
  return at::_sparse_csr_tensor_unsafe(ends - begin, A.col_indices().narrow(0, begin, count),
                                       A.values().narrow(0, begin, count), {height, A.size(1)}, A.scalar_type(),
                                       at::kSparseCsr, A.device(), std::nullopt)
      .to_dense();
}

at::Tensor weighted_rows(const RowBlock& block, int64_t row0, int64_t height, int64_t exponent) {
  const auto rows = scaled(dense_rows(block.rows, row0, height), static_cast<int>(exponent));
  return block.weights ? rows * block.weights->narrow(0, row0, height).unsqueeze(1) : rows;
}

// (row, column) of the first entry that is not finite.
std::pair<int64_t, int64_t> first_bad(const at::Tensor& A) {
  if (!is_sparse(A)) {
    const auto index = at::isfinite(A).logical_not_().nonzero()[0].to(at::kCPU);
    return {index[0].item<int64_t>(), index[1].item<int64_t>()};
  }
  const auto entry = at::isfinite(A.values()).logical_not_().nonzero()[0];
  const auto row = at::searchsorted(A.crow_indices(), entry.to(A.crow_indices().scalar_type()), false, /*right=*/true);
  return {row.item<int64_t>() - 1, A.col_indices().index_select(0, entry).item<int64_t>()};
}

}  // namespace

double finite_magnitude(const RowBlock& block, const char* caller) {
  const double magnitude = largest_magnitude(is_sparse(block.rows) ? block.rows.values() : block.rows);
  if (std::isfinite(magnitude)) return magnitude;
  const auto [row, column] = first_bad(block.rows);
  const auto value = dense_rows(block.rows, row, 1)[0][column].item();
  TORCH_CHECK_VALUE(false, caller, ": rows must be finite, got ", value, " at index (", block.row0 + row, ", ", column,
                    ")");
}

void visit_dense(const RowBlock& block, int64_t height, int64_t exponent, const DenseVisitor& visit) {
  visit_dense(block, height, exponent, 1, [&](int64_t, const at::Tensor& rows) { visit(rows); });
}

void visit_dense(const RowBlock& block, int64_t height, int64_t exponent, int64_t shares, const SharedVisitor& visit) {
  const int64_t rows = block.rows.size(0), between_checks = shares == 1 ? height : kVisits * shares * height;
  for (int64_t start = 0; start < rows; start += between_checks) {
    for_row_blocks(std::min(between_checks, rows - start), height, shares,
                   [&](int64_t share, int64_t row, int64_t count) {
                     visit(share, weighted_rows(block, start + row, count, exponent));
                   });
    check_interrupt();
  }
}

}  // namespace fastlr
