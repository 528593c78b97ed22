"""The second factor of a low-rank layer by least squares, for the inputs the layer really gets.

The first factor maps an input x to z; the second one is to bring z as near as it can to the output
of the dense layer for the input x_f of the dense model, W x_f + b. With means taken off where the
layer has a bias, that is a linear least squares problem in Σ z zᵀ and Σ (W x_f) zᵀ.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastlr.nn.compression import propagation
from fastlr.nn.compression.propagation import PairedInputs
from fastlr.nn.modules import InterpolativeLinear, LowRankLinear
from fastlr.nn.modules.base import FactoredLinear
from fastlr.nn.modules.dense import high_precision


def refit(module: FactoredLinear, weight: Tensor, pair: PairedInputs) -> None:
    """Minimise Σ ‖W x_f + b − (second factor · z + b')‖², damped, over that factor and b'.

    Parameters
    ----------
    module : FactoredLinear
        Its bias, if any, is b. Changed in place: B of a :class:`LowRankLinear`, the skeleton of an
        :class:`InterpolativeLinear` of columns, the coefficients of one of rows.
    weight : Tensor of shape (o, i)
        W, float64.
    pair : PairedInputs
        Moments of x and x_f.

    Raises
    ------
    TypeError
        For a layer that is neither.

    Notes
    -----
    2·r·i·(i + o) flops and an eigenproblem of size r. What is added to the factor is damped by
    1 % of the mean moment of z: directions of z that hardly occurred stay as they are.
    """
    inputs, wanted = pair.gram.matrix, weight @ pair.cross
    if module.bias is not None:
        assert pair.gram.total is not None
        total, count = pair.gram.total, pair.gram.tokens
        inputs = inputs - torch.outer(total, total) / count
        wanted = wanted - torch.outer(weight @ pair.dense_total, total) / count
    with torch.no_grad():
        if isinstance(module, LowRankLinear):
            _improve(module.B, high_precision(module.A), inputs, wanted)
        elif isinstance(module, InterpolativeLinear) and module.side == "columns":
            _improve(module.skeleton, _of_columns(module), inputs, wanted)
        elif isinstance(module, InterpolativeLinear):
            # Row `order[j]` of the output comes j-th among the skeleton's and the others.
            others = module.order.argsort()[module.rank :].to(wanted.device)
            skeleton = high_precision(module.skeleton)
            _improve(module.coefficients, skeleton, inputs, wanted[others])
        else:
            raise TypeError(f"refit: expected a low-rank layer, got {type(module).__name__}")
        if module.bias is not None:
            module.bias.add_(pair.bias_change(weight, module.compose()).to(module.bias))


def _of_columns(module: InterpolativeLinear) -> Tensor:
    """The map from inputs to those the skeleton is applied to, r × i."""
    coefficients = high_precision(module.coefficients)
    ordered = torch.cat((torch.eye(module.rank).to(coefficients), coefficients), 1)
    return ordered.index_select(1, torch.argsort(module.order).to(ordered.device))


def _improve(second: nn.Parameter, first: Tensor, inputs: Tensor, wanted: Tensor) -> None:
    """Minimise Σ ‖y − M z‖² + δ ‖M − M₀‖² over M, from its values M₀ on: z = `first` x.

    `wanted` is Σ y xᵀ. The rows of `first` are scaled to length one before δ is added.
    """
    lengths = first.norm(dim=1).clamp(min=torch.finfo(first.dtype).tiny)
    scaled = first / lengths[:, None]
    moments = scaled @ inputs @ scaled.T
    before = high_precision(second)
    missing = wanted @ scaled.T - before * lengths @ moments
    damped = moments + propagation.DAMPING * moments.diagonal().mean() * torch.eye(len(moments))
    second.copy_(before + missing @ torch.linalg.pinv(damped, hermitian=True) / lengths)
