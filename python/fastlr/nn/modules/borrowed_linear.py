"""A linear layer that does what another one does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastlr.nn.modules.base import CompressedLinear


class BorrowedLinear(CompressedLinear):
    """A linear layer that stores nothing: its weight and bias are those of another layer.

    Where experts of a mixture are merged, one of them has the layers, and those of the others are
    borrowed.

    Parameters
    ----------
    in_features, out_features : int
        i and o, the sizes of the input and of the output.
    bias : bool, default True
        Whether the lender has a bias.
    device : torch.device or str, optional
        Where the empty buffer is created.
    dtype : torch.dtype, optional
        float16, bfloat16, float32 or float64.

    Attributes
    ----------
    bias : None
    weight : Tensor of shape (0,)
        An empty buffer, so that the layer's checkpoint never loads into a dense layer.

    Raises
    ------
    ValueError
        If a size is not positive.
    TypeError
        If the dtype is not a real float type.

    See Also
    --------
    SharedBasisLinear : One of two factors is another layer's.

    Notes
    -----
    As many flops as the lender has, and no numbers. The lender is no submodule: it is saved,
    counted and trained where it stands. ``deepcopy`` of a model and training keep both together; a
    copy of the borrower alone copies the lender with it.

    Examples
    --------
    >>> import torch
    >>> from fastlr.nn import BorrowedLinear, LowRankLinear
    >>> lender = LowRankLinear.from_dense(torch.nn.Linear(12, 8), rank=3)
    >>> layer = BorrowedLinear.of(lender)
    >>> x = torch.ones(2, 12)
    >>> torch.equal(layer(x), lender(x)), layer.weight_parameters(), list(layer.parameters())
    (True, 0, [])
    """

    form = "borrowed"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, False, device, dtype)
        self.biased = bias
        # In a tuple: a module that is an attribute would be a child, and be saved twice.
        self._lender: tuple[CompressedLinear, ...] = ()

    @classmethod
    def of(cls, lender: CompressedLinear) -> BorrowedLinear:
        """A layer that does what `lender` does, on its device and in its mode."""
        layer = cls(
            lender.in_features,
            lender.out_features,
            lender.bias is not None,
            lender.weight.device,
            lender.weight.dtype,
        )
        layer.borrow(lender)
        return layer.train(lender.training)

    @property
    def lender(self) -> CompressedLinear:
        """The layer that this one stands for; RuntimeError before :meth:`borrow`."""
        if not self._lender:
            raise RuntimeError("BorrowedLinear: a layer must borrow another one first")
        return self._lender[0]

    def borrow(self, lender: CompressedLinear) -> None:
        """Do what `lender` does.

        Raises
        ------
        TypeError
            If `lender` is no compressed layer with numbers of its own.
        ValueError
            If its sizes or its bias do not fit.
        """
        if not isinstance(lender, CompressedLinear) or isinstance(lender, BorrowedLinear):
            raise TypeError(
                "borrow: the lender must be a compressed layer with numbers of its own, got "
                + type(lender).__name__
            )
        mine = self.in_features, self.out_features, self.biased
        theirs = lender.in_features, lender.out_features, lender.bias is not None
        if mine != theirs:
            raise ValueError(
                f"borrow: in_features, out_features and bias must be {mine}, the lender has "
                f"{theirs}"
            )
        self._lender = (lender,)

    def forward(self, input: Tensor) -> Tensor:
        """What the lender makes of a ``… × in_features`` tensor."""
        output: Tensor = self.lender(input)
        return output

    def flops(self) -> int:
        return self.lender.flops()

    def compose(self) -> Tensor:
        return self.lender.compose()

    def composed_bias(self) -> Tensor | None:
        return self.lender.composed_bias()

    def to_dense(self) -> nn.Linear:
        """The dense layer that the lender stands for: no memory is shared with another one's."""
        return self.lender.to_dense()

    def structure(self) -> dict[str, Any]:
        return {**super().structure(), "bias": self.biased}

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.structure().items())

    def _size(self) -> dict[str, Any]:
        return {}
