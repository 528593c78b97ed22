"""A linear layer whose norm never exceeds a bound."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlr.nn.modules.contraction import (
    DTYPES,
    as_constant,
    check_dtype,
    check_size,
    contraction,
    uncontracted,
)
from fastlr.nn.modules.dense import dense_bias, dense_weight, high_precision
from fastlr.nn.modules.masked_linear import check_finite


class LipschitzLinear(nn.Module):
    """A linear layer y = W x + b with ‖W‖₂ ≤ L for any values of its parameters.

    Parameters
    ----------
    in_features, out_features : int
        i and o, the sizes of the input and of the output.
    bias : bool, default True
        Whether the layer adds a bias.
    lipschitz : float, default 1
        L > 0, in the Euclidean norms of input and output.
    device : torch.device or str, optional
        Where the parameters are created.
    dtype : torch.dtype, optional
        float32 or float64.

    Attributes
    ----------
    M : Parameter of shape (o, i)
        W has the singular values L·σ/√(1 + σ²), σ those of M.
    bias : Parameter of shape (o,) or None
    weight : Tensor of shape (o, i)
        W, made from M each time it is asked for.
    lipschitz : float

    Raises
    ------
    ValueError
        A size or a bound that is not positive.
    TypeError
        Another dtype: there is no QR factorization in 16 bits.

    See Also
    --------
    LipschitzResidual : a nonlinear block with a bound.

    Notes
    -----
    W = L·K, where [R⁻¹; K] are the orthonormal columns of the QR factorization of [I; M] (of [I;
    Mᵀ] for o < i). All W with ‖W‖₂ < L come from one M, and L is approached as M grows. In rounded
    arithmetic the norm may exceed L by some √min(o, i)·u·L.

    4·(o + i)·min(o, i)² flops a forward pass beside the product, and some times that for the
    gradient; `to_dense` for use without training. Source: the LMI of Juston, Sreenivas, Nottage,
    Soylemezoglu, "LDLT L-Lipschitz network", arXiv 2512.05915 (2025), for one layer.

    Examples
    --------
    >>> import torch
    >>> from fastlr.nn import LipschitzLinear
    >>> layer = LipschitzLinear(12, 8, lipschitz=3)
    >>> with torch.no_grad():
    ...     _ = layer.M.mul_(1000)  # as far as training may go
    >>> round(torch.linalg.matrix_norm(layer.weight, 2).item(), 4)
    3.0
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        lipschitz: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        check_size(owner, "in_features", in_features)
        check_size(owner, "out_features", out_features)
        check_dtype(owner, dtype)
        self.lipschitz = as_constant(lipschitz, 0, owner)
        self.in_features = in_features
        self.out_features = out_features
        self.M = nn.Parameter(torch.empty(out_features, in_features, device=device, dtype=dtype))
        self.bias = (
            nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw W as 2/√5 = 0.89 of L times an isometry (or its transpose); the bias is zero."""
        nn.init.orthogonal_(self.M, gain=2)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @property
    def weight(self) -> Tensor:
        return self.lipschitz * contraction(self.M)

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer to a ``… × in_features`` tensor."""
        return F.linear(input, self.weight, self.bias)

    def to_dense(self) -> nn.Linear:
        """The ``torch.nn.Linear`` with the same weight and bias, which has no bound when trained.

        The weight is made in float64 and rounded once.
        """
        linear = nn.Linear(
            self.in_features,
            self.out_features,
            bias=self.bias is not None,
            device=self.M.device,
            dtype=self.M.dtype,
        )
        with torch.no_grad():
            linear.weight.copy_(self.lipschitz * contraction(high_precision(self.M)))
            if self.bias is not None:
                linear.bias.copy_(self.bias)
        return linear.train(self.training)

    @classmethod
    def from_dense(cls, linear: nn.Module, lipschitz: float) -> LipschitzLinear:
        """The layer that is nearest to a dense one in the Frobenius norm.

        Parameters
        ----------
        linear : torch.nn.Linear or transformers Conv1D
            In float32 or float64. Singular values of its weight above ``(1 − √u)·lipschitz`` are
            set to that, u being the unit roundoff of the dtype; others are kept.
        lipschitz : float

        Raises
        ------
        TypeError
            If `linear` is no dense linear layer, or has another dtype.
        ValueError
            If an entry of the weight is not finite, or `lipschitz` not positive.
        """
        weight, bias = dense_weight(linear), dense_bias(linear)
        if weight.dtype not in DTYPES:
            raise TypeError(f"{cls.__name__}: dtype must be float32 or float64, got {weight.dtype}")
        check_finite(cls.__name__, "weight", weight)
        layer = cls(
            weight.shape[1],
            weight.shape[0],
            bias is not None,
            lipschitz,
            device=weight.device,
            dtype=weight.dtype,
        )
        most = 1 - (torch.finfo(weight.dtype).eps / 2) ** 0.5
        U, S, Vh = torch.linalg.svd(high_precision(weight) / layer.lipschitz, full_matrices=False)
        with torch.no_grad():
            layer.M.copy_(uncontracted(U * S.clamp(max=most) @ Vh))
            if layer.bias is not None and bias is not None:
                layer.bias.copy_(bias)
        return layer.train(linear.training)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, lipschitz={self.lipschitz:g}"
        )
