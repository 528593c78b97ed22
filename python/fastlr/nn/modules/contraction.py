"""Matrices of norm at most 1, for any values of their parameters."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64)


def contraction(M: Tensor) -> Tensor:
    """K = M·R⁻¹ with RᵀR = I + MᵀM: singular values σ of M become σ/√(1 + σ²).

    [I; M] = [R⁻¹; K]·R is a QR factorization, so that K is a part of orthonormal columns, and
    ‖K‖₂ ≤ 1 to rounding whatever M is. A wide M is transposed: R has the smaller size.
    """
    if M.shape[0] < M.shape[1]:
        return contraction(M.mT).mT
    n = M.shape[1]
    identity = torch.eye(n, device=M.device, dtype=M.dtype)
    Q, R = torch.linalg.qr(torch.cat([identity, M]))
    # A positive diagonal of R makes K a smooth function of M.
    K: Tensor = Q[n:] * R.diagonal().detach().sign()
    return K


def uncontracted(K: Tensor) -> Tensor:
    """M with contraction(M) = K, for ‖K‖₂ < 1: K·R, where R⁻ᵀR⁻¹ = I − KᵀK."""
    if K.shape[0] < K.shape[1]:
        return uncontracted(K.mT).mT
    identity = torch.eye(K.shape[1], device=K.device, dtype=K.dtype)
    inverse = torch.linalg.cholesky(identity - K.mT @ K, upper=True)
    M: Tensor = torch.linalg.solve_triangular(inverse, K, upper=True, left=False)
    return M


def as_constant(value: float, least: float, owner: str) -> float:
    """A Lipschitz constant above or at `least`; ValueError otherwise."""
    number = float(value)
    if not least <= number < float("inf") or number == 0:
        bound = f"at least {least:g}" if least else "positive"
        raise ValueError(f"{owner}: lipschitz must be {bound} and finite, got {value}")
    return number


def check_dtype(owner: str, dtype: torch.dtype | None) -> None:
    """Raise TypeError unless QR factorizations exist in `dtype`."""
    used = torch.get_default_dtype() if dtype is None else dtype
    if used not in DTYPES:
        raise TypeError(f"{owner}: dtype must be float32 or float64, got {used}")


def check_size(owner: str, name: str, value: int) -> None:
    """Raise ValueError unless a size is positive."""
    if value < 1:
        raise ValueError(f"{owner}: {name} must be at least 1, got {value}")
