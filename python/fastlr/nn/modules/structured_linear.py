"""What the layers whose weight is a sum of structured matrices have in common."""

from __future__ import annotations

import abc

import torch
from torch import Tensor

from fastlr.linalg import ConvergenceWarning
from fastlr.linalg._warnings import warn
from fastlr.nn.modules.base import CompressedLinear
from fastlr.nn.modules.dense import high_precision


class StructuredLinear(CompressedLinear):
    """A linear layer with products in fewer flops than those of its dense weight."""

    @abc.abstractmethod
    def flops(self) -> int:
        """Flops of the products for one input, two for a multiplication with an addition."""

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, flops={self.flops()}"

    def _warn_unless_within(self, tol: float | None, weight: Tensor) -> None:
        """Of a layer that was made to be within `tol` of a dense one: rounding may have the say."""
        if tol is None:
            return
        dense = high_precision(weight)
        error = relative(torch.dist(self.compose(), dense), torch.linalg.matrix_norm(dense))
        if error > tol:
            warn(
                f"{type(self).__name__}: tol={tol:g} not met in {weight.dtype}; the relative error "
                f"is {error:.3g}",
                ConvergenceWarning,
            )


def relative(error: Tensor, size: Tensor) -> float:
    """error/size, and 0 where both are."""
    return float(error / size) if float(size) else float(error)
