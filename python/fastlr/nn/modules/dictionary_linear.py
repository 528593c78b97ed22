"""A linear layer whose rows are sparse combinations of a few atoms."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlr.linalg.bit_mask import sparse_expand, sparse_linear
from fastlr.nn.modules.base import check_bias
from fastlr.nn.modules.dense import dense_bias, dense_weight, high_precision
from fastlr.nn.modules.masked_linear import MaskedLinear, check_finite, check_masked
from fastlr.nn.modules.rank_choice import (
    check_between,
    check_one,
    check_tolerance,
    least_rank_with,
)

if TYPE_CHECKING:
    from fastlr.nn.compression.gram import Gram


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
    >>> layer = DictionaryLinear.from_dense(torch.nn.Linear(12, 8), ratio=0.25)
    >>> layer.atoms, layer.nonzeros, layer.weight_parameters()  # 72 of 96
    (4, 22, 72)
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
    def from_dense(
        cls,
        linear: nn.Module,
        atoms: int | None = None,
        nonzeros: int | None = None,
        *,
        ratio: float | None = None,
        tol: float | None = None,
        gram: Gram | Tensor | None = None,
    ) -> DictionaryLinear:
        """A layer that is near to a dense one, its dictionary learned from it.

        Parameters
        ----------
        linear : torch.nn.Linear or transformers Conv1D
            The dense layer, o outputs and i inputs, in float16, bfloat16, float32 or float64.
        atoms, nonzeros : int, optional
            k, between 1 and min(o, i), and how many coefficients are kept, between 1 and o·k; every
            row gets as many, or one more. Either both, or `ratio`, or `tol` are given.
        ratio : float, optional
            The share of the numbers that is removed, the mask counted in full
            (`weight_parameters`): the largest size within it where rows have half of the atoms.
        tol : float, optional
            The least such size that bisection finds with ‖(W − S·D)X‖_F ≤ tol·‖WX‖_F over the
            inputs X of `gram`; without it, ‖W − S·D‖_F ≤ tol·‖W‖_F.
        gram : Tensor of shape (i, i) or Gram, optional
            X Xᵀ = Σ x xᵀ over the inputs x that the layer is to be good for. Without it all inputs
            count alike.

        Returns
        -------
        DictionaryLinear
            A new layer in the dtype, on the device and in the mode of `linear`, which is not
            changed.

        Raises
        ------
        TypeError
            If `linear` is no dense linear layer, or `atoms` or `nonzeros` no integer.
        ValueError
            If not one of the three is given or it is out of range, or a weight or an entry of
            `gram` is not finite.

        Warns
        -----
        ConvergenceWarning
            `tol` is not met by any size below that of the dense layer.

        Notes
        -----
        The method "cospadi" of :func:`fastlr.nn.compress_llm`: principal components of the outputs
        to start with, then all atoms by least squares and all rows by orthogonal matching pursuit,
        in turns; some 30·o·k·(k + o + i) flops, a dozen times with `tol`. In float32, in float64
        for a float64 layer. No nearest such layer is known to be found: the problem is not convex.
        """
        from fastlr.nn.compression.dictionary_start import row_by_row
        from fastlr.nn.compression.gram import Gram
        from fastlr.nn.compression.methods.cospadi import magnitude, refine
        from fastlr.nn.compression.methods.dictionary import Sizes, fitted
        from fastlr.nn.compression.solver import solve

        owner = cls.__name__
        weight = dense_weight(linear)
        o, i = weight.shape
        if (atoms is None) != (nonzeros is None):
            raise ValueError(
                f"{owner}: atoms and nonzeros must be given together, got atoms={atoms}, "
                f"nonzeros={nonzeros}"
            )
        check_one(owner, atoms, ratio, tol, "atoms")
        seen = Gram(gram) if isinstance(gram, Tensor) else gram
        solution = solve(weight, seen)

        def of_size(atoms: int, nonzeros: int) -> DictionaryLinear:
            return fitted(linear, solution, atoms, nonzeros, magnitude, row_by_row, refine)

        if atoms is not None and nonzeros is not None:
            check_between(owner, "atoms", atoms, min(o, i))
            check_between(owner, "nonzeros", nonzeros, o * atoms)
            return of_size(atoms, nonzeros).train(linear.training)

        most = None if ratio is None else math.floor((1 - ratio) * o * i) if 0 <= ratio < 1 else 0
        sizes = Sizes.of(o, i, weight.dtype, most)
        count = len(sizes.numbers)
        if not count:
            raise ValueError(
                f"{owner}: ratio and tol must leave an atom and a coefficient of {o * i} numbers, "
                f"got ratio={ratio}, tol={tol}"
            )

        def of_index(index: int) -> DictionaryLinear:
            return of_size(int(sizes.atoms[index - 1]), int(sizes.nonzeros[index - 1]))

        unit = None if seen is None else seen.unit
        if tol is not None:
            check_tolerance(owner, tol)
            count = least_rank_with(lambda n: of_index(n)._error_of(weight, unit) <= tol, count)
        layer = of_index(count)
        layer._warn_unless_within(tol, weight, unit)
        return layer.train(linear.training)

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
