"""Routed experts whose layers are modules of their own."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn

from fastlr.nn.modules.base import CompressedLinear

_LAST = "down_proj"


class RoutedExperts(nn.Module):
    """The experts of a mixture, each with two linear layers in place of slices of 3-D parameters.

    transformers keeps the weights of all experts of a block in two parameters with an expert a
    slice. Here expert ``e`` is a module with the layers ``gate_up`` (``up`` where there is no gate)
    and ``down``, each an ``nn.Linear`` or whatever replaces it. What lies between the layers is the
    fused module's own.

    Parameters
    ----------
    fused : nn.Module
        Experts of transformers (a class with its ``use_experts_implementation``). It is not
        changed. The layers' weights are views of its parameters.

    Raises
    ------
    ValueError
        If `fused` is none, or normalises what its experts return.

    Notes
    -----
    Called as the fused module is: hidden states, the experts of each token, and their weights. Each
    expert that has tokens runs once, on them: 2·k·N flops a token for k experts a token with N
    numbers each.

    The names of the layers differ from those of transformers' parameters, so that no conversion of
    checkpoints takes them for these.

    Examples
    --------
    >>> import torch
    >>> from transformers import MixtralConfig
    >>> from transformers.models.mixtral.modeling_mixtral import MixtralExperts
    >>> from fastlr.nn import RoutedExperts
    >>> fused = MixtralExperts(MixtralConfig(hidden_size=8, intermediate_size=16,
    ...     num_local_experts=3))
    >>> with torch.no_grad():
    ...     for parameter in fused.parameters():
    ...         _ = parameter.normal_()
    >>> experts = RoutedExperts(fused)
    >>> experts.get_submodule("2.gate_up")
    Linear(in_features=8, out_features=32, bias=False)
    >>> tokens, chosen, weights = torch.ones(1, 8), torch.tensor([[0, 2]]), torch.ones(1, 2)
    >>> torch.allclose(experts(tokens, chosen, weights), fused(tokens, chosen, weights))
    True
    """

    def __init__(self, fused: nn.Module) -> None:
        super().__init__()
        obstacle = cannot_be_unfused(fused)
        if obstacle:
            raise ValueError(f"RoutedExperts: {obstacle}")
        self.has_gate: bool = cast(Any, fused).has_gate
        self.num_experts: int = getattr(fused, _LAST).shape[0]
        for expert in range(self.num_experts):
            layers = nn.Module()
            for own, name in _fused_names(self.has_gate).items():
                layers.add_module(own, _slice(fused, name, expert))
            self.add_module(str(expert), layers)
        # In a tuple, as a module that is none of this one's: transformers would fill its weights.
        self._between = (_without_parameters(fused),)

    # How many tokens an expert has is known only when it runs: nothing that could be compiled once.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """The sum of what each token's experts make of it, by their weights.

        `hidden_states` are … × d, `top_k_index` and `top_k_weights` … × k.
        """
        shape = hidden_states.shape
        tokens = hidden_states.flatten(0, -2)
        chosen, weights = top_k_index.flatten(0, -2), top_k_weights.flatten(0, -2)
        outputs = torch.zeros_like(tokens)
        for expert in torch.unique(chosen).tolist():
            # A number that is no expert's stands for none.
            if 0 <= expert < self.num_experts:
                token, place = torch.where(chosen == expert)
                output = self.run_expert(expert, tokens[token]) * weights[token, place, None]
                outputs.index_add_(0, token, output.to(outputs.dtype))
        return outputs.reshape(shape)

    def fused_as(self, empty: nn.Module) -> nn.Module:
        """All weights in 3-D parameters again, in a module such as this one was made from.

        `empty` is filled; where its memory was on the meta device, on that of these layers.
        """
        like = next(self.parameters())
        fused = empty.to_empty(device=like.device).to(like.dtype)
        flags = cast(Any, fused)
        with torch.no_grad():
            for expert in range(self.num_experts):
                for own, name in _fused_names(self.has_gate).items():
                    layer = self.get_submodule(f"{expert}.{own}")
                    dense = layer.to_dense() if isinstance(layer, CompressedLinear) else layer
                    weight = cast(Tensor, dense.weight)
                    getattr(fused, name)[expert] = weight.T if flags.is_transposed else weight
                    if flags.has_bias:
                        getattr(fused, f"{name}_bias")[expert] = dense.bias
                    elif dense.bias is not None:
                        raise ValueError(
                            f"RoutedExperts: layer {own!r} of expert {expert} has a bias, for "
                            "which fused experts have no place"
                        )
        return fused.requires_grad_(like.requires_grad)

    def run_expert(self, expert: int, tokens: Tensor) -> Tensor:
        """What one expert makes of some tokens, n × d."""
        layers, (between,) = cast(Any, self.get_submodule(str(expert))), cast(Any, self._between)
        if self.has_gate:
            return cast(Tensor, layers.down(between._apply_gate(layers.gate_up(tokens))))
        return cast(Tensor, layers.down(between.act_fn(layers.up(tokens))))


def is_fused_experts(module: nn.Module) -> bool:
    """Whether `module` holds the weights of experts as 3-D parameters, as transformers does."""
    last = module._parameters.get(_LAST)
    return last is not None and last.ndim == 3 and hasattr(module, "has_gate")


def cannot_be_unfused(module: nn.Module) -> str:
    """Why experts cannot be taken apart; empty where they can."""
    name = type(module).__name__
    if not is_fused_experts(module):
        return f"{name} does not keep its experts as transformers does"
    flags = cast(Any, module)
    known = set(_fused_names(flags.has_gate).values())
    if flags.has_bias:
        known |= {f"{weights}_bias" for weights in known}
    others = {key for key, _ in module.named_parameters()} ^ known
    if others or getattr(flags, "has_post_expert_norm", False):
        return f"{name} has more in its experts than two layers: {', '.join(sorted(others))}"
    return ""


def _fused_names(has_gate: bool) -> dict[str, str]:
    """The layers of an expert, and the parameters that hold them for all experts."""
    first = "gate_up" if has_gate else "up"
    return {first: f"{first}_proj", "down": _LAST}


def _slice(fused: nn.Module, name: str, expert: int) -> nn.Linear:
    """A layer whose weight and bias are one expert's part of the fused parameters."""
    whole: nn.Parameter = getattr(fused, name)
    weight = whole.detach()[expert]
    if cast(Any, fused).is_transposed:
        weight = weight.T
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=whole.requires_grad)
    if cast(Any, fused).has_bias:
        bias: nn.Parameter = getattr(fused, f"{name}_bias")
        layer.bias = nn.Parameter(bias.detach()[expert], requires_grad=bias.requires_grad)
    return layer.train(fused.training)


def _without_parameters(fused: nn.Module) -> nn.Module:
    """The functions and constants of the module, without its weights."""
    shell = copy.copy(fused)
    shell._parameters = {}
    return shell
