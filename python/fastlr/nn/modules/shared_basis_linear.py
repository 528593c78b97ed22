"""Linear layers of low rank that have one of their two factors in common."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlr.nn.modules.base import CompressedLinear, check_bias
from fastlr.nn.modules.dense import dense_bias, dense_weight, high_precision

Shared = Literal["inputs", "outputs"]


class SharedBasisLinear(CompressedLinear):
    """A linear layer of low rank whose basis may be that of another layer.

    With ``shared="inputs"``, y = C (A x) + b and the basis A may be another layer's; with
    ``shared="outputs"``, y = U (C x) + b and U may be. Only the layer that lends a basis stores it.

    Parameters
    ----------
    in_features, out_features : int
        i and o, the sizes of the input and of the output.
    rank : int
        r, between 1 and i (``shared="inputs"``) or o (``"outputs"``).
    shared : {"inputs", "outputs"}
        The side of the basis.
    lends : bool, default True
        Whether the layer has a basis of its own. One that has none borrows it: see :meth:`borrow`.
    bias : bool, default True
        Whether the layer adds a bias.
    device : torch.device or str, optional
        Where the parameters are created.
    dtype : torch.dtype, optional
        float16, bfloat16, float32 or float64.

    Attributes
    ----------
    basis : Parameter of shape (r, i) or (o, r), or None
        A or U, where the layer has its own.
    coefficients : Parameter of shape (o, r) or (r, i)
        C.
    bias : Parameter of shape (o,) or None
    weight : Tensor of shape (0,)
        An empty buffer, so that the layer's checkpoint never loads into a dense layer.

    Raises
    ------
    ValueError
        If a size is not positive, the rank is out of range, or `shared` is unknown.
    TypeError
        If the dtype is not a real float type.

    See Also
    --------
    LowRankLinear : with both factors its own.

    Notes
    -----
    n layers that share store r·(i + n·o) or r·(o + n·i) numbers. A borrower refers to the layer
    that lends, not to its basis: ``model.to(...)``, ``deepcopy`` of the model and training keep
    them together. A copy of one borrower alone copies the lender with it.

    J. Wang, Y.-G. Chen, I.-C. Lin, B. Li, G. L. Zhang, "Basis Sharing: Cross-layer parameter
    sharing for large language model compression", ICLR 2025.

    Examples
    --------
    >>> import torch
    >>> from fastlr.nn import SharedBasisLinear
    >>> dense = [torch.nn.Linear(12, 8) for _ in range(2)]
    >>> layers = SharedBasisLinear.in_place_of(
    ...     dense, torch.ones(2, 12), [torch.ones(8, 2), torch.zeros(8, 2)], "inputs")
    >>> [layer.weight_parameters() for layer in layers]
    [40, 16]
    >>> layers[1].shared_basis is layers[0].basis
    True
    """

    form = "shared_basis"

    basis: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        shared: Shared,
        lends: bool = True,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        if shared not in ("inputs", "outputs"):
            raise ValueError(
                f'SharedBasisLinear: shared must be "inputs" or "outputs", got {shared!r}'
            )
        limit = in_features if shared == "inputs" else out_features
        if not 1 <= rank <= limit:
            raise ValueError(
                f"SharedBasisLinear: rank must be between 1 and {limit} = "
                f"{'in' if shared == 'inputs' else 'out'}_features, got {rank}"
            )
        self.rank, self.shared = rank, shared
        first, second = (rank, in_features), (out_features, rank)
        basis, coefficients = (first, second) if shared == "inputs" else (second, first)
        own = torch.empty(basis, device=device, dtype=dtype) if lends else None
        self.basis = None if own is None else nn.Parameter(own)
        self.coefficients = nn.Parameter(torch.empty(coefficients, device=device, dtype=dtype))
        # In a tuple: a module that is an attribute would be a child, and be saved twice.
        self._lender: tuple[SharedBasisLinear, ...] = ()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the factors so that W' has the variance of a fresh ``nn.Linear``, 1/(3i).

        The bias is zero.
        """
        first, second = 1 / math.sqrt(self.in_features), math.sqrt(3 / self.rank)
        of_basis, of_rest = (first, second) if self.shared == "inputs" else (second, first)
        if self.basis is not None:
            nn.init.uniform_(self.basis, -of_basis, of_basis)
        nn.init.uniform_(self.coefficients, -of_rest, of_rest)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @property
    def lender(self) -> SharedBasisLinear:
        """The layer whose basis this one uses: itself, if it has its own."""
        if self.basis is not None:
            return self
        if not self._lender:
            raise RuntimeError("SharedBasisLinear: a layer without a basis must borrow one first")
        return self._lender[0]

    @property
    def shared_basis(self) -> nn.Parameter:
        """The basis, wherever it is stored."""
        basis = self.lender.basis
        assert basis is not None
        return basis

    def borrow(self, lender: SharedBasisLinear) -> None:
        """Use the basis of `lender`.

        Raises
        ------
        ValueError
            If this layer has its own, `lender` has none, or theirs would not fit.
        """
        if self.basis is not None or lender.basis is None:
            raise ValueError("borrow: the lender must have a basis, and the borrower none")
        width = "in_features" if self.shared == "inputs" else "out_features"
        for name in ("shared", "rank", width):
            mine, theirs = getattr(self, name), getattr(lender, name)
            if mine != theirs:
                raise ValueError(f"borrow: {name} must be {mine!r}, the lender has {theirs!r}")
        self._lender = (lender,)

    def forward(self, input: Tensor) -> Tensor:
        # Another block's basis may be on another device.
        basis = self.shared_basis.to(self.coefficients.device)
        if self.shared == "inputs":
            return F.linear(F.linear(input, basis), self.coefficients, self.bias)
        return F.linear(F.linear(input, self.coefficients), basis, self.bias)

    def flops(self) -> int:
        # A basis that is borrowed is no parameter of this layer, but multiplied by it.
        return 2 * self.rank * (self.in_features + self.out_features)

    def compose(self) -> Tensor:
        coefficients = high_precision(self.coefficients)
        basis = high_precision(self.shared_basis).to(coefficients.device)
        return coefficients @ basis if self.shared == "inputs" else basis @ coefficients

    @classmethod
    def in_place_of(
        cls,
        linears: Sequence[nn.Module],
        basis: Tensor,
        coefficients: Sequence[Tensor],
        shared: Shared,
    ) -> list[SharedBasisLinear]:
        """Layers with the biases, dtypes and devices of dense ones; the first one lends its basis.

        Parameters
        ----------
        linears : sequence of torch.nn.Linear or transformers Conv1D
        basis : Tensor of shape (r, i) with ``shared="inputs"``, else (o, r)
        coefficients : sequence of Tensor, shapes (o, r) or (r, i)
            One for each layer.
        shared : {"inputs", "outputs"}

        Raises
        ------
        ValueError
            If the shapes do not fit together.
        """
        layers: list[SharedBasisLinear] = []
        for linear, rest in zip(linears, coefficients, strict=True):
            weight, bias = dense_weight(linear), dense_bias(linear)
            first, second = (basis, rest) if shared == "inputs" else (rest, basis)
            shapes = tuple(second.shape), tuple(first.shape)
            (out_features, rank), in_features = second.shape, first.shape[1]
            if first.shape[0] != rank or (out_features, in_features) != tuple(weight.shape):
                raise ValueError(
                    f"{cls.__name__}: factors must compose to shape {tuple(weight.shape)}, got "
                    f"shapes {shapes[0]} and {shapes[1]}"
                )
            check_bias(cls.__name__, bias, out_features)
            layer = cls.unfilled(
                in_features,
                out_features,
                rank,
                shared,
                lends=not layers,
                bias=bias is not None,
                device=weight.device,
                dtype=weight.dtype,
            )
            with torch.no_grad():
                layer.coefficients.copy_(rest)
                layer._store_bias(bias)
                if layer.basis is not None:
                    layer.basis.copy_(basis)
                else:
                    layer.borrow(layers[0])
            layers.append(layer)
        return layers

    def _size(self) -> dict[str, Any]:
        return {"rank": self.rank, "shared": self.shared, "lends": self.basis is not None}
