"""A linear layer that is its own singular value decomposition, also while it is trained."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlr.linalg import householder_product
from fastlr.nn.modules.base import CompressedLinear, check_rank
from fastlr.nn.modules.contraction import check_dtype
from fastlr.nn.modules.dense import dense_weight, high_precision
from fastlr.nn.modules.householder_svd import householder_svd
from fastlr.nn.modules.low_rank_linear import LowRankLinear
from fastlr.nn.modules.masked_linear import check_finite


class HouseholderProjector(CompressedLinear):
    """A linear layer y = U diag(S) Vᵀ x + b whose U and V keep orthonormal columns in training.

    In the place of a modulation layer of a pretrained generator, from a latent vector to the scales
    of channels, its right singular vectors are directions of the latent space that change separate
    things: :meth:`directions`.

    Parameters
    ----------
    in_features, out_features : int
        i and o, the sizes of the input and of the output.
    rank : int
        r, between 1 and min(o, i): the number of directions.
    bias : bool, default True
        Whether the layer adds a bias.
    device : torch.device or str, optional
        Where the parameters are created.
    dtype : torch.dtype, optional
        float32 or float64.

    Attributes
    ----------
    of_U : Parameter of shape (o, r)
    of_V : Parameter of shape (i, r)
        Householder vectors of U and V, in their lower trapezoids.
    bias : Parameter of shape (o,) or None
    S : Tensor of shape (r,)
        A buffer: the singular values, which are not trained.
    phases : Tensor of shape (r,)
        A buffer: 1 or −1, the signs of the columns of U, which vectors do not give.
    rank : int
    weight : Tensor of shape (0,)
        An empty buffer, so that the layer's checkpoint never loads into a dense layer.

    Raises
    ------
    ValueError
        If a size is not positive or the rank is out of range.
    TypeError
        Another dtype: columns rounded to 16 bits are not orthonormal.

    See Also
    --------
    fastlr.nn.parametrize.low_rank : the same weight, formed, with S trained.

    Notes
    -----
    ‖VᵀV − I‖₂ ≤ 10·√r·u for any values of the parameters, u the unit roundoff; so for U. Weight
    decay shortens vectors, which changes nothing. 2·r·(o + i) flops a token as for
    `LowRankLinear`, and 2·r²·(o + i) a forward pass for U and V, three times that for their
    gradient; `to_low_rank` for use without training.

    Source: Song, Zhang, Sebe, Wang, "Householder projector for unsupervised latent semantics
    discovery", ICCV 2023. There all singular values are 1 and U and V alone are trained. Here S is
    kept, too, but as the pretrained layer has it, so that fine-tuning begins with the truncated
    layer; ``layer.S.fill_(1)`` is the form of the paper.

    Examples
    --------
    >>> import torch
    >>> from fastlr.nn import HouseholderProjector
    >>> dense = torch.nn.Linear(12, 8)
    >>> layer = HouseholderProjector.from_dense(dense, rank=3)
    >>> layer  # doctest: +NORMALIZE_WHITESPACE
    HouseholderProjector(in_features=12, out_features=8, rank=3, bias=True, parameters=68,
    flops=120)
    >>> V = layer.directions(2)
    >>> torch.allclose(V.T @ V, torch.eye(2), atol=1e-6)
    True
    >>> moved = layer(V[:, 0]) - layer(torch.zeros(12))
    >>> torch.allclose(moved.norm(), torch.linalg.matrix_norm(dense.weight, 2))
    True
    """

    form = "factored"

    S: Tensor
    phases: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        owner = type(self).__name__
        check_dtype(owner, dtype)
        super().__init__(in_features, out_features, bias, device, dtype)
        check_rank(owner, in_features, out_features, rank)
        self.rank = rank
        self.of_U = nn.Parameter(torch.empty(out_features, rank, device=device, dtype=dtype))
        self.of_V = nn.Parameter(torch.empty(in_features, rank, device=device, dtype=dtype))
        self.register_buffer("S", torch.empty(rank, device=device, dtype=dtype))
        self.register_buffer("phases", torch.empty(rank, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw U and V, and set S to one value: the weight has the variance of an ``nn.Linear``.

        That is 1/(3i). The bias is zero.
        """
        nn.init.normal_(self.of_U)
        nn.init.normal_(self.of_V)
        nn.init.constant_(self.S, math.sqrt(self.out_features / (3 * self.rank)))
        nn.init.ones_(self.phases)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        U = householder_product(self.of_U, lower=True)
        V = householder_product(self.of_V, lower=True)
        coefficients = F.linear(input, V.mT) * (self.phases * self.S)
        return F.linear(coefficients, U, self.bias)

    def directions(self, k: int) -> Tensor:
        """The right singular vectors of the k largest singular values.

        Parameters
        ----------
        k : int
            Between 1 and the rank.

        Returns
        -------
        Tensor of shape (i, k)
            Orthonormal columns, the one of the largest value first. An input that moves by t along
            column j moves the output by t·S_j along a left singular vector; all that is orthogonal
            to ``directions(rank)`` moves nothing. Differentiable; signs do not change in training.

        Raises
        ------
        ValueError
            If `k` is out of range.
        TypeError
            If `k` is no integer.
        """
        owner = type(self).__name__
        if not isinstance(k, int) or isinstance(k, bool):
            raise TypeError(f"{owner}: k must be an integer, got {k!r}")
        if not 1 <= k <= self.rank:
            raise ValueError(f"{owner}: k must be between 1 and the rank, {self.rank}, got {k}")
        V: Tensor = householder_product(self.of_V, lower=True)
        # S may have been written to.
        return V[:, self.S.argsort(descending=True, stable=True)[:k]]

    def compose(self) -> Tensor:
        basis, projected = self._factors()
        return basis @ projected

    def to_low_rank(self) -> LowRankLinear:
        """The :class:`LowRankLinear` with B = U and A = diag(S)·Vᵀ, in this layer's dtype and mode.

        Both factors are found in float64 and rounded once.
        """
        basis, projected = self._factors()
        layer = LowRankLinear.from_factors(
            basis,
            projected,
            None if self.bias is None else self.bias.detach(),
            dtype=self.of_U.dtype,
            device=self.of_U.device,
        )
        return layer.train(self.training)

    def _factors(self) -> tuple[Tensor, Tensor]:
        """U, o × r, and diag(S)·Vᵀ, r × i, in float64."""
        U: Tensor = householder_product(high_precision(self.of_U), lower=True)
        V: Tensor = householder_product(high_precision(self.of_V), lower=True)
        return U * high_precision(self.phases), (V * high_precision(self.S)).mT

    @classmethod
    def from_dense(cls, linear: nn.Module, rank: int) -> HouseholderProjector:
        """The layer with the `rank` leading singular triples of a dense one.

        Parameters
        ----------
        linear : torch.nn.Linear or transformers Conv1D
            In float32 or float64, o outputs and i inputs.
        rank : int
            Between 1 and min(o, i).

        Returns
        -------
        HouseholderProjector
            A new layer in the dtype, on the device and in the mode of `linear`, which is not
            changed.

        Raises
        ------
        TypeError
            If `linear` is no dense linear layer, or has another dtype.
        ValueError
            If `rank` is out of range, or an entry of the weight is not finite.

        Notes
        -----
        A singular value decomposition in float64. The outputs are those of the truncated layer, to
        rounding.
        """
        weight = dense_weight(linear)
        layer = cls.unfilled_for(linear, rank)
        check_finite(cls.__name__, "weight", weight)
        found = householder_svd(weight, rank)
        with torch.no_grad():
            layer.of_U.copy_(found.of_U)
            layer.of_V.copy_(found.of_V)
            layer.S.copy_(found.S)
            layer.phases.copy_(found.phases)
        return layer

    def _size(self) -> dict[str, Any]:
        return {"rank": self.rank}
