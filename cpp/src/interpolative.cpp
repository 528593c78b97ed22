#include <fastlr/interpolative.hpp>

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include <fastlr/orthonormalize.hpp>
#include <fastlr/random.hpp>
#include <fastlr/error_estimate.hpp>
#include <fastlr/randomized_svd.hpp>

#include "checks.hpp"
#include "interpolative.hpp"

namespace fastlr {
namespace {

// Gu and Eisenstat's f: no exchange of a chosen for another column multiplies the volume by more than this.
constexpr double kBound = 2.0;
constexpr int64_t kOversample = 10;

// The elements in order of choice: `rank` chosen ones, then the others.
struct Selection {
  std::vector<int64_t> order;
  int64_t rank;

  at::Tensor chosen(at::Device device) const { return part(0, rank, device); }
  at::Tensor others(at::Device device) const { return part(rank, static_cast<int64_t>(order.size()), device); }

 private:
  at::Tensor part(int64_t begin, int64_t end, at::Device device) const {
    return at::tensor(at::ArrayRef<int64_t>(order.data() + begin, end - begin), at::kLong).to(device);
  }
};

// The rows that Gaussian elimination with partial pivoting picks: a first selection of large volume.
Selection pivot_rows(const at::Tensor& F) {
  Selection selection{std::vector<int64_t>(F.size(0)), F.size(1)};
  for (size_t i = 0; i < selection.order.size(); ++i) selection.order[i] = static_cast<int64_t>(i);
  const auto [LU, pivots, info] = at::linalg_lu_factor_ex(F);
  const auto swaps = pivots.to(at::kCPU, at::kLong).contiguous();
  for (int64_t i = 0; i < swaps.numel(); ++i)
    std::swap(selection.order[i], selection.order[swaps.const_data_ptr<int64_t>()[i] - 1]);
  return selection;
}

// One exchange by tensor operations, for devices without a kernel of their own.
int64_t swap_until_bounded_aten(at::Tensor& T, std::vector<int64_t>& order, int64_t most) {
  for (int64_t exchanged = 0;; ++exchanged) {
    const int64_t at = T.abs().argmax().item<int64_t>();
    const int64_t p = at / T.size(1), q = at % T.size(1);
    const double pivot = T[p][q].item<double>();
    if (!(std::abs(pivot) > kBound) || exchanged == most) return exchanged;
    const auto factor = T.select(1, q) / pivot;
    auto row = T[p].clone();
    row[q].sub_(1);
    T.addr_(factor, row, 1, -1);
    T.select(0, p).copy_(row.div_(-pivot));
    T[p][q].fill_(1 / pivot);
    std::swap(order[q], order[T.size(1) + p]);
  }
}

int64_t swap_until_bounded(at::Tensor& T, Selection& selection, int64_t most) {
  if (T.numel() == 0) return 0;
  if (!T.is_cpu()) return swap_until_bounded_aten(T, selection.order, most);
  int64_t exchanged = 0;
  AT_DISPATCH_FLOATING_TYPES(T.scalar_type(), "interpolative", [&] {
    exchanged = kernels::swap_until_bounded_cpu(T.mutable_data_ptr<scalar_t>(), T.size(0), T.size(1), kBound, most,
                                                selection.order.data());
  });
  return exchanged;
}

struct Choice {
  Selection selection;
  at::Tensor T;  // others x rank, entries bounded by kBound
};

// Rows of F (n x k, orthonormal columns) of locally maximal volume: F ≈ [I; T] F[chosen], where F has no residual
// and Gu and Eisenstat's criterion reads |T| <= f. T is recomputed after the exchanges, free of their rounding.
Choice choose_rows(const at::Tensor& F) {
  auto selection = pivot_rows(F);
  const int64_t most = 64 + 16 * F.size(1);
  for (int64_t round = 0; round < 16; ++round) {
    auto T = at::linalg_solve(F.index_select(0, selection.chosen(F.device())),
                              F.index_select(0, selection.others(F.device())), /*left=*/false)
                 .contiguous();
    if (swap_until_bounded(T, selection, most) == 0) return {std::move(selection), T};
  }
  TORCH_CHECK_LINALG(false, "interpolative: the pivoting did not settle in 16 rounds of ", most,
                     " exchanges; please report the matrix");
}

// The full criterion on B (l x n, l > k), which has a residual beyond rank k: exchanges column i for j while
// T_ij^2 + (gamma_j / omega_i)^2 > f^2, then T = B[:, chosen]^+ B[:, others], the least-squares coefficients.
void exchange_until_strong(const at::Tensor& B, Choice& choice) {
  auto& selection = choice.selection;
  const int64_t most = 16 + selection.rank;
  for (int64_t exchanged = 0; exchanged < most; ++exchanged) {
    const auto C = B.index_select(1, selection.chosen(B.device()));
    const auto rest = B.index_select(1, selection.others(B.device()));
    const auto [Q, R] = at::linalg_qr(C);
    const auto T = at::linalg_solve_triangular(R, at::mm(Q.mT(), rest), /*upper=*/true);
    const auto inverse = at::linalg_solve_triangular(R, at::eye(R.size(0), R.options()), /*upper=*/true);
    const auto residual = (rest - at::mm(C, T)).square().sum(0);
    const auto volume_ratio = T.square() + at::outer(inverse.square().sum(1), residual);
    const int64_t at = volume_ratio.argmax().item<int64_t>();
    if (!(volume_ratio.max().item<double>() > kBound * kBound)) {
      choice.T = T.mT();
      return;
    }
    std::swap(selection.order[at / T.size(1)], selection.order[selection.rank + at % T.size(1)]);
  }
  TORCH_CHECK_LINALG(false, "interpolative: the pivoting did not settle in ", most,
                     " exchanges; please report the matrix");
}

Choice choose_columns(const at::Tensor& A, int64_t rank, int64_t seed, int64_t& passes) {
  if (rank == A.size(0)) return choose_rows(orthonormalize(A.mT()));
  const int64_t compressed = std::min({rank + kOversample, A.size(0), A.size(1)});
  const auto svd = randomized_svd(as_operator(A), {.rank = compressed, .oversample = kOversample, .seed = seed});
  passes += svd.passes;
  auto choice = choose_rows(svd.Vh.narrow(0, 0, rank).mT().contiguous());
  if (svd.S[rank - 1].item<double>() > 0) {
    const auto unit = scaled(svd.S, scale_exponent(svd.S[0].item<double>()));
    exchange_until_strong(unit.unsqueeze(1) * svd.Vh, choice);
  }
  return choice;
}

}  // namespace

Interpolative interpolative(const at::Tensor& A, int64_t rank, int64_t seed) {
  check_matrix(A, "interpolative");
  TORCH_CHECK_TYPE(!A.is_complex(), "interpolative: A must be real, got ", A.scalar_type());
  const int64_t n = A.size(1), shorter = std::min(A.size(0), n);
  TORCH_CHECK_VALUE(rank >= 1 && rank <= shorter, "interpolative: rank must be between 1 and min(m, n) = ", shorter,
                    ", got ", rank);
  check_finite(A, "interpolative");
  if (rank == n) return {at::arange(n, A.options().dtype(at::kLong)), at::eye(n, A.options()), 1, 0.0, 0};

  int64_t passes = 2;
  const auto choice = choose_columns(A, rank, seed, passes);
  const auto chosen = choice.selection.chosen(A.device()), others = choice.selection.others(A.device());
  auto coefficients = at::empty({rank, n}, A.options());
  coefficients.index_copy_(1, chosen, at::eye(rank, A.options()));
  coefficients.index_copy_(1, others, choice.T.mT());

  const auto omega = at::empty({n, kProbes}, A.options());
  fill_random(omega, RandomKind::gaussian, seed, 0, rank + 2 * kOversample + kProbes);
  const auto residual = at::mm(A, omega) - at::mm(A.index_select(1, chosen), at::mm(coefficients, omega));
  return {chosen, coefficients, passes, frobenius_estimate(residual), kProbes};
}

}  // namespace fastlr
