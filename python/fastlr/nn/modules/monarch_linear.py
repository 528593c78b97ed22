"""A linear layer whose weight is a product of two block diagonal matrices and permutations."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlr.linalg import monarch_project
from fastlr.linalg.monarch import composed, slices
from fastlr.nn.modules.base import CompressedLinear
from fastlr.nn.modules.dense import dense_weight, high_precision
from fastlr.nn.modules.masked_linear import check_finite
from fastlr.nn.modules.rank_choice import choose_rank, least_rank


class MonarchLinear(CompressedLinear):
    """A linear layer y = P·diag(left)·P'·diag(right)·x + b, with a Monarch matrix for its weight.

    Parameters
    ----------
    in_features, out_features : int
        i and o, the sizes of the input and of the output.
    blocks : int
        β, of each block diagonal matrix, between 1 and min(o, i). Sizes that it does not divide are
        filled up: h = ⌈o/β⌉ and w = ⌈i/β⌉.
    rank : int, default 1
        r, of each of the β² slices of the weight (rows l, l + β, …, columns of one block). Between
        1 and min(h, w), which is enough for any weight.
    bias : bool, default True
        Whether the layer adds a bias.
    device : torch.device or str, optional
        Where the parameters are created.
    dtype : torch.dtype, optional
        float16, bfloat16, float32 or float64.

    Attributes
    ----------
    left : Parameter of shape (β, h, β·r)
    right : Parameter of shape (β, r·β, w)
        As :func:`fastlr.linalg.monarch_project` has them.
    bias : Parameter of shape (o,) or None
    weight : Tensor of shape (0,)
        An empty buffer, so that the layer's checkpoint never loads into a dense layer.

    Raises
    ------
    ValueError
        If a size is not positive, or `blocks` or `rank` is out of range.
    TypeError
        If the dtype is not a real float type.

    See Also
    --------
    KroneckerLinear : another structure with products as fast.
    LowRankLinear : what this is for one block.

    Notes
    -----
    β²·r·(h + w) numbers and twice as many flops for an input: β·r·(o + i) where β divides the
    sizes. Two batched products; the permutations are strides, and only the output is copied once.
    The weight is never formed.

    Examples
    --------
    >>> import torch
    >>> from fastlr.nn import MonarchLinear
    >>> layer = MonarchLinear.from_dense(torch.nn.Linear(16, 16), 4, rank=1)
    >>> layer  # doctest: +NORMALIZE_WHITESPACE
    MonarchLinear(in_features=16, out_features=16, blocks=4, rank=1, bias=True, parameters=144,
    flops=256)
    >>> layer(torch.zeros(5, 16)).shape
    torch.Size([5, 16])
    """

    form = "monarch"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        blocks: int,
        rank: int = 1,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        h, w = _sizes(type(self).__name__, out_features, in_features, blocks)
        if not 1 <= rank <= min(h, w):
            raise ValueError(
                f"{type(self).__name__}: rank must be between 1 and {min(h, w)}, got {rank}"
            )
        self.blocks, self.rank = blocks, rank
        of_left, of_right = (blocks, h, blocks * rank), (blocks, rank * blocks, w)
        self.left = nn.Parameter(torch.empty(of_left, device=device, dtype=dtype))
        self.right = nn.Parameter(torch.empty(of_right, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the factors so that the weight has the variance of a fresh ``nn.Linear``, 1/(3i).

        The bias is zero.
        """
        first, second = 1 / math.sqrt(self.in_features), math.sqrt(3 / self.rank)
        nn.init.uniform_(self.right, -first, first)
        nn.init.uniform_(self.left, -second, second)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        b, h, inner = self.left.shape
        w = self.right.shape[2]
        filled = b * w - self.in_features
        X = F.pad(input, (0, filled)) if filled else input
        X = torch.unflatten(X, -1, (b, w)).reshape(-1, b, w)
        # Features × inputs: both products write rows in an order that the next one can read.
        middle = torch.bmm(self.right, X.permute(1, 2, 0))
        Y = torch.bmm(self.left, middle.reshape(inner, b, X.shape[0]).transpose(0, 1))
        y = Y.permute(2, 1, 0).reshape(*input.shape[:-1], h * b)
        if h * b > self.out_features:
            y = y[..., : self.out_features].contiguous()
        # Under autocast the bias is rounded as that of a dense layer is.
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def compose(self) -> Tensor:
        left, right = high_precision(self.left), high_precision(self.right)
        return composed(left, right, self.out_features, self.in_features)

    @classmethod
    def from_dense(
        cls,
        linear: nn.Module,
        blocks: int,
        *,
        rank: int | None = None,
        ratio: float | None = None,
        tol: float | None = None,
    ) -> MonarchLinear:
        """The layer that is nearest to a dense one in the Frobenius norm.

        Parameters
        ----------
        linear : torch.nn.Linear or transformers Conv1D
            The dense layer, o outputs and i inputs, in float16, bfloat16, float32 or float64.
        blocks : int
            β.
        rank : int, optional
        ratio : float, optional
            The largest rank that saves this part of the numbers of the weight, at least.
        tol : float, optional
            The smallest rank that is within tol·‖W‖_F of W. One of the three is to be given.

        Returns
        -------
        MonarchLinear
            A new layer in the dtype, on the device and in the mode of `linear`, which is not
            changed.

        Raises
        ------
        TypeError
            If `linear` is no dense linear layer, or `rank` no integer.
        ValueError
            If not one of `rank`, `ratio` and `tol` is given or it is out of range, `blocks` is out
            of range, or an entry of the weight is not finite.

        Warns
        -----
        ConvergenceWarning
            `tol` is below the rounding of the layer's dtype.

        Notes
        -----
        The factors are found in float64, see :func:`fastlr.linalg.monarch_project`, and rounded
        once. `tol` takes all singular values of the slices.
        """
        owner = cls.__name__
        weight = dense_weight(linear)
        out_features, in_features = weight.shape
        h, w = _sizes(owner, out_features, in_features, blocks)
        check_finite(owner, "weight", weight)
        exact = high_precision(weight)
        rank = choose_rank(
            owner,
            rank,
            ratio,
            tol,
            limit=min(h, w),
            numbers=lambda r: r * blocks**2 * (h + w),
            dense=weight.numel(),
            within=lambda tol: least_rank(
                tol,
                torch.linalg.vector_norm(torch.linalg.svdvals(slices(exact, blocks)), dim=(0, 1)),
            ),
        )
        layer = cls.unfilled_for(linear, blocks, rank)
        left, right = monarch_project(exact, blocks, rank=rank)
        with torch.no_grad():
            layer.left.copy_(left)
            layer.right.copy_(right)
        layer._warn_unless_within(tol, weight)
        return layer

    def _size(self) -> dict[str, Any]:
        return {"blocks": self.blocks, "rank": self.rank}


def _sizes(owner: str, out_features: int, in_features: int, blocks: int) -> tuple[int, int]:
    """Height and width of the slices."""
    limit = min(out_features, in_features)
    if not isinstance(blocks, int) or not 1 <= blocks <= limit:
        raise ValueError(
            f"{owner}: blocks must be an integer between 1 and min(out_features, in_features) = "
            f"{limit}, got {blocks}"
        )
    return -(-out_features // blocks), -(-in_features // blocks)
