"""A residual block whose Lipschitz constant never exceeds a bound."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlr.nn.modules.contraction import as_constant, check_dtype, check_size, contraction

# Of slopes between 0 and 1.
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "tanh": torch.tanh,
    "softplus": F.softplus,
}
# Logarithms of the scales of hidden units stay within ± this: 2e-9 to 5e8 between two of them.
_WIDEST = 10.0


class LipschitzResidual(nn.Module):
    """A residual block y = x + G·σ(W x + b) that is L-Lipschitz for any values of its parameters.

    Parameters
    ----------
    features : int
        n, the size of the input and of the output.
    hidden : int
        h, the number of hidden units.
    lipschitz : float, default 1
        L ≥ 1, in the Euclidean norm: x alone has the constant 1.
    activation : {"relu", "tanh", "softplus"}
        σ; all slopes are between 0 and 1.
    device : torch.device or str, optional
        Where the parameters are created.
    dtype : torch.dtype, optional
        float32 or float64.

    Attributes
    ----------
    M : Parameter of shape (2n, h), or (n, h) for L = 1
    log_scale : Parameter of shape (h,)
        How much larger a column of G is than a row of W, as a logarithm; 10·tanh(log_scale/10) is
        used.
    bias : Parameter of shape (h,)
    lipschitz : float
    activation : str

    Raises
    ------
    ValueError
        A size that is not positive, L below 1, an unknown activation.
    TypeError
        Another dtype: there is no QR factorization in 16 bits.

    See Also
    --------
    LipschitzLinear

    Notes
    -----
    With K = [K₁; K₂] of norm below 1 made from M as in `LipschitzLinear`, Λ = exp(2·scale) and
    c = √(L² − 1),

        G = √2·K₁·Λ^½,   W = √2·Λ^−½·(c·K₂ − K₁)ᵀ.

    These are all G and W for which slopes in [0, 1] and multipliers Λ in that range prove the
    bound by a strict matrix inequality; for L = 1 they are those of SLL, without its diagonal
    dominance. The bound is attained: by one unit, if its slope is 1, already.

    4·(2·n + h)·min(2·n, h)² flops a forward pass beside the products, and some times that for the
    gradient. Sources: Araujo, Havens, Delattre, Allauzen, Hu, "A unified algebraic perspective on
    Lipschitz neural networks", ICLR 2023; Juston, Sreenivas, Nottage, Soylemezoglu, "LDLT
    L-Lipschitz network: generalized deep end-to-end Lipschitz network construction", arXiv
    2512.05915 (2025).

    Examples
    --------
    >>> import torch
    >>> from fastlr.nn import LipschitzResidual
    >>> block = LipschitzResidual(5, 20, lipschitz=2)
    >>> x, y = torch.randn(2, 100, 5)
    >>> ratio = (block(x) - block(y)).norm(dim=1) / (x - y).norm(dim=1)
    >>> bool(ratio.max() <= 2)
    True
    """

    def __init__(
        self,
        features: int,
        hidden: int,
        lipschitz: float = 1.0,
        activation: str = "relu",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        check_size(owner, "features", features)
        check_size(owner, "hidden", hidden)
        check_dtype(owner, dtype)
        if activation not in _ACTIVATIONS:
            raise ValueError(
                f"{owner}: activation must be one of {', '.join(_ACTIVATIONS)}, got {activation!r}"
            )
        self.lipschitz = as_constant(lipschitz, 1, owner)
        self.features = features
        self.hidden = hidden
        self.activation = activation
        rows = features if self.lipschitz == 1 else 2 * features
        self.M = nn.Parameter(torch.empty(rows, hidden, device=device, dtype=dtype))
        self.log_scale = nn.Parameter(torch.empty(hidden, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(hidden, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw K as 1/√2 times an isometry (or its transpose); scales are 1, the bias is zero."""
        nn.init.orthogonal_(self.M)
        nn.init.zeros_(self.log_scale)
        nn.init.zeros_(self.bias)

    def branch(self) -> tuple[Tensor, Tensor]:
        """G (n × h) and W (h × n)."""
        K = math.sqrt(2) * contraction(self.M)
        scale = torch.exp(_WIDEST * torch.tanh(self.log_scale / _WIDEST))
        first = K[: self.features]
        inner = -first
        if self.lipschitz > 1:
            inner = (
                math.sqrt((self.lipschitz - 1) * (self.lipschitz + 1)) * K[self.features :] - first
            )
        return first * scale, (inner / scale).mT

    def forward(self, input: Tensor) -> Tensor:
        """Apply the block to a ``… × features`` tensor."""
        G, W = self.branch()
        return input + F.linear(_ACTIVATIONS[self.activation](F.linear(input, W, self.bias)), G)

    def extra_repr(self) -> str:
        return (
            f"features={self.features}, hidden={self.hidden}, lipschitz={self.lipschitz:g}, "
            f"activation={self.activation!r}"
        )
