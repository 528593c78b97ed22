"""What the layers whose weight is a sum of structured matrices have in common."""

from __future__ import annotations

import abc
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from fastlr.linalg import ConvergenceWarning
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
            warnings.warn(
                f"{type(self).__name__}: tol={tol:g} not met in {weight.dtype}; the relative error "
                f"is {error:.3g}",
                ConvergenceWarning,
                stacklevel=3,
            )


def how_many(
    owner: str,
    name: str,
    count: int | None,
    ratio: float | None,
    tol: float | None,
    *,
    each: int,
    weight: Tensor,
    limit: int,
    values: Callable[[], Tensor],
) -> int:
    """How many terms a layer is to have, from the one of three arguments that is given.

    Parameters
    ----------
    owner, name : str
        The layer, and what it calls `count`.
    count, ratio, tol
        The number itself; the part of the numbers of `weight` that is to be saved; the relative
        error that is allowed.
    each : int
        Numbers that a term takes.
    limit : int
        The number that is enough for any weight.
    values : callable
        Singular values, one row for each matrix that is cut off behind the same number of them.
    """
    if [count, ratio, tol].count(None) != 2:
        raise ValueError(
            f"{owner}: one of {name}, ratio and tol must be given, got {name}={count}, "
            f"ratio={ratio}, tol={tol}"
        )
    if count is not None:
        if isinstance(count, bool) or not isinstance(count, int):
            raise TypeError(f"{owner}: {name} must be an integer, got {count!r}")
        return count
    for key, value in (("ratio", ratio), ("tol", tol)):
        if value is not None and not 0 < value < 1:
            raise ValueError(f"{owner}: {key} must be between 0 and 1, got {value}")
    if ratio is not None:
        fitting = int((1 - ratio) * weight.numel() / each)
        if fitting < 1:
            raise ValueError(
                f"{owner}: ratio must be at most {1 - each / weight.numel():.4g}, which {name}=1 "
                f"saves, got {ratio}"
            )
        return min(fitting, limit)
    assert tol is not None
    squares = values().square().sum(0)
    # What is left behind 1, 2, … of them; sums from the smallest on do not cancel.
    left_out = squares.flip(0).cumsum(0).flip(0)
    allowed = tol**2 * squares.sum()
    return 1 + int((left_out[1:] > allowed).sum())


def relative(error: Tensor, size: Tensor) -> float:
    """error/size, and 0 where both are."""
    return float(error / size) if float(size) else float(error)
