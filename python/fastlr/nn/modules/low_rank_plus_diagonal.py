"""A linear layer of low rank with a weight of its own for each feature."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlr.linalg import ConvergenceWarning, low_rank_plus_diagonal
from fastlr.nn.modules.base import CompressedLinear, check_rank
from fastlr.nn.modules.dense import dense_weight, high_precision
from fastlr.nn.modules.masked_linear import check_finite
from fastlr.nn.modules.rank_choice import choose_rank, least_rank_with


class LowRankPlusDiagonal(CompressedLinear):
    """A linear layer y = B (A x) + d∘x + b: low rank, and every feature passed on by itself.

    Where there are more inputs than outputs, or fewer, the first p = min(o, i) are passed on to the
    first p outputs.

    Parameters
    ----------
    in_features, out_features : int
        i and o, the sizes of the input and of the output.
    rank : int
        r, between 1 and min(o, i).
    bias : bool, default True
        Whether the layer adds a bias.
    device : torch.device or str, optional
        Where the parameters are created.
    dtype : torch.dtype, optional
        float16, bfloat16, float32 or float64.

    Attributes
    ----------
    A : Parameter of shape (r, i)
        Applied first.
    B : Parameter of shape (o, r)
        Applied second.
    diagonal : Parameter of shape (min(o, i),)
        d.
    bias : Parameter of shape (o,) or None
    weight : Tensor of shape (0,)
        An empty buffer, so that the layer's checkpoint never loads into a dense layer.

    Raises
    ------
    ValueError
        If a size is not positive or the rank is out of range.
    TypeError
        If the dtype is not a real float type.

    See Also
    --------
    LowRankLinear : without the diagonal.
    fastlr.linalg.low_rank_plus_diagonal : how both are found together.

    Notes
    -----
    r·(o + i) + p numbers and twice as many flops a token. A diagonal has full rank: maps that are
    near to the identity, or to any scaling of features, need large ranks without it.

    Examples
    --------
    >>> import torch
    >>> from fastlr.nn import LowRankPlusDiagonal
    >>> dense = torch.nn.Linear(12, 12)
    >>> with torch.no_grad():
    ...     _ = dense.weight.copy_(torch.eye(12) + 1)
    >>> layer = LowRankPlusDiagonal.from_dense(dense, tol=1e-5)
    >>> layer  # doctest: +NORMALIZE_WHITESPACE
    LowRankPlusDiagonal(in_features=12, out_features=12, rank=1, bias=True, parameters=48, flops=72)
    >>> torch.allclose(layer.diagonal, torch.ones(12))
    True
    """

    form = "low_rank_plus_diagonal"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        check_rank(type(self).__name__, in_features, out_features, rank)
        self.rank = rank
        shorter = min(in_features, out_features)
        self.A = nn.Parameter(torch.empty(rank, in_features, device=device, dtype=dtype))
        self.B = nn.Parameter(torch.empty(out_features, rank, device=device, dtype=dtype))
        self.diagonal = nn.Parameter(torch.empty(shorter, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw A, B and d so that all of B A and d has the variance of a fresh ``nn.Linear``.

        That is 1/(3i). The bias is zero.
        """
        bound = 1 / math.sqrt(self.in_features)
        nn.init.uniform_(self.A, -bound, bound)
        nn.init.uniform_(self.B, -math.sqrt(3 / self.rank), math.sqrt(3 / self.rank))
        nn.init.uniform_(self.diagonal, -bound, bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        output = F.linear(F.linear(input, self.A), self.B, self.bias)
        kept = len(self.diagonal)
        passed = self.diagonal * input[..., :kept]
        # Under autocast the sum is rounded as the output of a dense layer is.
        return output + F.pad(passed, (0, self.out_features - kept)).to(output.dtype)

    def compose(self) -> Tensor:
        weight = high_precision(self.B) @ high_precision(self.A)
        weight.diagonal().add_(high_precision(self.diagonal))
        return weight

    @classmethod
    def from_dense(
        cls,
        linear: nn.Module,
        rank: int | None = None,
        *,
        ratio: float | None = None,
        tol: float | None = None,
    ) -> LowRankPlusDiagonal:
        """A layer of a rank that is near to a dense one in the Frobenius norm.

        Parameters
        ----------
        linear : torch.nn.Linear or transformers Conv1D
            The dense layer, o outputs and i inputs, in float16, bfloat16, float32 or float64.
        rank : int, optional
            Between 1 and min(o, i). One of `rank`, `ratio` and `tol` is given.
        ratio : float, optional
            The share of the numbers that is removed: the largest rank with r·(o + i) + p ≤
            (1 − ratio)·o·i.
        tol : float, optional
            ‖W − W'‖_F ≤ tol·‖W‖_F, by the least rank that bisection finds.

        Returns
        -------
        LowRankPlusDiagonal
            A new layer in the dtype, on the device and in the mode of `linear`, which is not
            changed.

        Raises
        ------
        TypeError
            If `linear` is no dense linear layer, or `rank` no integer.
        ValueError
            If not one of `rank`, `ratio` and `tol` is given or it is out of range, or a weight is
            not finite.

        Warns
        -----
        ConvergenceWarning
            `tol` is below the rounding of the layer's dtype, or the search for the diagonal came to
            no end.

        Notes
        -----
        :func:`fastlr.linalg.low_rank_plus_diagonal` in float64, some ten to thirty singular value
        decompositions of the weight; with `tol`, for each of log₂(min(o, i)) ranks. The nearest
        such matrix is no convex problem: the layer is never worse than that of the truncated
        singular value decomposition with the best diagonal beside it.
        """
        owner = cls.__name__
        weight = dense_weight(linear)
        check_finite(owner, "weight", weight)
        out_features, in_features = weight.shape
        shorter = min(out_features, in_features)
        exact = high_precision(weight)

        def within(tol: float) -> int:
            with warnings.catch_warnings():
                # What counts is the error that is reached.
                warnings.simplefilter("ignore", ConvergenceWarning)
                return least_rank_with(lambda r: _error(exact, r) <= tol, shorter)

        chosen = choose_rank(
            owner,
            rank,
            ratio,
            tol,
            limit=shorter,
            numbers=lambda r: r * (out_features + in_features) + shorter,
            dense=weight.numel(),
            within=within,
        )
        left, right, diagonal = low_rank_plus_diagonal(exact, chosen)
        layer = cls.unfilled_for(linear, chosen)
        with torch.no_grad():
            layer.B.copy_(left)
            layer.A.copy_(right)
            layer.diagonal.copy_(diagonal)
        layer._warn_unless_within(tol, weight)
        return layer

    def _size(self) -> dict[str, Any]:
        return {"rank": self.rank}


def _error(weight: Tensor, rank: int) -> float:
    info = low_rank_plus_diagonal(weight, rank).info
    return info.error / info.norm if info.norm else 0.0
