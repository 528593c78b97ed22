"""A linear layer whose rows are sparse combinations of a few atoms."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlr.linalg.bit_mask import sparse_expand, sparse_linear
from fastlr.nn.modules.base import check_bias
from fastlr.nn.modules.dense import dense_bias, dense_weight, high_precision
from fastlr.nn.modules.masked_linear import MaskedLinear, check_finite, check_masked


class DictionaryLinear(MaskedLinear):
    """A linear layer whose weight is a sparse matrix times a dictionary, y = S (D x) + b.

    Each row of the weight combines a few of the k rows of D, its atoms. Unlike with a low
    rank, every output chooses atoms of its own. The coefficients that are not zero are stored in
    row-major order, beside one bit for every entry of S.

    Parameters
    ----------
    in_features, out_features : int
        i and o, the sizes of the input and of the output.
    atoms : int
        k, at least 1; it may exceed i.
    nonzeros : int
        How many coefficients are kept, between 0 and o·k.
    bias : bool, default True
        Whether the layer adds a bias.
    device : torch.device or str, optional
        Where the parameters are created.
    dtype : torch.dtype, optional
        float16, bfloat16, float32 or float64.

    Attributes
    ----------
    dictionary : Parameter of shape (k, i)
        D, applied first.
    values : Parameter of shape (nonzeros,)
        The kept entries of S, row by row.
    mask : Tensor of shape (o, ⌈k/8⌉), uint8
        Bit j % 8 of byte j // 8 of a row says whether the row has atom j; the bits behind the last
        atom are zero. A buffer, not a parameter.
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
    LowRankLinear : all rows share all atoms.
    SparseLinear : the atoms are the inputs.

    Notes
    -----
    k·i + nonzeros numbers and o·⌈k/8⌉ bytes of mask. 2·(k·i + nonzeros) flops for one input; with
    many, S is expanded in blocks of rows, which makes them 2·k·(i + o). Trained are the dictionary
    and the values: what is zero in S stays so.

    Examples
    --------
    >>> import torch
    >>> from fastlr.nn import DictionaryLinear
    >>> layer = DictionaryLinear(12, 8, atoms=4, nonzeros=16)
    >>> layer  # doctest: +NORMALIZE_WHITESPACE
    DictionaryLinear(in_features=12, out_features=8, atoms=4, nonzeros=16, bias=True, parameters=72,
    flops=128)
    >>> layer(torch.zeros(2, 12)).shape
    torch.Size([2, 8])
    >>> layer.weight_parameters()  # 4·12 and 16 values, and 8 bytes of mask as two more float32
    66
    """

    form = "dictionary"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        atoms: int,
        nonzeros: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        if atoms < 1:
            raise ValueError(f"DictionaryLinear: atoms must be at least 1, got {atoms}")
        self.atoms = atoms
        self.dictionary = nn.Parameter(torch.empty(atoms, in_features, device=device, dtype=dtype))
        self._create_entries(atoms, "atoms", nonzeros, device, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw D, and S at random places, so that S D has the variance of ``nn.Linear``, 1/(3i).

        The bias is zero.
        """
        bound = 1 / math.sqrt(self.in_features)
        nn.init.uniform_(self.dictionary, -bound, bound)
        self._draw_entries(1 / self.atoms)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        output = sparse_linear(F.linear(input, self.dictionary), self.values, self.mask)
        return output if self.bias is None else output + self.bias.to(output.dtype)

    def compose(self) -> Tensor:
        coefficients = sparse_expand(self.values.detach(), self.mask, self.atoms)
        return high_precision(coefficients) @ high_precision(self.dictionary)

    @classmethod
    def from_factors(
        cls,
        dictionary: Tensor,
        coefficients: Tensor,
        mask: Tensor,
        bias: Tensor | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> DictionaryLinear:
        """The layer with the atoms of `dictionary` and the `coefficients` where `mask` is true.

        Parameters
        ----------
        dictionary : Tensor of shape (k, i)
        coefficients : Tensor of shape (o, k)
        mask : Tensor of shape (o, k), bool
        bias : Tensor of shape (o,), optional
        dtype, device : optional
            Of the new layer; by default the default float type, and the device of `dictionary`.

        Raises
        ------
        TypeError
            If `mask` is not boolean.
        ValueError
            If the shapes do not fit together, or an entry is not finite.
        """
        check_masked(cls.__name__, "coefficients", coefficients, mask)
        if dictionary.ndim != 2 or len(dictionary) != coefficients.shape[1]:
            raise ValueError(
                f"{cls.__name__}: dictionary must have {coefficients.shape[1]} rows, one for each "
                f"column of coefficients, got shape {tuple(dictionary.shape)}"
            )
        check_finite(cls.__name__, "dictionary", dictionary)
        check_bias(cls.__name__, bias, len(coefficients))
        (atoms, in_features), out_features = dictionary.shape, len(coefficients)
        layer = cls.unfilled(
            in_features,
            out_features,
            atoms,
            int(mask.sum()),
            bias is not None,
            device=device if device is not None else dictionary.device,
            dtype=dtype,
        )
        with torch.no_grad():
            layer.dictionary.copy_(dictionary)
            layer._store_entries(coefficients, mask)
            layer._store_bias(bias)
        return layer

    @classmethod
    def in_place_of(
        cls, linear: nn.Module, dictionary: Tensor, coefficients: Tensor, mask: Tensor
    ) -> DictionaryLinear:
        """``from_factors`` with the bias, the dtype and the device of a dense layer."""
        weight = dense_weight(linear)
        return cls.from_factors(
            dictionary,
            coefficients,
            mask,
            dense_bias(linear),
            dtype=weight.dtype,
            device=weight.device,
        )

    def _size(self) -> dict[str, int]:
        return {"atoms": self.atoms, "nonzeros": self.nonzeros}
