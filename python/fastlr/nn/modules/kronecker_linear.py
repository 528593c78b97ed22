"""A linear layer whose weight is a sum of Kronecker products."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlr.linalg import nearest_kronecker
from fastlr.linalg.kronecker import rearranged
from fastlr.nn.modules.base import CompressedLinear
from fastlr.nn.modules.dense import dense_weight, high_precision
from fastlr.nn.modules.masked_linear import check_finite
from fastlr.nn.modules.rank_choice import choose_rank, least_rank


class KroneckerLinear(CompressedLinear):
    """A linear layer y = (B₁ ⊗ C₁ + … + B_k ⊗ C_k) x + b.

    Parameters
    ----------
    in_features, out_features : int
        i and o, the sizes of the input and of the output.
    shape : (int, int)
        o₁ and i₁, the sizes of each B: divisors of o and of i.
    terms : int, default 1
        k, between 1 and min(o₁·i₁, o₂·i₂), which is enough for any weight; o₂ = o/o₁, i₂ = i/i₁.
    bias : bool, default True
        Whether the layer adds a bias.
    device : torch.device or str, optional
        Where the parameters are created.
    dtype : torch.dtype, optional
        float16, bfloat16, float32 or float64.

    Attributes
    ----------
    B : Parameter of shape (k, o₁, i₁)
    C : Parameter of shape (k, o₂, i₂)
    bias : Parameter of shape (o,) or None
    weight : Tensor of shape (0,)
        An empty buffer, so that the layer's checkpoint never loads into a dense layer.

    Raises
    ------
    ValueError
        If a size is not positive, `shape` does not divide the sizes, or `terms` is out of range.
    TypeError
        If the dtype is not a real float type.

    See Also
    --------
    MonarchLinear : another structure with products as fast.
    fastlr.linalg.nearest_kronecker : the factors.

    Notes
    -----
    k·(o₁·i₁ + o₂·i₂) numbers. An input is read as a matrix X, i₁ × i₂, and the output is Σ B X Cᵀ:
    two products, of which the one with fewer flops comes first, 2·k·min(i₁·o₂·(i₂ + o₁), o₁·i₂·(i₁
    + o₂)) for an input. Nothing is permuted and the weight is never formed.

    Examples
    --------
    >>> import torch
    >>> from fastlr.nn import KroneckerLinear
    >>> layer = KroneckerLinear.from_dense(torch.nn.Linear(12, 8), (4, 3), terms=2)
    >>> layer  # doctest: +NORMALIZE_WHITESPACE
    KroneckerLinear(in_features=12, out_features=8, shape=(4, 3), terms=2, bias=True, parameters=48,
    flops=192)
    >>> layer(torch.zeros(5, 12)).shape
    torch.Size([5, 8])
    """

    form = "kronecker"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        shape: Sequence[int],
        terms: int = 1,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        (o1, i1), (o2, i2) = _sizes(type(self).__name__, out_features, in_features, shape)
        limit = min(o1 * i1, o2 * i2)
        if not 1 <= terms <= limit:
            raise ValueError(
                f"{type(self).__name__}: terms must be between 1 and {limit}, got {terms}"
            )
        self.shape, self.terms = (o1, i1), terms
        self.B = nn.Parameter(torch.empty(terms, o1, i1, device=device, dtype=dtype))
        self.C = nn.Parameter(torch.empty(terms, o2, i2, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw B and C so that the weight has the variance of a fresh ``nn.Linear``, 1/(3i).

        The bias is zero.
        """
        nn.init.uniform_(self.B, -math.sqrt(3 / self.terms), math.sqrt(3 / self.terms))
        nn.init.uniform_(self.C, -1 / math.sqrt(self.in_features), 1 / math.sqrt(self.in_features))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        (k, o1, i1), (_, o2, i2) = self.B.shape, self.C.shape
        X = torch.unflatten(input, -1, (i1, i2)).reshape(-1, i1, i2)
        if self._right_first():
            products = F.linear(X, self.C.reshape(k * o2, i2)).reshape(-1, i1 * k, o2)
            left = self.B.permute(1, 2, 0).reshape(o1, i1 * k)
            Y = torch.bmm(left.expand(X.shape[0], -1, -1), products)
        else:
            left = self.B.transpose(0, 1).reshape(o1 * k, i1)
            products = torch.bmm(left.expand(X.shape[0], -1, -1), X).reshape(-1, o1, k * i2)
            Y = F.linear(products, self.C.transpose(0, 1).reshape(o2, k * i2))
        y = Y.reshape(*input.shape[:-1], self.out_features)
        # Under autocast the bias is rounded as that of a dense layer is.
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def flops(self) -> int:
        return 2 * self.terms * min(self._flops_by_order())

    def _flops_by_order(self) -> tuple[int, int]:
        """Multiplications for a term where C comes first, and where B does."""
        (_, o1, i1), (_, o2, i2) = self.B.shape, self.C.shape
        return i1 * o2 * (i2 + o1), o1 * i2 * (i1 + o2)

    def _right_first(self) -> bool:
        right, left = self._flops_by_order()
        return right <= left

    def compose(self) -> Tensor:
        B, C = high_precision(self.B), high_precision(self.C)
        blocks = torch.einsum("kab,kcd->acbd", B, C)
        return blocks.reshape(self.out_features, self.in_features)

    @classmethod
    def from_dense(
        cls,
        linear: nn.Module,
        shape: Sequence[int],
        *,
        terms: int | None = None,
        ratio: float | None = None,
        tol: float | None = None,
    ) -> KroneckerLinear:
        """The layer that is nearest to a dense one in the Frobenius norm.

        Parameters
        ----------
        linear : torch.nn.Linear or transformers Conv1D
            The dense layer, o outputs and i inputs, in float16, bfloat16, float32 or float64.
        shape : (int, int)
            o₁ and i₁.
        terms : int, optional
        ratio : float, optional
            As many terms as save this part of the numbers of the weight, at least.
        tol : float, optional
            As few terms as are within tol·‖W‖_F of W. One of the three is to be given.

        Returns
        -------
        KroneckerLinear
            A new layer in the dtype, on the device and in the mode of `linear`, which is not
            changed.

        Raises
        ------
        TypeError
            If `linear` is no dense linear layer, or `terms` no integer.
        ValueError
            If not one of `terms`, `ratio` and `tol` is given or it is out of range, `shape` does
            not divide the sizes, or an entry of the weight is not finite.

        Warns
        -----
        ConvergenceWarning
            `tol` is below the rounding of the layer's dtype.

        Notes
        -----
        The factors are found in float64, see :func:`fastlr.linalg.nearest_kronecker`, and rounded
        once. `tol` takes all singular values, by a dense SVD.
        """
        owner = cls.__name__
        weight = dense_weight(linear)
        out_features, in_features = weight.shape
        (o1, i1), (o2, i2) = _sizes(owner, out_features, in_features, shape)
        check_finite(owner, "weight", weight)
        exact = high_precision(weight)
        terms = choose_rank(
            owner,
            terms,
            ratio,
            tol,
            limit=min(o1 * i1, o2 * i2),
            numbers=lambda k: k * (o1 * i1 + o2 * i2),
            dense=weight.numel(),
            within=lambda tol: least_rank(tol, torch.linalg.svdvals(rearranged(exact, o1, i1))),
            name="terms",
        )
        layer = cls.unfilled_for(linear, (o1, i1), terms)
        B, C = nearest_kronecker(exact, (o1, i1), terms=terms)
        with torch.no_grad():
            layer.B.copy_(B)
            layer.C.copy_(C)
        layer._warn_unless_within(tol, weight)
        return layer

    def _size(self) -> dict[str, Any]:
        return {"shape": self.shape, "terms": self.terms}


def _sizes(
    owner: str, out_features: int, in_features: int, shape: Sequence[int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """The sizes of B and of C."""
    fits = len(shape) == 2 and all(isinstance(part, int) and part >= 1 for part in shape)
    if not fits or out_features % shape[0] or in_features % shape[1]:
        raise ValueError(
            f"{owner}: shape must be divisors of out_features and in_features, "
            f"({out_features}, {in_features}), got {tuple(shape)}"
        )
    o1, i1 = shape
    return (o1, i1), (out_features // o1, in_features // i1)
