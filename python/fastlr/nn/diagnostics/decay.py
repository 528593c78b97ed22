"""How fast singular values fall: ranks and the exponent of their tail."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def singular_values(matrix: Tensor) -> Tensor:
    """All of them, falling, float64, of a float64 matrix.

    By a bidiagonalization, not by a Gram matrix: each value is within a small multiple of u‖A‖ of
    the exact one, where the eigenvalues of AᵀA lose all that is below √u‖A‖.
    """
    # LAPACK takes twice as long for a wide matrix.
    tall = matrix if len(matrix) >= matrix.shape[1] else matrix.mT
    values: Tensor = torch.linalg.svdvals(tall)
    return values.cpu()


def numerical_rank(values: Tensor, shape: tuple[int, int]) -> int:
    """How many singular values are above rounding, max(shape)·u of the largest."""
    if not len(values):
        return 0
    threshold = max(shape) * torch.finfo(values.dtype).eps * values[0]
    return int((values > threshold).sum())


def effective_rank(values: Tensor) -> float:
    """exp(−Σ p log p) of the shares p = σ²/Σσ²; 0 of a zero matrix."""
    shares = _shares(values)
    return math.exp(float(torch.special.entr(shares).sum())) if len(shares) else 0.0


def stable_rank(values: Tensor) -> float:
    """‖W‖_F² / ‖W‖₂²; 0 of a zero matrix."""
    shares = _shares(values)
    return 1 / float(shares[0]) if len(shares) else 0.0


def energy_rank(values: Tensor, share: float) -> int:
    """The least rank whose best approximation keeps this share of ‖W‖_F²; 0 of a zero matrix."""
    shares = _shares(values)
    # The smallest first, so that they are not absorbed.
    lost = shares.flip(0).cumsum(0)
    rounding = len(shares) * torch.finfo(shares.dtype).eps
    return len(shares) - int((lost <= 1 - share + rounding).sum())


def tail_exponent(eigenvalues: Tensor) -> float:
    """The exponent α of a density p(λ) ~ λ^(−α) of the larger half, by Hill's estimator.

    α = 1 + k / Σ_{i≤k} log(λ_i / λ_{k+1}) with k = ⌊n/2⌋, for λ_1 ≥ … ≥ λ_n > 0. NaN for fewer
    than two of them, and infinite where the larger half are all equal.
    """
    count = len(eigenvalues) // 2
    if count == 0:
        return math.nan
    logs = eigenvalues.sort(descending=True).values.log()
    spread = float((logs[:count] - logs[count]).sum())
    return 1 + count / spread if spread > 0 else math.inf


def _shares(values: Tensor) -> Tensor:
    """σ²/Σσ², without overflow; nothing of a zero matrix."""
    if not len(values) or not float(values[0]):
        return values.new_empty(0)
    squares = (values / values[0]).square()
    return squares / squares.sum()
