"""Reference answers by SciPy in float64, and the unit roundoffs that tolerances derive from."""

import math

import numpy as np
import scipy.linalg
import torch

UNIT_ROUNDOFF = {
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-8,
    torch.float32: 2.0**-24,
    torch.float64: 2.0**-53,
}


def unit_roundoff(A: torch.Tensor) -> float:
    return UNIT_ROUNDOFF[A.dtype]


def exact(A) -> np.ndarray:
    """A as a float64 NumPy array."""
    return np.asarray(A.double() if isinstance(A, torch.Tensor) else A, dtype=np.float64)


def singular_values(A) -> np.ndarray:
    return scipy.linalg.svd(exact(A), compute_uv=False)


def tail_norm(A, rank: int) -> float:
    """‖A − A_rank‖_F of the best approximation of that rank."""
    return float(np.linalg.norm(singular_values(A)[rank:]))


def orthonormality_error(Q) -> float:
    """‖QᵀQ − I‖_F in units of √k·u, the units that the promise of 10 is stated in.

    The products of a float64 Q are taken in extended precision, and sums are pairwise: a plain
    product has errors of the size that is to be measured.
    """
    k = Q.shape[1]
    if Q.numel() == 0:
        return 0.0
    columns = np.asarray(Q.T).astype(np.longdouble if Q.dtype == torch.float64 else np.float64)
    gram = np.array([[np.sum(a * b) for b in columns] for a in columns], dtype=columns.dtype)
    error = np.linalg.norm((gram - np.eye(k)).astype(np.float64))
    return float(error / (math.sqrt(k) * unit_roundoff(Q)))
