// The gradients of sparse_linear. Those of most operators are in python/fastlr/_ops.py; a step of decoding cannot
// wait for Python to find that no gradient is wanted.
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "dispatch.hpp"

namespace {

using at::Tensor;
using fastlr::bindings::find;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

Tensor without_gradient(const Tensor& X, const Tensor& values, const Tensor& mask) {
  static const auto op = find<Tensor(const Tensor&, const Tensor&, const Tensor&)>("fastlr::sparse_linear");
  const at::AutoDispatchBelowADInplaceOrView guard;
  return op.call(X, values, mask);
}

class SparseLinear : public torch::autograd::Function<SparseLinear> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& X, const Tensor& values, const Tensor& mask) {
    context->save_for_backward({X, values, mask});
    return without_gradient(X, values, mask);
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    using Adjoint = Tensor(const Tensor&, const Tensor&, const Tensor&, c10::SymInt);
    static const auto by_X = find<Adjoint>("fastlr::sparse_linear_adjoint");
    static const auto by_values = find<Adjoint>("fastlr::sparse_products");
    const auto saved = context->get_saved_variables();
    const auto &X = saved[0], &values = saved[1], &mask = saved[2], &Y = gradients[0];
    return {context->needs_input_grad(0) ? by_X.call(Y, values, mask, X.sym_size(-1)) : Tensor(),
            context->needs_input_grad(1) ? by_values.call(Y, X, mask, values.sym_size(0)) : Tensor(), Tensor()};
  }
};

Tensor sparse_linear(const Tensor& X, const Tensor& values, const Tensor& mask) {
  if (at::GradMode::is_enabled() && (X.requires_grad() || values.requires_grad()))
    return SparseLinear::apply(X, values, mask);
  return without_gradient(X, values, mask);
}

}  // namespace

TORCH_LIBRARY_IMPL(fastlr, Autograd, library) { library.impl("sparse_linear", TORCH_FN(sparse_linear)); }
