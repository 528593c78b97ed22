#include "orthonormal_beside.hpp"

#include <ATen/ATen.h>

#include <cmath>

#include <fastlr/orthonormalize.hpp>
#include <fastlr/random.hpp>

#include "checks.hpp"

namespace fastlr {
namespace {

// The stream of the completions, apart from those of small seeds.
constexpr int64_t kCompletionSeed = 0x636f6d706c657465;
// Directions of which less than this fraction lies outside of the basis are none of Y's, but rounding.
constexpr double kOutside = 0.1;

// R with its weak singular directions replaced by random ones.
at::Tensor with_random_directions(const at::Tensor& R, int64_t& drawn) {
  const auto [left, S, right] = at::linalg_svd(R, /*full_matrices=*/false);
  const int64_t kept = (S > kOutside).sum().item<int64_t>(), missing = R.size(1) - kept;
  if (missing == 0) return R;
  const auto random = gaussian(R.size(0), missing, kCompletionSeed, drawn, R.options());
  drawn += missing;
  return at::cat({left.narrow(1, 0, kept), random / std::sqrt(static_cast<double>(R.size(0)))}, 1);
}

}  // namespace

at::Tensor orthonormal_beside(const at::Tensor& basis, const at::Tensor& Y, int64_t& drawn) {
  constexpr int kMostRounds = 6;
  auto Q = stabilize(Y);
  bool completed = false;
  for (int round = 0; round < kMostRounds; ++round) {
    const auto overlap = at::mm(basis.mH(), Q);
    const double size = frobenius_norm(overlap);
    auto R = at::addmm(Q, basis, overlap, 1, -1);
    // What of well-conditioned columns is nearly outside is outside after this, to rounding.
    if (size <= kOutside) return polish(R);
    if (size > 1 - kOutside && !completed) {
      R = with_random_directions(R, drawn);
      completed = true;
    }
    Q = orthonormalize(R);
  }
  return Q;
}

}  // namespace fastlr
