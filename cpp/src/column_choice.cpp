#include "column_choice.hpp"

#include <ATen/ATen.h>

#include <utility>

#include "column_order.hpp"
#include "interpolative.hpp"

namespace fastlr {
namespace {

// The columns that Gaussian elimination with partial pivoting picks: a first selection of large volume.
Choice pivot_columns(const at::Tensor& rows) {
  Choice choice{as_they_are(rows.size(1)), rows.size(0), {}};
  const auto [LU, pivots, info] = at::linalg_lu_factor_ex(rows.mT());
  const auto swaps = pivots.to(at::kCPU, at::kLong).contiguous();
  for (int64_t i = 0; i < swaps.numel(); ++i)
    std::swap(choice.order[i], choice.order[swaps.const_data_ptr<int64_t>()[i] - 1]);
  return choice;
}

// By tensor operations, for complex numbers and devices without a kernel of their own. Tt is others x chosen.
int64_t swap_until_bounded_aten(at::Tensor& Tt, std::vector<int64_t>& order, int64_t most) {
  for (int64_t exchanged = 0;; ++exchanged) {
    const auto sizes = Tt.abs();
    const int64_t at = sizes.argmax().item<int64_t>();
    if (!(sizes.max().item<double>() > kStrong) || exchanged == most) return exchanged;
    const int64_t p = at / Tt.size(1), q = at % Tt.size(1);
    const auto pivot = Tt[p][q].clone(), factor = Tt.select(1, q) / pivot;
    auto row = Tt[p].clone();
    row[q].sub_(1);
    Tt.sub_(at::outer(factor, row));
    Tt.select(0, p).copy_(row.div_(-pivot));
    Tt[p][q].copy_(pivot.reciprocal());
    std::swap(order[q], order[Tt.size(1) + p]);
  }
}

int64_t swap_until_bounded(at::Tensor& Tt, std::vector<int64_t>& order, int64_t most) {
  if (Tt.numel() == 0) return 0;
  if (!Tt.is_cpu() || Tt.is_complex()) return swap_until_bounded_aten(Tt, order, most);
  int64_t exchanged = 0;
  AT_DISPATCH_FLOATING_TYPES(Tt.scalar_type(), "swap_until_bounded", [&] {
    exchanged = kernels::swap_until_bounded_cpu(Tt.mutable_data_ptr<scalar_t>(), Tt.size(0), Tt.size(1), kStrong, most,
                                                order.data());
  });
  return exchanged;
}

}  // namespace

at::Tensor Choice::chosen(at::Device device) const { return index_tensor(at::ArrayRef(order).slice(0, rank), device); }
at::Tensor Choice::others(at::Device device) const { return index_tensor(at::ArrayRef(order).slice(rank), device); }

bool is_bounded(const at::Tensor& T) { return T.numel() == 0 || T.abs().max().item<double>() <= kStrong; }

Choice choose_of_orthonormal(const at::Tensor& rows, const char* caller) {
  auto choice = pivot_columns(rows);
  const int64_t most = 64 + 16 * rows.size(0);
  for (int64_t round = 0; round < 16; ++round) {
    auto Tt = at::linalg_solve(rows.index_select(1, choice.chosen(rows.device())).mT(),
                               rows.index_select(1, choice.others(rows.device())).mT(), /*left=*/false)
                  .contiguous();
    if (swap_until_bounded(Tt, choice.order, most) > 0) continue;
    choice.T = Tt.mT();
    return choice;
  }
  TORCH_CHECK_LINALG(false, caller, ": the pivoting did not settle in 16 rounds of ", most,
                     " exchanges; please report the matrix");
}

}  // namespace fastlr
