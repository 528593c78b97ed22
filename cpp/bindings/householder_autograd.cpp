// The gradients of products of reflectors, in C++ as small products take less time than Python's part of a gradient.
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <optional>
#include <tuple>
#include <utility>

#include "dispatch.hpp"

namespace {

using at::Tensor;
using fastlr::bindings::find;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// The result, T and exponents.
using Results = std::tuple<Tensor, Tensor, Tensor>;

Results product_without_gradient(const Tensor& V, c10::SymInt columns, bool lower) {
  static const auto op = find<Results(const Tensor&, c10::SymInt, bool)>("fastlr::householder_product");
  const at::AutoDispatchBelowADInplaceOrView guard;
  return op.call(V, std::move(columns), lower);
}

Results apply_without_gradient(const Tensor& V, const Tensor& X, bool adjoint, bool lower) {
  static const auto op = find<Results(const Tensor&, const Tensor&, bool, bool)>("fastlr::householder_apply");
  const at::AutoDispatchBelowADInplaceOrView guard;
  return op.call(V, X, adjoint, lower);
}

// Keeps what the gradient needs.
variable_list kept(AutogradContext* context, const Tensor& V, const Results& results, bool lower) {
  const auto& [result, T, exponents] = results;
  context->save_for_backward({V, T, exponents, result});
  context->saved_data["lower"] = lower;
  context->mark_non_differentiable({T, exponents});
  return {result, T, exponents};
}

// Those of V and X. A gradient of this gradient is refused where the operator is called with autograd.
std::tuple<Tensor, Tensor> both_gradients(const AutogradContext& context, const Tensor& gradient, bool adjoint,
                                          bool of_identity) {
  static const auto op =
      find<std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, bool,
                                      bool, bool)>("fastlr::householder_backward");
  const auto saved = context.get_saved_variables();
  const bool lower = context.saved_data.at("lower").toBool();
  std::optional<at::AutoDispatchBelowADInplaceOrView> guard;
  if (!at::GradMode::is_enabled()) guard.emplace();
  return op.call(saved[0], saved[1], saved[2], saved[3], gradient, adjoint, lower, of_identity);
}

class Product : public torch::autograd::Function<Product> {
 public:
  static variable_list forward(AutogradContext* context, const Tensor& V, const c10::SymInt& columns, bool lower) {
    return kept(context, V, product_without_gradient(V, columns, lower), lower);
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const auto [of_V, of_X] = both_gradients(*context, gradients[0], /*adjoint=*/false, /*of_identity=*/true);
    return {of_V, {}, {}};
  }
};

class Apply : public torch::autograd::Function<Apply> {
 public:
  static variable_list forward(AutogradContext* context, const Tensor& V, const Tensor& X, bool adjoint, bool lower) {
    context->saved_data["adjoint"] = adjoint;
    return kept(context, V, apply_without_gradient(V, X, adjoint, lower), lower);
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    static const auto op = find<Results(const Tensor&, const Tensor&, bool, bool)>("fastlr::householder_apply");
    const bool adjoint = context->saved_data["adjoint"].toBool(), lower = context->saved_data["lower"].toBool();
    if (!context->needs_input_grad(0)) {
      const auto V = context->get_saved_variables()[0];
      return {{}, std::get<0>(op.call(V, gradients[0], !adjoint, lower)), {}, {}};
    }
    const auto [of_V, of_X] = both_gradients(*context, gradients[0], adjoint, /*of_identity=*/false);
    return {of_V, of_X, {}, {}};
  }
};

Results as_tuple(const variable_list& results) { return {results[0], results[1], results[2]}; }

Results product(const Tensor& V, c10::SymInt columns, bool lower) {
  if (at::GradMode::is_enabled() && V.requires_grad()) return as_tuple(Product::apply(V, columns, lower));
  return product_without_gradient(V, std::move(columns), lower);
}

Results apply(const Tensor& V, const Tensor& X, bool adjoint, bool lower) {
  if (at::GradMode::is_enabled() && (V.requires_grad() || X.requires_grad()))
    return as_tuple(Apply::apply(V, X, adjoint, lower));
  return apply_without_gradient(V, X, adjoint, lower);
}

}  // namespace

TORCH_LIBRARY_IMPL(fastlr, Autograd, library) {
  library.impl("householder_product", TORCH_FN(product));
  library.impl("householder_apply", TORCH_FN(apply));
}
