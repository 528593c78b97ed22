"""The second factor of a low-rank layer by least squares, for the inputs the layer really gets.

The first factor maps an input x to z; the second one is to bring z as near as it can to the output
of the dense layer for the input x_f of the dense model, W x_f + b. With means taken off where the
layer has a bias, that is a linear least squares problem in Σ z zᵀ and Σ (W x_f) zᵀ.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastlr.nn.compress.propagation import PairedInputs
from fastlr.nn.modules import InterpolativeLinear, LowRankLinear
from fastlr.nn.modules.base import FactoredLinear
from fastlr.nn.modules.dense import high_precision


def refit(module: FactoredLinear, weight: Tensor, pair: PairedInputs) -> None:
    """Minimise Σ ‖W x_f + b − (second factor · z + b')‖² over the second factor, and b' if any.

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
    2·r·i·(i + o) flops and an eigenproblem of size r. Directions of z that never occurred get no
    weight: the solution of least norm.
    """
    inputs, wanted = pair.gram.matrix, weight @ pair.cross
    if module.bias is not None:
        assert pair.gram.total is not None
        total, count = pair.gram.total, pair.gram.tokens
        inputs = inputs - torch.outer(total, total) / count
        wanted = wanted - torch.outer(weight @ pair.dense_total, total) / count
    with torch.no_grad():
        if isinstance(module, LowRankLinear):
            module.B.copy_(_least_squares(high_precision(module.A), inputs, wanted))
        elif isinstance(module, InterpolativeLinear) and module.side == "columns":
            module.skeleton.copy_(_least_squares(_of_columns(module), inputs, wanted))
        elif isinstance(module, InterpolativeLinear):
            # Row `order[j]` of the output comes j-th among the skeleton's and the others.
            others = module.order.argsort()[module.rank :].to(wanted.device)
            first = high_precision(module.skeleton)
            module.coefficients.copy_(_least_squares(first, inputs, wanted[others]))
        else:
            raise TypeError(f"refit: expected a low-rank layer, got {type(module).__name__}")
        if module.bias is not None:
            module.bias.add_(pair.bias_change(weight, module.compose()).to(module.bias))


def _of_columns(module: InterpolativeLinear) -> Tensor:
    """The map from inputs to those the skeleton is applied to, r × i."""
    coefficients = high_precision(module.coefficients)
    ordered = torch.cat((torch.eye(module.rank).to(coefficients), coefficients), 1)
    return ordered.index_select(1, torch.argsort(module.order).to(ordered.device))


def _least_squares(first: Tensor, inputs: Tensor, wanted: Tensor) -> Tensor:
    """The matrix M of least norm that minimises Σ ‖y − M z‖², z = `first` x; `wanted` = Σ y xᵀ."""
    lengths = first.norm(dim=1).clamp(min=torch.finfo(first.dtype).tiny)
    scaled = first / lengths[:, None]
    inverse = torch.linalg.pinv(scaled @ inputs @ scaled.T, hermitian=True)
    found: Tensor = wanted @ scaled.T @ inverse / lengths
    return found
