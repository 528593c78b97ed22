"""Weights that stay orthogonal, of low rank or bounded while they are trained.

On ``torch.nn.utils.parametrize``: the parameter is a matrix of Householder vectors, which an
optimiser may move anywhere; the weight is their product, unitary to rounding. What Householder
vectors cannot say, the phases of columns, is in buffers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from fastlr.linalg import householder_apply, householder_product, householder_vectors
from fastlr.nn.modules.householder_svd import householder_svd

__all__ = ["fixed_spectrum", "low_rank", "orthogonal", "spectral_bound"]

_DTYPES = (torch.float32, torch.float64)
# Of a bound, what singular values at it or above it become: there the gradient is not yet zero.
_INSIDE = 1 - 2.0**-10


class _Orthogonal(nn.Module):
    """Vectors, m × r, to orthonormal columns m × k or, transposed, rows."""

    phases: Tensor | None
    base: Tensor | None

    def __init__(self, weight: Tensor, reflections: int | None) -> None:
        super().__init__()
        self.wide = weight.shape[0] < weight.shape[1]
        m, k = max(weight.shape), min(weight.shape)
        self.reflections = reflections
        # All columns, up to their phases, are products of k reflectors. Fewer move given ones.
        if reflections is None:
            self.register_buffer("phases", weight.new_ones(k))
            self.register_buffer("base", None)
        else:
            self.register_buffer("phases", None)
            self.register_buffer("base", weight.new_zeros(m, k))

    def forward(self, V: Tensor) -> Tensor:
        Q: Tensor
        if self.base is None:
            Q = householder_product(V, lower=True) * self.phases
        else:
            Q = householder_apply(V, self.base, lower=True)
        return Q.mT if self.wide else Q

    def right_inverse(self, weight: Tensor) -> Tensor:
        W = weight.detach().mT if self.wide else weight.detach()
        nearest = _nearest(W.double()).to(W.dtype)
        if self.reflections is None:
            found = householder_vectors(nearest)
            self.phases = found.phases
            vectors: Tensor = found.vectors
            return vectors
        V = torch.randn(len(W), self.reflections, dtype=W.dtype, device=W.device).tril()
        self.base = householder_apply(V, nearest, adjoint=True, lower=True)
        return V


def _nearest(W: Tensor) -> Tensor:
    """The nearest matrix with orthonormal columns."""
    U, _, Vh = torch.linalg.svd(W, full_matrices=False)
    Q: Tensor = U @ Vh
    # A Newton-Schulz step: the SVD is orthonormal to its rounding, which is more than that of Q.
    return 1.5 * Q - 0.5 * (Q @ (Q.mT @ Q))


class _Factored(nn.Module):
    """Vectors of U and V, and singular values between them: U·diag(s)·Vᵀ."""

    phases: Tensor

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.register_buffer("phases", weight.new_ones(rank))

    def product(self, of_U: Tensor, s: Tensor, of_V: Tensor) -> Tensor:
        U = householder_product(of_U, lower=True)
        V = householder_product(of_V, lower=True)
        with torch.autocast(U.device.type, enabled=False):
            W: Tensor = (U * (self.phases * s)) @ V.mT
        return W

    def factors(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        of_U, s, of_V, self.phases = householder_svd(weight, self.rank)
        return of_U, s, of_V


class _LowRank(_Factored):
    def forward(self, of_U: Tensor, s: Tensor, of_V: Tensor) -> Tensor:
        return self.product(of_U, s, of_V)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.factors(weight)


class _FixedSpectrum(_Factored):
    spectrum: Tensor

    def __init__(self, weight: Tensor, spectrum: Tensor | None) -> None:
        super().__init__(weight, min(weight.shape))
        self.given = spectrum is not None
        values = torch.zeros_like(self.phases) if spectrum is None else spectrum.to(self.phases)
        self.register_buffer("spectrum", values)

    def forward(self, of_U: Tensor, of_V: Tensor) -> Tensor:
        return self.product(of_U, self.spectrum, of_V)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        of_U, s, of_V = self.factors(weight)
        if not self.given:
            self.spectrum = s
        return of_U, of_V


class _SpectralBound(_Factored):
    def __init__(self, weight: Tensor, bound: float) -> None:
        super().__init__(weight, min(weight.shape))
        self.bound = bound

    def forward(self, of_U: Tensor, s: Tensor, of_V: Tensor) -> Tensor:
        return self.product(of_U, self.bound * s / torch.hypot(s, torch.ones_like(s)), of_V)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        of_U, s, of_V = self.factors(weight)
        below = (s / self.bound).clamp(max=_INSIDE)
        return of_U, below / (1 - below.square()).sqrt(), of_V


def orthogonal(
    module: nn.Module, name: str = "weight", reflections: int | None = None
) -> nn.Module:
    """Keep the columns of a weight orthonormal, or its rows where it has more columns.

    Parameters
    ----------
    module : Module
    name : str
        Of a parameter of shape (m, n), float32 or float64. It becomes the nearest matrix with
        orthonormal columns or rows: one that has them stays as it is.
    reflections : int, optional
        From 1 to max(m, n): the weight is so many reflections of what it is now, which are all
        that is trained. If None, min(m, n) reflections from the identity, which can make every
        orthonormal columns but for their signs, which are kept.

    Returns
    -------
    Module
        `module` itself.

    Raises
    ------
    ValueError
        No such parameter, not a matrix, `reflections` out of range.
    TypeError
        A weight that is not float32 or float64.

    Notes
    -----
    (4/3)·n³ flops for a square weight of size n, three times as many for its gradient. An
    assignment to the weight finds vectors for it. Weight decay shortens the vectors, which changes
    nothing. With `torch.nn.utils.parametrize.remove_parametrizations` the weight becomes a plain
    parameter with the same numbers. See `fastlr.linalg.householder_product`.

    Examples
    --------
    >>> import torch, fastlr.nn.parametrize as parametrize
    >>> layer = parametrize.orthogonal(torch.nn.Linear(5, 5))
    >>> W = layer.weight
    >>> torch.allclose(W.T @ W, torch.eye(5), atol=1e-6)
    True
    """
    weight = _weight(module, name, "orthogonal")
    if reflections is not None and not 1 <= reflections <= max(weight.shape):
        raise ValueError(
            f"orthogonal: reflections must be between 1 and {max(weight.shape)}, got {reflections}"
        )
    register_parametrization(module, name, _Orthogonal(weight, reflections))
    return module


def low_rank(module: nn.Module, name: str = "weight", rank: int = 1) -> nn.Module:
    """Keep a weight of low rank, U·diag(s)·Vᵀ with orthonormal columns of U and V.

    Parameters
    ----------
    module : Module
    name : str
        Of a parameter of shape (m, n), float32 or float64. It becomes the best approximation of
        that rank, by its singular value decomposition.
    rank : int
        From 1 to min(m, n).

    Returns
    -------
    Module
        `module` itself.

    Raises
    ------
    ValueError
        No such parameter, not a matrix, a rank out of range.
    TypeError
        A weight that is not float32 or float64.

    Notes
    -----
    Trained are vectors of U, m × rank, and V, n × rank, and the numbers s, of any sign.

    Examples
    --------
    >>> import torch, fastlr.nn.parametrize as parametrize
    >>> layer = parametrize.low_rank(torch.nn.Linear(8, 6), rank=2)
    >>> int(torch.linalg.matrix_rank(layer.weight))
    2
    """
    weight = _weight(module, name, "low_rank")
    if not 1 <= rank <= min(weight.shape):
        raise ValueError(f"low_rank: rank must be between 1 and {min(weight.shape)}, got {rank}")
    register_parametrization(module, name, _LowRank(weight, rank))
    return module


def fixed_spectrum(
    module: nn.Module, name: str = "weight", spectrum: Tensor | None = None
) -> nn.Module:
    """Keep the singular values of a weight.

    Parameters
    ----------
    module : Module
    name : str
        Of a parameter of shape (m, n), float32 or float64. Its singular vectors stay as they are.
    spectrum : Tensor of shape (min(m, n),), optional
        The singular values, the one of the leading vectors first. If None, those of the weight,
        also after an assignment to it.

    Returns
    -------
    Module
        `module` itself.

    Raises
    ------
    ValueError
        No such parameter, not a matrix, a spectrum of another shape, or with an entry that is
        negative or not finite.
    TypeError
        A weight that is not float32 or float64.

    Examples
    --------
    >>> import torch, fastlr.nn.parametrize as parametrize
    >>> given = torch.tensor([3.0, 2, 1])
    >>> layer = parametrize.fixed_spectrum(torch.nn.Linear(3, 3), spectrum=given)
    >>> torch.linalg.svdvals(layer.weight.detach()).round(decimals=4)
    tensor([3., 2., 1.])
    """
    weight = _weight(module, name, "fixed_spectrum")
    if spectrum is not None:
        least = min(weight.shape)
        if tuple(spectrum.shape) != (least,):
            raise ValueError(
                f"fixed_spectrum: spectrum must have shape ({least},), got {tuple(spectrum.shape)}"
            )
        if not bool(((spectrum >= 0) & torch.isfinite(spectrum)).all()):
            raise ValueError(
                f"fixed_spectrum: spectrum must be finite and not negative, got {spectrum.tolist()}"
            )
    register_parametrization(module, name, _FixedSpectrum(weight, spectrum))
    return module


def spectral_bound(module: nn.Module, name: str = "weight", bound: float = 1.0) -> nn.Module:
    """Keep the spectral norm of a weight below a bound, so that the layer is Lipschitz.

    Parameters
    ----------
    module : Module
    name : str
        Of a parameter of shape (m, n), float32 or float64. Singular values of `bound` or more
        become 1 − 2⁻¹⁰ times that; others stay as they are.
    bound : float
        Positive.

    Returns
    -------
    Module
        `module` itself.

    Raises
    ------
    ValueError
        No such parameter, not a matrix, a bound that is not positive and finite.
    TypeError
        A weight that is not float32 or float64.

    Notes
    -----
    U·diag(bound·s/√(1 + s²))·Vᵀ with Householder products U and V: below the bound for any values
    of the parameters, but for the rounding of U and V.

    Examples
    --------
    >>> import torch, fastlr.nn.parametrize as parametrize
    >>> layer = torch.nn.Linear(6, 4)
    >>> with torch.no_grad():
    ...     _ = layer.weight.mul_(100)
    >>> layer = parametrize.spectral_bound(layer, bound=2)
    >>> bool(torch.linalg.matrix_norm(layer.weight, 2) < 2)
    True
    """
    weight = _weight(module, name, "spectral_bound")
    if not 0 < bound < math.inf:
        raise ValueError(f"spectral_bound: bound must be positive and finite, got {bound}")
    register_parametrization(module, name, _SpectralBound(weight, float(bound)))
    return module


def _weight(module: nn.Module, name: str, caller: str) -> Tensor:
    weight = getattr(module, name, None)
    if not isinstance(weight, Tensor):
        raise ValueError(f"{caller}: name must be that of a parameter of {module}, got {name!r}")
    if weight.dim() != 2 or not weight.numel():
        raise ValueError(
            f"{caller}: {name} must be a matrix with entries, got shape {tuple(weight.shape)}"
        )
    if weight.dtype not in _DTYPES:
        raise TypeError(f"{caller}: {name} must be float32 or float64, got {weight.dtype}")
    if not bool(torch.isfinite(weight).all()):
        raise ValueError(f"{caller}: {name} must be finite")
    return weight
