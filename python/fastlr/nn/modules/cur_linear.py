"""A linear layer through columns and rows of the dense one."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlr.linalg import cur
from fastlr.nn.modules.base import CompressedLinear, check_rank
from fastlr.nn.modules.dense import dense_weight, high_precision
from fastlr.nn.modules.masked_linear import check_finite
from fastlr.nn.modules.rank_choice import check_one, largest_rank


class CURLinear(CompressedLinear):
    """A linear layer y = C·U·R·x + b, whose C and R are columns and rows of a dense weight.

    What the layer reads of an input is what r of the outputs of the dense layer were, and what it
    writes are combinations of the answers to r single inputs: both have the dense layer's meaning.

    Parameters
    ----------
    in_features, out_features : int
        i and o, the sizes of the input and of the output.
    rank : int
        r, between 1 and min(o, i): how many columns, and how many rows.
    bias : bool, default True
        Whether the layer adds a bias.
    device : torch.device or str, optional
        Where the parameters are created.
    dtype : torch.dtype, optional
        float16, bfloat16, float32 or float64.

    Attributes
    ----------
    C : Parameter of shape (o, r)
        ``weight[:, column_index]`` of the dense layer.
    U : Parameter of shape (r, r)
    R : Parameter of shape (r, i)
        ``weight[row_index]``.
    bias : Parameter of shape (o,) or None
    row_index, column_index : Tensor of int32, shape (r,)
        Buffers: which rows and columns of the dense weight those were.
    rank : int
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
    fastlr.linalg.cur : the decomposition.
    InterpolativeLinear : columns alone, with a smaller error and in fewer numbers.

    Notes
    -----
    r·(o + i + r) numbers and 2·r·(o + i + r) flops a token.

    Examples
    --------
    >>> import torch
    >>> from fastlr.nn import CURLinear
    >>> dense = torch.nn.Linear(12, 8)
    >>> layer = CURLinear.from_dense(dense, rank=3, seed=0)
    >>> layer
    CURLinear(in_features=12, out_features=8, rank=3, bias=True, parameters=77, flops=138)
    >>> torch.equal(layer.C, dense.weight[:, layer.column_index])
    True
    """

    form = "cur"

    C: nn.Parameter
    U: nn.Parameter
    R: nn.Parameter
    row_index: Tensor
    column_index: Tensor

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
        self.C = nn.Parameter(torch.empty(out_features, rank, device=device, dtype=dtype))
        self.U = nn.Parameter(torch.empty(rank, rank, device=device, dtype=dtype))
        self.R = nn.Parameter(torch.empty(rank, in_features, device=device, dtype=dtype))
        for name in ("row_index", "column_index"):
            self.register_buffer(name, torch.empty(rank, device=device, dtype=torch.int32))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw C, U and R so that their product has the variance of a fresh ``nn.Linear``.

        That is 1/(3i). The indices are the first ones, and the bias is zero.
        """
        nn.init.normal_(self.C)
        nn.init.normal_(self.U, std=1 / self.rank)
        nn.init.normal_(self.R, std=1 / math.sqrt(3 * self.in_features))
        for index in (self.row_index, self.column_index):
            index.copy_(torch.arange(self.rank))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(F.linear(F.linear(input, self.R), self.U), self.C, self.bias)

    def compose(self) -> Tensor:
        return high_precision(self.C) @ high_precision(self.U) @ high_precision(self.R)

    def damage(self) -> str | None:
        for name, index, limit in (
            ("row_index", self.row_index, self.out_features),
            ("column_index", self.column_index, self.in_features),
        ):
            if index.device.type != "meta" and not bool(((index >= 0) & (index < limit)).all()):
                return f"{name} must be between 0 and {limit - 1}"
        return None

    @classmethod
    def from_dense(
        cls,
        linear: nn.Module,
        rank: int | None = None,
        *,
        ratio: float | None = None,
        tol: float | None = None,
        seed: int | None = None,
    ) -> CURLinear:
        """The layer of columns and rows of a dense one.

        Parameters
        ----------
        linear : torch.nn.Linear or transformers Conv1D
            The dense layer, o outputs and i inputs, in float16, bfloat16, float32 or float64.
        rank : int, optional
            Between 1 and min(o, i). One of `rank`, `ratio` and `tol` is given.
        ratio : float, optional
            The share of the numbers that is removed: the largest rank with r·(o + i + r) ≤
            (1 − ratio)·o·i.
        tol : float, optional
            ‖W − C·U·R‖_F ≤ tol·‖W‖_F, before U is rounded to the dtype.
        seed : int, optional
            Of the choice.

        Returns
        -------
        CURLinear
            A new layer, in the dtype, on the device and in the mode of `linear`.

        Raises
        ------
        TypeError
            If `linear` is no dense linear layer.
        ValueError
            If not one of `rank`, `ratio` and `tol` is given, one is out of range, or a weight is
            not finite.

        Notes
        -----
        :func:`fastlr.linalg.cur` in float64, with the best U for the columns and rows that strong
        pivots choose.
        """
        owner = cls.__name__
        weight = dense_weight(linear)
        check_finite(owner, "weight", weight)
        o, i = weight.shape
        check_one(owner, rank, ratio, tol)
        if ratio is not None:
            rank = largest_rank(
                owner, ratio, limit=min(o, i), numbers=lambda r: r * (o + i + r), dense=o * i
            )
        if rank is not None:
            check_rank(owner, i, o, rank)
        found = cur(high_precision(weight), rank, tol=tol, seed=seed)
        # A zero weight has rank 0: any column and row will do, with a zero between them.
        empty = found.U.shape[0] == 0
        rows, cols = (
            found.rows.new_zeros(1) if empty else index for index in (found.rows, found.cols)
        )
        layer = cls.unfilled_for(linear, len(cols))
        with torch.no_grad():
            layer.C.copy_(weight[:, cols])
            layer.U.copy_(weight.new_zeros(1, 1) if empty else found.U)
            layer.R.copy_(weight[rows])
            layer.row_index.copy_(rows)
            layer.column_index.copy_(cols)
        return layer

    def _size(self) -> dict[str, Any]:
        return {"rank": self.rank}
