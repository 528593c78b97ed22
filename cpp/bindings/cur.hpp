// CUR as Python calls it, for tensors (ops.cpp) and for operators (module.cpp).
#pragma once

#include <ATen/ATen.h>

#include <optional>
#include <string_view>
#include <tuple>

#include <fastlr/cur.hpp>

namespace fastlr::bindings {

// C, U, R, rows, columns, info
using CurFactors = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

inline CurFactors cur(const std::shared_ptr<const LinearOperator>& A, int64_t rank,
                      const std::optional<at::Tensor>& columns, const std::optional<at::Tensor>& rows,
                      std::string_view middle, int64_t seed) {
  auto r = fastlr::cur(A, {rank, columns, rows, parse_cur_middle(middle), seed});
  return {r.C,
          r.U,
          r.R,
          r.rows,
          r.columns,
          at::tensor({static_cast<double>(r.passes), r.error.estimate, r.error.upper, r.error.failure,
                      static_cast<double>(r.kept)},
                     at::kDouble)};
}

}  // namespace fastlr::bindings
