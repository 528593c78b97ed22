"""A linear layer as the product of two thin matrices."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fastlr.linalg.factored_linear import low_rank_linear
from fastlr.nn.modules.base import FactoredLinear, check_factors
from fastlr.nn.modules.dense import high_precision


class LowRankLinear(FactoredLinear):
    """A linear layer of low rank, y = B (A x) + b.

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
    InterpolativeLinear : the same map in r² fewer numbers.

    Notes
    -----
    r·(o + i) numbers and 2·r·(o + i) flops a token, against o·i and 2·o·i of the dense layer.

    Examples
    --------
    >>> import torch
    >>> from fastlr.nn import LowRankLinear
    >>> dense = torch.nn.Linear(12, 8)
    >>> layer = LowRankLinear.from_dense(dense, rank=3)
    >>> layer
    LowRankLinear(in_features=12, out_features=8, rank=3, bias=True, parameters=68, flops=120)
    >>> layer(torch.zeros(2, 12)).shape
    torch.Size([2, 8])
    >>> int(torch.linalg.matrix_rank(layer.to_dense().weight))
    3
    """

    form = "factored"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, rank, bias, device, dtype)
        self.A = nn.Parameter(torch.empty(rank, in_features, device=device, dtype=dtype))
        self.B = nn.Parameter(torch.empty(out_features, rank, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw A and B so that B A has the variance of a fresh ``nn.Linear``, 1/(3i).

        The bias is zero.
        """
        nn.init.uniform_(self.A, -1 / math.sqrt(self.in_features), 1 / math.sqrt(self.in_features))
        nn.init.uniform_(self.B, -math.sqrt(3 / self.rank), math.sqrt(3 / self.rank))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        return low_rank_linear(input, self.A, self.B, self.bias)

    def compose(self) -> Tensor:
        return high_precision(self.B) @ high_precision(self.A)

    @classmethod
    def from_factors(
        cls,
        basis: Tensor,
        projected: Tensor,
        bias: Tensor | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> LowRankLinear:
        """The layer with B = `basis` (o × r) and A = `projected` (r × i).

        Raises
        ------
        ValueError
            If the shapes do not fit together.
        """
        basis, projected = check_factors(cls.__name__, basis, projected, bias)
        (out_features, rank), in_features = basis.shape, projected.shape[1]
        device = device if device is not None else basis.device
        layer = cls.unfilled(
            in_features, out_features, rank, bias is not None, device=device, dtype=dtype
        )
        with torch.no_grad():
            layer.B.copy_(basis)
            layer.A.copy_(projected)
            layer._store_bias(bias)
        return layer
