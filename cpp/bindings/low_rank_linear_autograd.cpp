// The gradients of layers that are stored as factors, in C++: a step of decoding cannot wait for Python to find that no
// gradient is wanted. Where torch differentiates in another way (twice, forward, or for torch.func), such a layer is
// the products that it stands for.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <optional>
#include <vector>

#include "dispatch.hpp"

namespace {

using at::Tensor;
using fastlr::bindings::find;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Bias = std::optional<Tensor>;
using Wanted = std::array<bool, 3>;

// ---- the layers: two factors, and what else they need ----

struct LowRank {
  Tensor first, second;

  static LowRank restored(const AutogradContext&, const variable_list& saved) { return {saved[1], saved[2]}; }
  void save(AutogradContext& context, const Tensor& X) const { context.save_for_backward({X, first, second}); }

  Tensor in_one_call(const Tensor& X, const Bias& bias) const {
    static const auto op =
        find<Tensor(const Tensor&, const Tensor&, const Tensor&, const Bias&)>("fastlr::low_rank_linear");
    return op.call(X, first, second, bias);
  }
  variable_list gradients(const Tensor& of_result, const Tensor& X, Wanted wanted) const {
    static const auto op = find<variable_list(const Tensor&, const Tensor&, const Tensor&, const Tensor&, Wanted)>(
        "fastlr::low_rank_linear_backward");
    return op.call(of_result, X, first, second, wanted);
  }
  Tensor in_products(const Tensor& X, const Bias& bias) const { return at::linear(at::linear(X, first), second, bias); }
};

struct Interpolative {
  Tensor first, second;  // the skeleton and the coefficients
  Tensor order;
  bool of_rows;

  static Interpolative restored(const AutogradContext& context, const variable_list& saved) {
    return {saved[1], saved[2], saved[3], context.saved_data.at("of_rows").toBool()};
  }
  void save(AutogradContext& context, const Tensor& X) const {
    context.save_for_backward({X, first, second, order});
    context.saved_data["of_rows"] = of_rows;
  }

  Tensor in_one_call(const Tensor& X, const Bias& bias) const {
    static const auto op = find<Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Bias&, bool)>(
        "fastlr::interpolative_linear");
    return op.call(X, first, second, order, bias, of_rows);
  }
  variable_list gradients(const Tensor& of_result, const Tensor& X, Wanted wanted) const {
    static const auto op =
        find<variable_list(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, bool, Wanted)>(
            "fastlr::interpolative_linear_backward");
    return op.call(of_result, X, first, second, order, of_rows, wanted);
  }
  Tensor in_products(const Tensor& X, const Bias& bias) const {
    if (of_rows) {
      const auto kept = at::linear(X, first);
      const auto outputs = at::cat({kept, at::linear(kept, second)}, -1).index_select(-1, order);
      return bias ? outputs + *bias : outputs;
    }
    const auto ordered = X.index_select(-1, order);
    const auto rank = first.sym_size(1), others = second.sym_size(1);
    const auto kept = ordered.narrow_symint(-1, 0, rank), rest = ordered.narrow_symint(-1, rank, others);
    return at::linear(kept + at::linear(rest, second), first, bias);
  }
};

// ---- what autograd calls ----

template <typename Layer>
class Factored : public torch::autograd::Function<Factored<Layer>> {
 public:
  // The tensors come one by one, as autograd looks for them among the arguments.
  static Tensor forward(AutogradContext* context, const Tensor& X, const Tensor& /*first*/, const Tensor& /*second*/,
                        const Bias& bias, const Layer& layer) {
    layer.save(*context, X);
    context->saved_data["has_bias"] = bias.has_value();
    const at::AutoDispatchBelowADInplaceOrView guard;
    return layer.in_one_call(X, bias);
  }

  static variable_list backward(AutogradContext* context, const variable_list& of_results) {
    const auto saved = context->get_saved_variables();
    const auto layer = Layer::restored(*context, saved);
    const Tensor &X = saved[0], &of_result = of_results[0];
    const Wanted wanted{context->needs_input_grad(0), context->needs_input_grad(1), context->needs_input_grad(2)};
    variable_list found;
    if (std::any_of(wanted.begin(), wanted.end(), [](bool one) { return one; }))
      found = at::GradMode::is_enabled() ? differentiable(layer, of_result, X, wanted)
                                         : layer.gradients(of_result, X, wanted);
    variable_list gradients(5);
    auto next = found.begin();
    for (size_t input = 0; input < wanted.size(); ++input)
      if (wanted[input]) gradients[input] = *next++;
    const bool has_bias = context->saved_data["has_bias"].toBool();
    if (has_bias && context->needs_input_grad(3)) gradients[3] = of_result.flatten(0, -2).sum(0);
    return gradients;
  }

 private:
  static variable_list differentiable(const Layer& layer, const Tensor& of_result, const Tensor& X, Wanted wanted) {
    variable_list inputs;
    const std::array<const Tensor*, 3> all{&X, &layer.first, &layer.second};
    for (size_t input = 0; input < wanted.size(); ++input)
      if (wanted[input]) inputs.push_back(*all[input]);
    return torch::autograd::grad({layer.in_products(X, std::nullopt)}, inputs, {of_result}, std::nullopt,
                                 /*create_graph=*/true);
  }
};

bool differentiated_otherwise(const Tensor& tensor) {
  return tensor.unsafeGetTensorImpl()->key_set().has(c10::DispatchKey::FuncTorchGradWrapper) ||
         tensor._fw_grad(/*level=*/0).defined();
}

template <typename Layer>
Tensor with_gradient(const Tensor& X, const Layer& layer, const Bias& bias) {
  bool otherwise = false, wanted = false;
  for (const Tensor& tensor : {X, layer.first, layer.second, bias.value_or(X)}) {
    otherwise = otherwise || differentiated_otherwise(tensor);
    wanted = wanted || tensor.requires_grad();
  }
  if (otherwise) return layer.in_products(X, bias);
  if (wanted && at::GradMode::is_enabled()) return Factored<Layer>::apply(X, layer.first, layer.second, bias, layer);
  const at::AutoDispatchBelowADInplaceOrView guard;
  return layer.in_one_call(X, bias);
}

// ---- the operators ----

Tensor low_rank_linear(const Tensor& X, const Tensor& A, const Tensor& B, const Bias& bias) {
  return with_gradient(X, LowRank{A, B}, bias);
}
Tensor low_rank_products(const Tensor& X, const Tensor& A, const Tensor& B, const Bias& bias) {
  return LowRank{A, B}.in_products(X, bias);
}

Tensor interpolative_linear(const Tensor& X, const Tensor& skeleton, const Tensor& coefficients, const Tensor& order,
                            const Bias& bias, bool of_rows) {
  return with_gradient(X, Interpolative{skeleton, coefficients, order, of_rows}, bias);
}
Tensor interpolative_products(const Tensor& X, const Tensor& skeleton, const Tensor& coefficients, const Tensor& order,
                              const Bias& bias, bool of_rows) {
  return Interpolative{skeleton, coefficients, order, of_rows}.in_products(X, bias);
}

}  // namespace

TORCH_LIBRARY_IMPL(fastlr, Autograd, library) {
  library.impl("low_rank_linear", TORCH_FN(low_rank_linear));
  library.impl("interpolative_linear", TORCH_FN(interpolative_linear));
}
// Of torch.func.vmap.
TORCH_LIBRARY_IMPL(fastlr, FuncTorchBatched, library) {
  library.impl("low_rank_linear", TORCH_FN(low_rank_products));
  library.impl("interpolative_linear", TORCH_FN(interpolative_products));
}
