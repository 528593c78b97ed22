"""A linear layer as it is, and a map of low rank beside it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from fastlr.linalg.factored_linear import low_rank_linear
from fastlr.nn.modules.applied_weight import applied_weight, layer_sizes, layer_tensors
from fastlr.nn.modules.base import CompressedLinear, check_factors, check_rank
from fastlr.nn.modules.dense import FLOAT_DTYPES, high_precision


class CorrectedLinear(CompressedLinear):
    """A linear layer with a correction of low rank, y = base(x) + B (A x).

    The base may be anything that maps linearly: a dense layer that was pruned or rounded, a layer
    of a quantizer, or another layer of this package. It is not changed.

    Parameters
    ----------
    base : torch.nn.Module
        From i inputs to o outputs: a ``torch.nn.Linear``, a transformers ``Conv1D``, or a module
        with ``in_features`` and ``out_features``.
    rank : int
        r, between 1 and min(o, i).
    device : torch.device or str, optional
        Where the correction is created; by default that of the base.
    dtype : torch.dtype, optional
        Of the correction: float16, bfloat16, float32 or float64. By default that of the base's
        first tensor of such a type, or else torch's default.

    Attributes
    ----------
    base : torch.nn.Module
        It has the bias, if there is one.
    A : Parameter of shape (r, i)
        Applied first.
    B : Parameter of shape (o, r)
        Applied second.
    weight : Tensor of shape (0,)
        An empty buffer, so that the layer's checkpoint never loads into a dense layer.

    Raises
    ------
    ValueError
        If the rank is out of range.
    TypeError
        If `base` does not tell its sizes, or the dtype is not a real float type.

    See Also
    --------
    fastlr.nn.compensate : finds the best corrections for a quantized or pruned model.

    Notes
    -----
    r·(o + i) numbers beside those of the base, and 2·r·(o + i) flops more a token. A new layer does
    what its base does: B is zero.

    Examples
    --------
    >>> import torch
    >>> from fastlr.nn import CorrectedLinear
    >>> dense = torch.nn.Linear(12, 8)
    >>> pruned = torch.nn.Linear(12, 8)
    >>> with torch.no_grad():
    ...     _ = pruned.weight.copy_(dense.weight).mul_(dense.weight.abs() > 0.1)
    ...     _ = pruned.bias.copy_(dense.bias)
    >>> lost = (dense.weight - pruned.weight).detach()
    >>> layer = CorrectedLinear.around(pruned, torch.eye(8), lost)
    >>> inputs = torch.randn(3, 12)
    >>> torch.allclose(layer(inputs), dense(inputs), atol=1e-6)
    True
    >>> layer.weight_parameters() == 8 * 12 + 8 * (8 + 12)
    True
    """

    form = "corrected"

    def __init__(
        self,
        base: nn.Module,
        rank: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        out_features, in_features = layer_sizes(base)
        first = next(layer_tensors(base), None)
        if device is None and first is not None:
            device = first.device
        if dtype is None:
            floats = (t.dtype for t in layer_tensors(base) if t.dtype in FLOAT_DTYPES)
            dtype = next(floats, None)
        super().__init__(in_features, out_features, False, device, dtype)
        check_rank(type(self).__name__, in_features, out_features, rank)
        self.rank = rank
        self.A = nn.Parameter(torch.empty(rank, in_features, device=device, dtype=dtype))
        self.B = nn.Parameter(torch.empty(out_features, rank, device=device, dtype=dtype))
        self.base = base
        self.reset_parameters()

    @classmethod
    def around(
        cls, base: nn.Module, B: Tensor, A: Tensor, *, dtype: torch.dtype | None = None
    ) -> CorrectedLinear:
        """The layer with a given correction.

        Parameters
        ----------
        base : torch.nn.Module
            As above; the new layer has it, not a copy.
        B : Tensor of shape (o, r)
        A : Tensor of shape (r, i)
            What is stored is B Dᵀ and D⁻¹ A, with powers of two in the diagonal D that make columns
            of the one about as long as rows of the other: small numbers of half types are coarse.
        dtype : torch.dtype, optional
            As above.

        Returns
        -------
        CorrectedLinear
            In the mode of `base`.

        Raises
        ------
        ValueError
            If the shapes do not fit, or the rank is above min(o, i).
        TypeError
            As above.
        """
        left, right = check_factors(cls.__name__, B, A, None)
        sizes = layer_sizes(base)
        if (len(left), right.shape[1]) != sizes:
            raise ValueError(
                f"{cls.__name__}: B and A must make a matrix of shape {sizes}, as the base's, got "
                f"({len(left)}, {right.shape[1]})"
            )
        layer = cls(base, len(right), dtype=dtype)
        scale = _balance(left, right)
        with torch.no_grad():
            layer.B.copy_(left * scale)
            layer.A.copy_(right / scale[:, None])
        return layer.train(base.training)

    def reset_parameters(self) -> None:
        """Draw A from ±1/√i, and let B be zero."""
        bound = 1 / math.sqrt(self.in_features)
        nn.init.uniform_(self.A, -bound, bound)
        nn.init.zeros_(self.B)

    def forward(self, input: Tensor) -> Tensor:
        """Apply base and correction to a ``… × in_features`` tensor."""
        output: Tensor = self.base(input)
        correction = low_rank_linear(input.to(self.A.dtype), self.A, self.B)
        return output + correction.to(output.dtype)

    def correction(self) -> Tensor:
        """B A, o × i, in float64."""
        return high_precision(self.B) @ high_precision(self.A)

    def compose(self) -> Tensor:
        return applied_weight(self.base, self.A.dtype) + self.correction()

    def composed_bias(self) -> Tensor | None:
        if isinstance(self.base, CompressedLinear):
            return self.base.composed_bias()
        bias = getattr(self.base, "bias", None)
        return bias if isinstance(bias, Tensor) else None

    def weight_parameters(self) -> int:
        """The numbers of the correction and those of the base, as the base stores them."""
        own = self.A.numel() + self.B.numel()
        if isinstance(self.base, CompressedLinear):
            return own + self.base.weight_parameters()
        return own + sum(p.numel() for name, p in self.base.named_parameters() if name != "bias")

    def flops(self) -> int:
        """Of the correction's two products, and of the base's (as a dense one's, if not known)."""
        own = 2 * (self.A.numel() + self.B.numel())
        if isinstance(self.base, CompressedLinear):
            return own + self.base.flops()
        return own + 2 * self.in_features * self.out_features

    def weight_bytes(self) -> int:
        """Bytes of the correction, and of what stands for the base's weight."""
        parts = [p for name, p in self.base.named_parameters() if name != "bias"]
        tensors = (self.A, self.B, *parts, *self.base.buffers())
        return sum(t.numel() * t.element_size() for t in tensors)

    def structure(self) -> dict[str, Any]:
        """The rank: the rest is that of the base, around which the layer is rebuilt."""
        return self._size()

    def _size(self) -> dict[str, Any]:
        return {"rank": self.rank}


def _balance(left: Tensor, right: Tensor) -> Tensor:
    """For each column of `left` the power of two that makes it about as long as `right`'s row."""
    columns, rows = torch.linalg.vector_norm(left, dim=0), torch.linalg.vector_norm(right, dim=1)
    known = (columns > 0) & (rows > 0)
    ratio = torch.where(known, rows, 1.0) / torch.where(known, columns, 1.0)
    return torch.exp2((ratio.log2() / 2).round())
