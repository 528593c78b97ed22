"""A bilinear layer whose every output is a bilinear form of low rank."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from fastlr.nn.modules.dense import FLOAT_DTYPES, high_precision
from fastlr.nn.modules.masked_linear import check_finite
from fastlr.nn.modules.rank_choice import choose_rank, least_rank


class LowRankBilinear(nn.Module):
    """A bilinear layer y_o = x₁ᵀ·W_o·x₂ + b_o with W_o of rank k: Σ_t (U_ot·x₁)·(V_ot·x₂) + b_o.

    This is the factorized bilinear pooling of LowFER, where x₁ is an entity, x₂ a relation, and
    the score of a second entity its product with y.

    Parameters
    ----------
    in1_features, in2_features, out_features : int
        i₁, i₂ and o, the sizes of the inputs and of the output.
    rank : int
        k, between 1 and min(i₁, i₂).
    bias : bool, default True
        Whether the layer adds a bias.
    device : torch.device or str, optional
        Where the parameters are created.
    dtype : torch.dtype, optional
        float16, bfloat16, float32 or float64.

    Attributes
    ----------
    U : Parameter of shape (o, k, i₁)
    V : Parameter of shape (o, k, i₂)
    bias : Parameter of shape (o,) or None
    weight : Tensor of shape (0,)
        An empty buffer, so that the layer's checkpoint never loads into a dense layer.

    Raises
    ------
    ValueError
        If a size is not positive or the rank is out of range.
    TypeError
        If the dtype is not a real float type.

    Notes
    -----
    o·k·(i₁ + i₂) numbers against o·i₁·i₂, and 2·o·k·(i₁ + i₂) flops a pair. Every bilinear map
    whose slices W_o have rank k at most is such a layer; k = min(i₁, i₂) is enough for all. A
    TuckER map, a core of size r₁ × r₂ × r₃ between three factors, has slices of rank min(r₁, r₂).

    Source: Amin, Varanasi, Dunfield, Neumann, "LowFER: low-rank bilinear pooling for link
    prediction", ICML 2020.

    Examples
    --------
    >>> import torch
    >>> from fastlr.nn import LowRankBilinear
    >>> dense = torch.nn.Bilinear(8, 6, 5)
    >>> layer = LowRankBilinear.from_dense(dense, rank=2)
    >>> layer
    LowRankBilinear(8, 6, 5, rank=2, bias=True, parameters=145, flops_per_pair=280)
    >>> layer(torch.zeros(3, 8), torch.zeros(3, 6)).shape
    torch.Size([3, 5])
    """

    weight: Tensor
    bias: nn.Parameter | None

    def __init__(
        self,
        in1_features: int,
        in2_features: int,
        out_features: int,
        rank: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        for name, value in (
            ("in1_features", in1_features),
            ("in2_features", in2_features),
            ("out_features", out_features),
        ):
            if value < 1:
                raise ValueError(f"{owner}: {name} must be at least 1, got {value}")
        if dtype is not None and dtype not in FLOAT_DTYPES:
            raise TypeError(f"{owner}: dtype must be a real float type, got {dtype}")
        limit = min(in1_features, in2_features)
        if not 1 <= rank <= limit:
            raise ValueError(
                f"{owner}: rank must be between 1 and min(in1_features, in2_features) = {limit}, "
                f"got {rank}"
            )
        self.in1_features, self.in2_features = in1_features, in2_features
        self.out_features, self.rank = out_features, rank
        self.U = nn.Parameter(
            torch.empty(out_features, rank, in1_features, device=device, dtype=dtype)
        )
        self.V = nn.Parameter(
            torch.empty(out_features, rank, in2_features, device=device, dtype=dtype)
        )
        self.bias = (
            nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None
        )
        self.register_buffer("weight", torch.empty(0, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw U and V so that the slices have the variance of a fresh ``nn.Bilinear``, 1/(3·i₁).

        The bias is drawn as there.
        """
        nn.init.normal_(self.U, std=1 / math.sqrt(3 * self.in1_features))
        nn.init.normal_(self.V, std=1 / math.sqrt(self.rank))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.in1_features)
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, input1: Tensor, input2: Tensor) -> Tensor:
        """The layer of pairs, ``… × i₁`` and ``… × i₂``, ``… × o``."""
        left = input1 @ self.U.flatten(0, 1).mT
        right = input2 @ self.V.flatten(0, 1).mT
        terms = (left * right).reshape(*left.shape[:-1], self.out_features, self.rank)
        pooled = terms.sum(-1)
        return pooled if self.bias is None else pooled + self.bias

    def compose(self) -> Tensor:
        """The dense weight, o × i₁ × i₂, in float64."""
        return high_precision(self.U).mT @ high_precision(self.V)

    def to_dense(self) -> nn.Bilinear:
        """The ``torch.nn.Bilinear`` with the same weight, composed in float64 and rounded once."""
        dense = nn.Bilinear(
            self.in1_features,
            self.in2_features,
            self.out_features,
            self.bias is not None,
            device=self.U.device,
            dtype=self.U.dtype,
        )
        with torch.no_grad():
            dense.weight.copy_(self.compose())
            if self.bias is not None:
                dense.bias.copy_(self.bias)
        return dense.train(self.training)

    @classmethod
    def from_dense(
        cls,
        bilinear: nn.Bilinear,
        rank: int | None = None,
        *,
        ratio: float | None = None,
        tol: float | None = None,
    ) -> LowRankBilinear:
        """The layer of a rank that is nearest to a dense one.

        Parameters
        ----------
        bilinear : torch.nn.Bilinear
            In float16, bfloat16, float32 or float64.
        rank : int, optional
            Between 1 and min(i₁, i₂). One of `rank`, `ratio` and `tol` is given.
        ratio : float, optional
            The share of the weight's numbers that is removed: the largest rank with
            k·(i₁ + i₂) ≤ (1 − ratio)·i₁·i₂.
        tol : float, optional
            The least rank with an error of the whole weight of at most tol·‖W‖_F, before U and V
            are rounded to the dtype.

        Returns
        -------
        LowRankBilinear
            A new layer, in the dtype, on the device and in the mode of `bilinear`.

        Raises
        ------
        TypeError
            If `bilinear` is no ``nn.Bilinear`` of real floats.
        ValueError
            If not one of `rank`, `ratio` and `tol` is given, one is out of range, or a weight is
            not finite.

        Notes
        -----
        The truncated singular value decompositions of all slices, in float64: no layer of this
        rank is nearer in the Frobenius norm. The singular values go to U and V in equal parts.
        """
        owner = cls.__name__
        weight = _checked_weight(owner, bilinear)
        o, i1, i2 = weight.shape
        left, S, right = torch.linalg.svd(high_precision(weight), full_matrices=False)
        together = torch.linalg.vector_norm(S, dim=0)
        chosen = choose_rank(
            owner,
            rank,
            ratio,
            tol,
            limit=len(together),
            numbers=lambda r: r * o * (i1 + i2),
            dense=o * i1 * i2,
            within=lambda tol: least_rank(tol, together),
        )
        layer = cls(
            i1, i2, o, chosen, bilinear.bias is not None, device="meta", dtype=weight.dtype
        ).to_empty(device=weight.device)
        root = S[:, :chosen, None].sqrt()
        with torch.no_grad():
            layer.U.copy_(left[:, :, :chosen].mT * root)
            layer.V.copy_(right[:, :chosen] * root)
            if layer.bias is not None:
                layer.bias.copy_(bilinear.bias)
        return layer.train(bilinear.training)

    def extra_repr(self) -> str:
        flops = 2 * self.out_features * self.rank * (self.in1_features + self.in2_features)
        return (
            f"{self.in1_features}, {self.in2_features}, {self.out_features}, rank={self.rank}, "
            f"bias={self.bias is not None}, "
            f"parameters={sum(p.numel() for p in self.parameters())}, flops_per_pair={flops}"
        )


def _checked_weight(owner: str, bilinear: Any) -> Tensor:
    if not isinstance(bilinear, nn.Bilinear):
        raise TypeError(
            f"{owner}: bilinear must be a torch.nn.Bilinear, got {type(bilinear).__name__}"
        )
    weight = bilinear.weight.detach()
    if weight.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{owner}: bilinear must hold real floats, got {weight.dtype}")
    check_finite(owner, "weight", weight)
    return weight
