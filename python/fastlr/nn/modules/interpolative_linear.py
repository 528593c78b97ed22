"""A linear layer of low rank that keeps some rows (or columns) of its weight as they are."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

import fastlr.linalg as la
from fastlr.linalg.factored_linear import interpolative_linear
from fastlr.nn.modules.base import FactoredLinear, check_factors
from fastlr.nn.modules.dense import high_precision

Side = Literal["rows", "columns"]


class InterpolativeLinear(FactoredLinear):
    """A linear layer of low rank in its smallest exact form: chosen rows, and the rest from them.

    With ``side="rows"`` the weight is W' = P [I; T] S: r of its rows are kept as they are (the
    skeleton S = W'[J, :]), every other row is a combination of them (T), and P puts the rows into
    their places. With ``side="columns"`` it is W' = S [I T] Pᵀ with S = W'[:, J]. W' is never
    formed.

    Parameters
    ----------
    in_features, out_features : int
        i and o, the sizes of the input and of the output.
    rank : int
        r, between 1 and min(o, i).
    bias : bool, default True
        Whether the layer adds a bias.
    side : {"rows", "columns"}, default "rows"
        What the skeleton is taken from.
    device : torch.device or str, optional
        Where the parameters are created.
    dtype : torch.dtype, optional
        float16, bfloat16, float32 or float64.

    Attributes
    ----------
    skeleton : Parameter of shape (r, i) for rows, (o, r) for columns
    coefficients : Parameter of shape (o − r, r) for rows, (r, i − r) for columns
        T. Built by :meth:`from_factors`, no entry is larger than 2 in absolute value.
    order : Tensor of shape (o,) for rows, (i,) for columns, int32
        For rows, where each output stands in [skeleton outputs, other outputs]; for columns, the
        inputs in the order [skeleton inputs, other inputs]. A buffer, not a parameter.
    bias : Parameter of shape (o,) or None
    weight : Tensor of shape (0,)
        An empty buffer, so that the layer's checkpoint never loads into a dense layer.

    Raises
    ------
    ValueError
        If a size is not positive, the rank is out of range or `side` is unknown.
    TypeError
        If the dtype is not a real float type.

    See Also
    --------
    LowRankLinear : the same map as two full factors.

    Notes
    -----
    r·(o + i) − r² numbers and as many multiply-adds a token: r² fewer than two full factors, and
    never more than the dense layer's o·i, which it reaches at r = min(o, i).

    The bound on T comes from strong rank-revealing pivoting [1]_.

    References
    ----------
    .. [1] M. Gu and S. C. Eisenstat, "Efficient algorithms for computing a strong rank-revealing
       QR factorization", SIAM J. Sci. Comput. 17 (1996).

    Examples
    --------
    >>> import torch
    >>> from fastlr.nn import InterpolativeLinear
    >>> dense = torch.nn.Linear(12, 8)
    >>> layer = InterpolativeLinear.from_dense(dense, rank=3)
    >>> sum(p.numel() for p in layer.parameters())  # 3·(12 + 8) − 3² and the bias
    59
    >>> InterpolativeLinear.from_dense(dense, ratio=0.5).rank  # 2·(12 + 8) − 2² of 12·8 numbers
    2
    >>> layer(torch.zeros(2, 12)).shape
    torch.Size([2, 8])
    """

    form = "interpolative"

    order: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool = True,
        side: Side = "rows",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, rank, bias, device, dtype)
        if side not in ("rows", "columns"):
            raise ValueError(f'InterpolativeLinear: side must be "rows" or "columns", got {side!r}')
        self.side: Side = side
        rows = side == "rows"
        skeleton = (rank, in_features) if rows else (out_features, rank)
        coefficients = (out_features - rank, rank) if rows else (rank, in_features - rank)
        length = out_features if rows else in_features
        self.skeleton = nn.Parameter(torch.empty(skeleton, device=device, dtype=dtype))
        self.coefficients = nn.Parameter(torch.empty(coefficients, device=device, dtype=dtype))
        self.register_buffer("order", torch.empty(length, device=device, dtype=torch.int32))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the factors so that W' has the variance of a fresh ``nn.Linear``, 1/(3i).

        The skeleton takes the first rows or columns; the bias is zero.
        """
        bound = 1 / math.sqrt(self.in_features)
        nn.init.uniform_(self.skeleton, -bound, bound)
        if self.coefficients.numel():
            nn.init.uniform_(self.coefficients, -math.sqrt(3 / self.rank), math.sqrt(3 / self.rank))
        with torch.no_grad():
            self.order.copy_(torch.arange(len(self.order), device=self.order.device))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        return interpolative_linear(
            input,
            self.skeleton,
            self.coefficients,
            self.order,
            self.bias,
            of_rows=self.side == "rows",
        )

    def compose(self) -> Tensor:
        skeleton, coefficients = high_precision(self.skeleton), high_precision(self.coefficients)
        if self.side == "rows":
            ordered = torch.cat((skeleton, coefficients @ skeleton), 0)
            return ordered.index_select(0, self.order.to(ordered.device))
        ordered = torch.cat((skeleton, skeleton @ coefficients), 1)
        return ordered.index_select(1, torch.argsort(self.order).to(ordered.device))

    @classmethod
    def from_factors(
        cls,
        basis: Tensor,
        projected: Tensor,
        bias: Tensor | None = None,
        *,
        side: Side | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> InterpolativeLinear:
        """The layer whose weight is ``basis @ projected``.

        Parameters
        ----------
        basis : Tensor of shape (o, r)
            With independent columns, best orthonormal ones.
        projected : Tensor of shape (r, i)
        bias : Tensor of shape (o,), optional
        side : {"rows", "columns"}, optional
            Without it, the side whose T has the smaller spectral norm, hence the better-conditioned
            interpolation.
        dtype, device : optional
            Of the new layer; by default the default float type, and the device of `basis`.

        Raises
        ------
        ValueError
            If the shapes do not fit together or `side` is unknown.

        Notes
        -----
        One interpolative decomposition of an o × r and one of an i × r matrix, about 2·r²·(o + i)
        flops for each pass of the pivoting.
        """
        basis, projected = check_factors(cls.__name__, basis, projected, bias)
        if side not in ("rows", "columns", None):
            raise ValueError(f'{cls.__name__}: side must be "rows" or "columns", got {side!r}')
        candidates: list[tuple[Side, Tensor, Tensor]] = []
        if side != "columns":
            candidates.append(("rows", *_interpolate(basis)))
        if side != "rows":
            row_space = la.orthonormalize(projected.T.contiguous())
            candidates.append(("columns", *_interpolate(row_space)))
        chosen, order, coefficients = min(
            candidates, key=lambda found: _squared_spectral_norm(found[2])
        )

        (out_features, rank), in_features = basis.shape, projected.shape[1]
        layer = cls.unfilled(
            in_features,
            out_features,
            rank,
            bias is not None,
            side=chosen,
            device=device if device is not None else basis.device,
            dtype=dtype,
        )
        with torch.no_grad():
            if chosen == "rows":
                layer.skeleton.copy_(basis[order[:rank]] @ projected)
                layer.coefficients.copy_(coefficients)
                layer.order.copy_(torch.argsort(order))
            else:
                layer.skeleton.copy_(basis @ projected[:, order[:rank]])
                layer.coefficients.copy_(coefficients.T)
                layer.order.copy_(order)
            layer._store_bias(bias)
        return layer

    @classmethod
    def numbers(cls, out_features: int, in_features: int, rank: int) -> int:
        """How many numbers such a layer stores for its weight: r·(o + i) − r²."""
        return rank * (out_features + in_features - rank)

    def structure(self) -> dict[str, Any]:
        return {**super().structure(), "side": self.side}


def _interpolate(basis: Tensor) -> tuple[Tensor, Tensor]:
    """An order of the rows of an n × r `basis`, chosen ones first, and T with rest = T @ chosen."""
    rows, rank = basis.shape
    # The decomposition is exact and draws nothing; a fixed seed keeps torch's generator untouched.
    result = la.interpolative(basis, rank, axis=0, seed=0)
    chosen = result.indices.to(torch.int64)
    others = torch.ones(rows, dtype=torch.bool, device=basis.device)
    others[chosen] = False
    rest = others.nonzero().squeeze(1)
    return torch.cat((chosen, rest)), result.coefficients[rest]


def _squared_spectral_norm(matrix: Tensor) -> float:
    if matrix.numel() == 0:
        return 0.0
    gram = matrix.T @ matrix if matrix.shape[0] > matrix.shape[1] else matrix @ matrix.T
    return float(torch.linalg.eigvalsh(gram)[-1])
