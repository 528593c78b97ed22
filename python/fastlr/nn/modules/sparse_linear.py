"""A linear layer that keeps some entries of its weight."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastlr.linalg.bit_mask import sparse_expand, sparse_linear
from fastlr.nn.modules.base import check_bias
from fastlr.nn.modules.dense import dense_bias, dense_weight, high_precision
from fastlr.nn.modules.masked_linear import MaskedLinear, check_masked


class SparseLinear(MaskedLinear):
    """A linear layer whose weight has only some of its entries, the others being zero.

    The entries that are kept are stored as they are, in row-major order, beside one bit for every
    entry of the weight. The weight is never formed for few inputs, and in blocks of rows for many.

    Parameters
    ----------
    in_features, out_features : int
        i and o, the sizes of the input and of the output.
    nonzeros : int
        How many entries are kept, between 0 and o·i.
    bias : bool, default True
        Whether the layer adds a bias.
    device : torch.device or str, optional
        Where the parameters are created.
    dtype : torch.dtype, optional
        float16, bfloat16, float32 or float64.

    Attributes
    ----------
    values : Parameter of shape (nonzeros,)
        The kept entries, row by row.
    mask : Tensor of shape (o, ⌈i/8⌉), uint8
        Bit j % 8 of byte j // 8 of a row says whether column j is kept; the bits behind the last
        column are zero. A buffer, not a parameter.
    bias : Parameter of shape (o,) or None
    weight : Tensor of shape (0,)
        An empty buffer, so that the layer's checkpoint never loads into a dense layer.

    Raises
    ------
    ValueError
        If a size is not positive or `nonzeros` is out of range.
    TypeError
        If the dtype is not a real float type.

    See Also
    --------
    InterpolativeLinear : fewer numbers by low rank.
    DictionaryLinear : sparse combinations of a few rows.

    Notes
    -----
    The mask counts as what it is: o·⌈i/8⌉ bytes, 1/32 of a dense float32 weight and 1/16 of one of
    16 bits. A step with one input reads the bytes of the values and the mask; with many inputs the
    layer takes the time of a dense one. Only the values are trained: what is zero stays so.

    Examples
    --------
    >>> import torch
    >>> from fastlr.nn import SparseLinear
    >>> dense = torch.nn.Linear(16, 8)
    >>> layer = SparseLinear.from_dense(dense, density=0.75)
    >>> layer
    SparseLinear(in_features=16, out_features=8, nonzeros=96, bias=True, parameters=104, flops=192)
    >>> layer.weight_parameters()  # 96 values, and 8·2 bytes of mask as four more float32
    100
    >>> bool((layer.to_dense().weight == dense.weight).double().mean() == 0.75)
    True
    """

    form = "sparse"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        nonzeros: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self._create_entries(in_features, "in_features", nonzeros, device, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Keep entries at random, with the variance of a fresh ``nn.Linear``, 1/(3i).

        The bias is zero.
        """
        self._draw_entries(1 / (3 * self.in_features))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        output = sparse_linear(input, self.values, self.mask)
        return output if self.bias is None else output + self.bias.to(output.dtype)

    def compose(self) -> Tensor:
        return high_precision(sparse_expand(self.values.detach(), self.mask, self.in_features))

    @classmethod
    def from_dense(cls, linear: nn.Module, density: float) -> SparseLinear:
        """The layer that keeps the entries of largest magnitude of a dense one.

        Parameters
        ----------
        linear : torch.nn.Linear or transformers Conv1D
            The dense layer, o outputs and i inputs, in float16, bfloat16, float32 or float64.
        density : float
            The share of the entries that are kept, between 0 and 1; rounded to a whole number of
            them.

        Returns
        -------
        SparseLinear
            A new layer, of the dtype and on the device of `linear`, which is not changed.

        Raises
        ------
        TypeError
            If `linear` is no dense linear layer.
        ValueError
            If `density` is out of range, or a weight is not finite.
        """
        weight = dense_weight(linear)
        if not 0 <= density <= 1:
            raise ValueError(f"{cls.__name__}: density must be between 0 and 1, got {density}")
        chosen = weight.abs().flatten().topk(round(density * weight.numel())).indices
        kept = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device)
        kept[chosen] = True
        return cls.in_place_of(linear, weight, kept.view(weight.shape))

    @classmethod
    def from_weight(
        cls,
        weight: Tensor,
        mask: Tensor,
        bias: Tensor | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> SparseLinear:
        """The layer that keeps the entries of `weight` where `mask` is true.

        Parameters
        ----------
        weight : Tensor of shape (o, i)
        mask : Tensor of shape (o, i), bool
        bias : Tensor of shape (o,), optional
        dtype, device : optional
            Of the new layer; by default the default float type, and the device of `weight`.

        Raises
        ------
        TypeError
            If `mask` is not boolean.
        ValueError
            If the shapes do not fit together, or an entry of `weight` is not finite.
        """
        check_masked(cls.__name__, "weight", weight, mask)
        check_bias(cls.__name__, bias, len(weight))
        out_features, in_features = weight.shape
        mask = mask.to(weight.device)
        layer = cls.unfilled(
            in_features,
            out_features,
            int(mask.sum()),
            bias is not None,
            device=device if device is not None else weight.device,
            dtype=dtype,
        )
        with torch.no_grad():
            layer._store_entries(weight, mask)
            layer._store_bias(bias)
        return layer

    @classmethod
    def in_place_of(cls, linear: nn.Module, weight: Tensor, mask: Tensor) -> SparseLinear:
        """``from_weight`` with the bias, the dtype and the device of a dense layer."""
        dense = dense_weight(linear)
        return cls.from_weight(
            weight, mask, dense_bias(linear), dtype=dense.dtype, device=dense.device
        )

    def _size(self) -> dict[str, int]:
        return {"nonzeros": self.nonzeros}
