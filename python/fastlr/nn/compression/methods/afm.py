"""Principal components of the layer's outputs about their mean; the bias takes up the rest.

H. Yu, J. Wu, "Compressing transformers: features are low-rank, but weights are not!", AAAI 2023
(atomic feature mimicking); the same closed form is that of A. Kaushal, T. Vaidhya, I. Rish, "LORD:
Low rank decomposition of monolingual code LLMs for one-shot compression", arXiv:2309.14021, 2023.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from fastlr.nn.compression.gram import Gram
from fastlr.nn.compression.methods.low_rank import low_rank_candidates
from fastlr.nn.compression.problem import Candidates, LayerProblem
from fastlr.nn.modules.base import composed_weight
from fastlr.nn.modules.dense import dense_bias


def prepare(problem: LayerProblem, form: str, multiple: int) -> Candidates:
    """Minimise the covariance of (W − W')x; b' = b + (W − W')·mean of x.

    A layer without a bias gets one, and its o numbers are charged.
    """
    inputs = problem.inputs
    if inputs is None or inputs.total is None or not inputs.tokens:
        return low_rank_candidates(problem, form, multiple=multiple, compared=False)
    mean = inputs.total / inputs.tokens
    covariance = Gram(inputs.matrix / inputs.tokens - torch.outer(mean, mean), inputs.tokens)
    new_bias = 0 if dense_bias(problem.linear) is not None else problem.shape[0]
    candidates = low_rank_candidates(
        problem, form, right=covariance, multiple=multiple, beside=new_bias
    )

    def build(index: int) -> nn.Module | None:
        module = candidates.build(index)
        if not isinstance(module, nn.Module):
            return None
        return with_bias_added(module, (problem.weight - composed_weight(module)) @ mean)

    return replace(candidates, build=build)


def with_bias_added(module: nn.Module, correction: Tensor) -> nn.Module:
    """`module` with `correction` added to its bias, or as its bias."""
    parameter = next(module.parameters())
    correction = correction.to(device=parameter.device, dtype=parameter.dtype)
    with torch.no_grad():
        if isinstance(module.bias, nn.Parameter):
            module.bias.add_(correction)
        else:
            module.bias = nn.Parameter(correction.clone())
    return module
