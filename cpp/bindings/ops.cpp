// Operator schemas torch.ops.fastlr.*; fake implementations and autograd are in python/fastlr/_ops.py.
#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include <vector>

#include <fastlr/householder.hpp>
#include <fastlr/incremental_svd.hpp>
#include <fastlr/joint_svd.hpp>
#include <fastlr/low_rank_linear.hpp>
#include <fastlr/nonnegative_rows.hpp>
#include <fastlr/orthonormalize.hpp>
#include <fastlr/pivoted_qr.hpp>
#include <fastlr/random.hpp>
#include <fastlr/sketch.hpp>
#include <fastlr/sketch_operator.hpp>
#include <fastlr/sparse_linear.hpp>
#include <fastlr/svd_backward.hpp>
#include <fastlr/weighted_low_rank.hpp>

#include "batches.hpp"
#include "cur.hpp"
#include "dispatch.hpp"
#include "guards.hpp"
#include "interpolative.hpp"
#include "svd.hpp"

namespace {

using fastlr::bindings::batch_of;
using fastlr::bindings::Factors;
using fastlr::bindings::find;
using fastlr::bindings::flattened;
using fastlr::bindings::Guarded;
using fastlr::bindings::unflattened;

at::Tensor random_matrix(int64_t rows, int64_t columns, c10::string_view kind, int64_t seed, int64_t row0,
                         int64_t column0, at::ScalarType dtype, at::Device device) {
  TORCH_CHECK_VALUE(rows >= 0 && columns >= 0, "random_matrix: rows and columns must be non-negative, got ", rows,
                    " and ", columns);
  const auto parsed = fastlr::parse_random_kind(std::string_view(kind.data(), kind.size()));
  auto out = at::empty({rows, columns}, at::TensorOptions().dtype(dtype).device(device));
  fastlr::fill_random(out, parsed, seed, row0, column0);
  return out;
}

at::Tensor gaussian_product(const at::Tensor& X, int64_t rows, int64_t columns, int64_t seed, bool transposed) {
  return fastlr::gaussian_product(X, rows, columns, seed, transposed);
}

fastlr::SketchOperator sketch_operator(c10::string_view kind, int64_t rows, int64_t columns, int64_t seed,
                                       int64_t nonzeros) {
  const fastlr::SketchOperator S{fastlr::parse_sketch_kind(std::string_view(kind.data(), kind.size())), rows, columns,
                                 seed, nonzeros};
  S.check("sketch");
  return S;
}

at::Tensor sketch_apply(const at::Tensor& A, c10::string_view kind, int64_t rows, int64_t columns, int64_t seed,
                        int64_t nonzeros, int64_t first) {
  return sketch_operator(kind, rows, columns, seed, nonzeros).apply(A, first);
}

at::Tensor sketch_adjoint(const at::Tensor& Y, c10::string_view kind, int64_t rows, int64_t columns, int64_t seed,
                          int64_t nonzeros, int64_t first, int64_t count) {
  return sketch_operator(kind, rows, columns, seed, nonzeros).apply_adjoint(Y, first, count);
}

Factors randomized_svd(const at::Tensor& A, int64_t rank, int64_t oversample, std::optional<int64_t> power_iters,
                       c10::string_view method, c10::string_view precision, bool center, int64_t seed) {
  const std::string_view name(method.data(), method.size()), type(precision.data(), precision.size());
  if (A.dim() == 2)
    return fastlr::bindings::svd(fastlr::as_operator(A), rank, oversample, power_iters, name, type, center, seed);
  TORCH_CHECK_VALUE(A.dim() > 2, "randomized_svd: A must have at least 2 dimensions, got shape ", A.sizes());
  const fastlr::SvdOptions options{rank,
                                   oversample,
                                   power_iters,
                                   seed,
                                   fastlr::bindings::parse_method(name),
                                   fastlr::bindings::parse_precision(type)};
  const auto r = fastlr::randomized_svd(flattened(A), options, center);
  const auto batch = batch_of(A);
  return {unflattened(r.U, batch), unflattened(r.S, batch), unflattened(r.Vh, batch),
          unflattened(fastlr::bindings::numbers(r.outcomes), batch)};
}

Factors adaptive_svd(const at::Tensor& A, double tol, std::optional<int64_t> most_rank, int64_t oversample,
                     std::optional<int64_t> power_iters, bool center, int64_t seed) {
  return fastlr::bindings::svd_to_tolerance(fastlr::as_operator(A), tol, most_rank, oversample, power_iters, center,
                                            seed);
}

at::Tensor svd_backward(const at::Tensor& A, const at::Tensor& U, const at::Tensor& S, const at::Tensor& Vh,
                        const std::optional<at::Tensor>& gU, const std::optional<at::Tensor>& gS,
                        const std::optional<at::Tensor>& gVh, bool center) {
  return fastlr::svd_backward(A, U, S, Vh, gU, gS, gVh, center);
}

fastlr::bindings::Interpolated interpolative(const at::Tensor& A, std::optional<int64_t> rank,
                                             std::optional<double> tol, bool of_rows, int64_t seed) {
  if (A.dim() == 2) return fastlr::bindings::interpolative(fastlr::as_operator(A), rank, tol, of_rows, seed);
  TORCH_CHECK_VALUE(A.dim() > 2, "interpolative: A must have at least 2 dimensions, got shape ", A.sizes());
  TORCH_CHECK_VALUE(rank && !tol, "interpolative: a batch takes a rank and no tol, got shape ", A.sizes());
  return fastlr::bindings::interpolative_batch(A, *rank, of_rows, seed);
}

at::Tensor numbers(const fastlr::PivotedQr& r) {
  return at::tensor({r.error, static_cast<double>(r.exchanges), static_cast<double>(r.converged),
                     static_cast<double>(static_cast<int64_t>(r.method))},
                    at::kDouble);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> pivoted_qr(const at::Tensor& A, std::optional<int64_t> rank,
                                                                      double tol, std::optional<double> strong,
                                                                      int64_t seed) {
  const fastlr::PivotedQrOptions options{rank, tol, strong, seed};
  if (A.dim() == 2) {
    const auto r = fastlr::pivoted_qr(A, options);
    return {r.Q, r.R, r.pivots, numbers(r)};
  }
  TORCH_CHECK_VALUE(A.dim() > 2, "pivoted_qr: A must have at least 2 dimensions, got shape ", A.sizes());
  TORCH_CHECK_VALUE(tol == 0, "pivoted_qr: a batch takes no tol, got shape ", A.sizes());
  const auto flat = flattened(A);
  const int64_t count = flat.size(0), m = flat.size(1), n = flat.size(2), k = rank.value_or(std::min(m, n));
  const auto Q = at::empty({count, m, k}, A.options()), R = at::empty({count, k, n}, A.options());
  const auto pivots = at::empty({count, n}, A.options().dtype(at::kLong)), info = at::empty({count, 4}, at::kDouble);
  const auto results = fastlr::pivoted_qr_batch(flat, options);
  for (int64_t i = 0; i < count; ++i) {
    Q[i].copy_(results[i].Q);
    R[i].copy_(results[i].R);
    pivots[i].copy_(results[i].pivots);
    info[i].copy_(numbers(results[i]));
  }
  const auto batch = batch_of(A);
  return {unflattened(Q, batch), unflattened(R, batch), unflattened(pivots, batch), unflattened(info, batch)};
}

fastlr::bindings::CurFactors cur(const at::Tensor& A, int64_t rank, const std::optional<at::Tensor>& columns,
                                 const std::optional<at::Tensor>& rows, c10::string_view middle, int64_t seed) {
  return fastlr::bindings::cur(fastlr::as_operator(A), rank, columns, rows,
                               std::string_view(middle.data(), middle.size()), seed);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> joint_factors(at::TensorList matrices, int64_t width,
                                                                         int64_t power_iters, int64_t seed,
                                                                         c10::string_view caller) {
  auto r = fastlr::joint_factors(matrices, width, power_iters, seed, std::string_view(caller.data(), caller.size()));
  return {r.U, r.S, r.rest, r.norm};
}

at::Tensor joint_bounds(const at::Tensor& U, const at::Tensor& S, const at::Tensor& rest, const at::Tensor& norm,
                        int64_t rank, double roundoff) {
  const auto r = fastlr::joint_bounds({U, S, rest, norm, roundoff}, rank);
  return at::tensor({r.weyl, r.residual, r.estimate}, at::kDouble);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> cluster_matrices(const at::Tensor& U, const at::Tensor& S,
                                                                const at::Tensor& rest, const at::Tensor& norm,
                                                                int64_t rank, double tol, double roundoff,
                                                                c10::string_view bound) {
  const auto parsed = fastlr::parse_joint_bound(std::string_view(bound.data(), bound.size()));
  auto r = fastlr::cluster_matrices({U, S, rest, norm, roundoff}, rank, tol, parsed);
  return {r.labels, r.errors, r.bases};
}

fastlr::ErrorBound error_bound(at::ArrayRef<double> numbers) { return {numbers[0], numbers[1], numbers[2]}; }

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> incremental_append(const at::Tensor& core,
                                                                              const at::Tensor& lines, int64_t most,
                                                                              double tol, at::ArrayRef<double> error) {
  const auto r = fastlr::append_rows(core, lines, {most, tol}, error_bound(error));
  return {r.rotation, r.core, r.right, at::tensor({r.error.settled, r.error.running, r.error.rounding}, at::kDouble)};
}

Factors incremental_compress(const at::Tensor& left, const at::Tensor& core, const at::Tensor& right, int64_t least,
                             int64_t most, double tol, at::ArrayRef<double> error) {
  const auto r = fastlr::compress(left, core, right, least, {most, tol}, error_bound(error));
  return {r.U, r.S, r.Vh, at::tensor({r.error.settled, r.error.running, r.error.rounding, r.dropped}, at::kDouble)};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> weighted_low_rank(
    const at::Tensor& W, const std::optional<at::Tensor>& left, const std::optional<at::Tensor>& left_vectors,
    const std::optional<at::Tensor>& right, const std::optional<at::Tensor>& right_vectors,
    const std::optional<at::Tensor>& mean, std::optional<int64_t> rank, std::optional<double> tol) {
  const auto r = fastlr::weighted_low_rank(W, {left, left_vectors}, {right, right_vectors}, mean, {rank, tol});
  return {
      r.B, r.A, r.S, r.bias,
      at::tensor({r.error, r.norm, static_cast<double>(r.randomized), static_cast<double>(r.converged)}, at::kDouble)};
}

std::tuple<at::Tensor, at::Tensor> nonnegative_rows(const at::Tensor& X, const at::Tensor& G, const at::Tensor& B,
                                                    double penalty, int64_t passes, double tol) {
  const auto r = fastlr::nonnegative_rows(X, G, B, {penalty, passes, tol});
  return {r.X, at::tensor({r.decrease, r.before, r.after}, at::kDouble)};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> householder_product(const at::Tensor& V, int64_t columns, bool lower) {
  const fastlr::Reflectors reflectors{flattened(V), lower};
  const auto factors = fastlr::householder_factors(reflectors);
  const auto Q = fastlr::householder_product(reflectors, factors, columns);
  return {unflattened(Q, batch_of(V)), factors.T, factors.exponents};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> householder_apply(const at::Tensor& V, const at::Tensor& X, bool adjoint,
                                                                 bool lower) {
  const fastlr::Reflectors reflectors{flattened(V), lower};
  const auto factors = fastlr::householder_factors(reflectors);
  const auto result = fastlr::householder_apply(reflectors, factors, flattened(X), adjoint);
  return {unflattened(result, batch_of(X)), factors.T, factors.exponents};
}

std::tuple<at::Tensor, at::Tensor> householder_backward(const at::Tensor& V, const at::Tensor& T,
                                                        const at::Tensor& exponents, const at::Tensor& result,
                                                        const at::Tensor& grad, bool adjoint, bool lower,
                                                        bool of_identity) {
  const auto [of_V, of_X] = fastlr::householder_backward({flattened(V), lower}, {T, exponents}, flattened(result),
                                                         flattened(grad), adjoint, of_identity);
  return {unflattened(of_V, batch_of(V)), unflattened(of_X, batch_of(V))};
}

std::tuple<at::Tensor, at::Tensor> householder_vectors(const at::Tensor& Q) {
  const auto [V, phases] = fastlr::householder_vectors(flattened(Q));
  return {unflattened(V, batch_of(Q)), unflattened(phases, batch_of(Q))};
}

// Under autocast the products of a layer are taken in the lower type, as those of a dense layer are: `op` with its
// tensors so cast.
template <typename Call>
at::Tensor in_lower_type(const at::Tensor& X, const Call& call) {
  const auto device = X.device().type();
  const c10::impl::ExcludeDispatchKeyGuard guard(
      c10::DispatchKeySet(at::autocast::get_autocast_dispatch_key_from_device_type(device)));
  return call([device, lower = at::autocast::get_autocast_dtype(device)](const auto& tensor) {
    return at::autocast::cached_cast(lower, tensor, device);
  });
}

using Bias = std::optional<at::Tensor>;

at::Tensor autocast_sparse_linear(const at::Tensor& X, const at::Tensor& values, const at::Tensor& mask) {
  static const auto op = find<decltype(autocast_sparse_linear)>("fastlr::sparse_linear");
  return in_lower_type(X, [&](const auto& cast) { return op.call(cast(X), cast(values), mask); });
}

at::Tensor autocast_low_rank_linear(const at::Tensor& X, const at::Tensor& A, const at::Tensor& B, const Bias& bias) {
  static const auto op = find<decltype(autocast_low_rank_linear)>("fastlr::low_rank_linear");
  return in_lower_type(X, [&](const auto& cast) { return op.call(cast(X), cast(A), cast(B), cast(bias)); });
}

at::Tensor autocast_interpolative_linear(const at::Tensor& X, const at::Tensor& skeleton,
                                         const at::Tensor& coefficients, const at::Tensor& order, const Bias& bias,
                                         bool of_rows) {
  static const auto op = find<decltype(autocast_interpolative_linear)>("fastlr::interpolative_linear");
  return in_lower_type(X, [&](const auto& cast) {
    return op.call(cast(X), cast(skeleton), cast(coefficients), order, cast(bias), of_rows);
  });
}

void register_autocast(torch::Library& library) {
  library.impl("sparse_linear", TORCH_FN(autocast_sparse_linear));
  library.impl("low_rank_linear", TORCH_FN(autocast_low_rank_linear));
  library.impl("interpolative_linear", TORCH_FN(autocast_interpolative_linear));
}

void register_kernels(torch::Library& library) {
  library.impl("gaussian_product", TORCH_FN(Guarded<gaussian_product>::call));
  library.impl("sketch_apply", TORCH_FN(Guarded<sketch_apply>::call));
  library.impl("sketch_adjoint", TORCH_FN(Guarded<sketch_adjoint>::call));
  library.impl("orthonormalize", TORCH_FN(Guarded<fastlr::orthonormalize>::call));
  library.impl("interpolative", TORCH_FN(Guarded<interpolative>::call));
  library.impl("pivoted_qr", TORCH_FN(Guarded<pivoted_qr>::call));
  library.impl("cur", TORCH_FN(Guarded<cur>::call));
  library.impl("randomized_svd", TORCH_FN(Guarded<randomized_svd>::call));
  library.impl("adaptive_svd", TORCH_FN(Guarded<adaptive_svd>::call));
  library.impl("svd_backward", TORCH_FN(Guarded<svd_backward>::call));
  library.impl("joint_factors", TORCH_FN(Guarded<joint_factors>::call));
  library.impl("joint_bounds", TORCH_FN(Guarded<joint_bounds>::call));
  library.impl("cluster_matrices", TORCH_FN(Guarded<cluster_matrices>::call));
  library.impl("incremental_append", TORCH_FN(Guarded<incremental_append>::call));
  library.impl("incremental_compose", TORCH_FN(Guarded<fastlr::compose>::call));
  library.impl("incremental_compress", TORCH_FN(Guarded<incremental_compress>::call));
  library.impl("weighted_low_rank", TORCH_FN(Guarded<weighted_low_rank>::call));
  library.impl("nonnegative_rows", TORCH_FN(Guarded<nonnegative_rows>::call));
  library.impl("householder_product", TORCH_FN(Guarded<householder_product>::call));
  library.impl("householder_apply", TORCH_FN(Guarded<householder_apply>::call));
  library.impl("householder_backward", TORCH_FN(Guarded<householder_backward>::call));
  library.impl("householder_vectors", TORCH_FN(Guarded<householder_vectors>::call));
  library.impl("sparse_expand", TORCH_FN(Guarded<fastlr::sparse_expand>::call));
  library.impl("sparse_gather", TORCH_FN(Guarded<fastlr::sparse_gather>::call));
  library.impl("sparse_linear", TORCH_FN(Guarded<fastlr::sparse_linear>::call));
  library.impl("sparse_linear_adjoint", TORCH_FN(Guarded<fastlr::sparse_linear_adjoint>::call));
  library.impl("sparse_products", TORCH_FN(Guarded<fastlr::sparse_products>::call));
  library.impl("low_rank_linear", TORCH_FN(Guarded<fastlr::low_rank_linear>::call));
  library.impl("low_rank_linear_backward", TORCH_FN(Guarded<fastlr::low_rank_linear_backward>::call));
  library.impl("interpolative_linear", TORCH_FN(Guarded<fastlr::interpolative_linear>::call));
  library.impl("interpolative_linear_backward", TORCH_FN(Guarded<fastlr::interpolative_linear_backward>::call));
}

}  // namespace

TORCH_LIBRARY(fastlr, library) {
  const auto def = [&](const char* schema) { library.def(schema, {at::Tag::pt2_compliant_tag}); };
  def("random_matrix(int rows, int columns, str kind, int seed, int row0, int column0, ScalarType dtype, "
      "Device device) -> Tensor");
  def("gaussian_product(Tensor X, int rows, int columns, int seed, bool transposed) -> Tensor");
  def("sketch_apply(Tensor A, str kind, int rows, int columns, int seed, int nonzeros, int first) -> Tensor");
  def("sketch_adjoint(Tensor Y, str kind, int rows, int columns, int seed, int nonzeros, int first, int count) -> "
      "Tensor");
  def("orthonormalize(Tensor Y) -> Tensor");
  def("randomized_svd(Tensor A, int rank, int oversample, int? power_iters, str method, str precision, bool center, "
      "int "
      "seed) -> (Tensor U, Tensor S, Tensor Vh, Tensor info)");
  def("adaptive_svd(Tensor A, float tol, int? most_rank, int oversample, int? power_iters, bool center, int seed) -> "
      "(Tensor U, Tensor S, Tensor Vh, Tensor info)");
  def("svd_backward(Tensor A, Tensor U, Tensor S, Tensor Vh, Tensor? gU, Tensor? gS, Tensor? gVh, bool center) -> "
      "Tensor");
  def("interpolative(Tensor A, int? rank, float? tol, bool of_rows, int seed) -> "
      "(Tensor indices, Tensor coefficients, Tensor info)");
  def("pivoted_qr(Tensor A, int? rank, float tol, float? strong, int seed) -> "
      "(Tensor Q, Tensor R, Tensor pivots, Tensor info)");
  def("cur(Tensor A, int rank, Tensor? columns, Tensor? rows, str middle, int seed) -> "
      "(Tensor C, Tensor U, Tensor R, Tensor rows, Tensor columns, Tensor info)");
  def("joint_factors(Tensor[] matrices, int width, int power_iters, int seed, str caller) -> "
      "(Tensor U, Tensor S, Tensor rest, Tensor norm)");
  def("joint_bounds(Tensor U, Tensor S, Tensor rest, Tensor norm, int rank, float roundoff) -> Tensor");
  def("cluster_matrices(Tensor U, Tensor S, Tensor rest, Tensor norm, int rank, float tol, float roundoff, str bound) "
      "-> (Tensor labels, Tensor errors, Tensor bases)");
  def("incremental_append(Tensor core, Tensor lines, int most, float tol, float[3] error) -> "
      "(Tensor rotation, Tensor core, Tensor right, Tensor error)");
  def("incremental_compose(Tensor[] chain) -> Tensor");
  def("incremental_compress(Tensor left, Tensor core, Tensor right, int least, int most, float tol, float[3] error) -> "
      "(Tensor U, Tensor S, Tensor Vh, Tensor error)");
  def("weighted_low_rank(Tensor W, Tensor? left, Tensor? left_vectors, Tensor? right, Tensor? right_vectors, "
      "Tensor? mean, int? rank, float? tol) -> (Tensor B, Tensor A, Tensor S, Tensor bias, Tensor info)");
  def("nonnegative_rows(Tensor X, Tensor G, Tensor B, float penalty, int passes, float tol) -> "
      "(Tensor X, Tensor info)");
  def("householder_product(Tensor V, SymInt columns, bool lower) -> (Tensor Q, Tensor T, Tensor exponents)");
  def("householder_apply(Tensor V, Tensor X, bool adjoint, bool lower) -> (Tensor, Tensor T, Tensor exponents)");
  def("householder_backward(Tensor V, Tensor T, Tensor exponents, Tensor result, Tensor grad, bool adjoint, "
      "bool lower, bool of_identity) -> (Tensor, Tensor)");
  def("householder_vectors(Tensor Q) -> (Tensor vectors, Tensor phases)");
  def("sparse_expand(Tensor values, Tensor mask, SymInt columns) -> Tensor");
  def("sparse_gather(Tensor matrix, Tensor mask, SymInt nonzeros) -> Tensor");
  def("sparse_linear(Tensor X, Tensor values, Tensor mask) -> Tensor");
  def("sparse_linear_adjoint(Tensor Y, Tensor values, Tensor mask, SymInt columns) -> Tensor");
  def("sparse_products(Tensor Y, Tensor X, Tensor mask, SymInt nonzeros) -> Tensor");
  def("low_rank_linear(Tensor X, Tensor A, Tensor B, Tensor? bias) -> Tensor");
  def("low_rank_linear_backward(Tensor gradient, Tensor X, Tensor A, Tensor B, bool[3] wanted) -> Tensor[]");
  def("interpolative_linear(Tensor X, Tensor skeleton, Tensor coefficients, Tensor order, Tensor? bias, bool of_rows) "
      "-> Tensor");
  def("interpolative_linear_backward(Tensor gradient, Tensor X, Tensor skeleton, Tensor coefficients, Tensor order, "
      "bool of_rows, bool[3] wanted) -> Tensor[]");
}

TORCH_LIBRARY_IMPL(fastlr, CPU, library) { register_kernels(library); }
TORCH_LIBRARY_IMPL(fastlr, CUDA, library) { register_kernels(library); }
TORCH_LIBRARY_IMPL(fastlr, AutocastCPU, library) { register_autocast(library); }
TORCH_LIBRARY_IMPL(fastlr, AutocastCUDA, library) { register_autocast(library); }
// No tensor argument says where random_matrix runs: its device argument does.
TORCH_LIBRARY_IMPL(fastlr, CompositeExplicitAutograd, library) {
  library.impl("random_matrix", TORCH_FN(random_matrix));
}
