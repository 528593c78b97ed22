"""Reference answers by SciPy in float64, and the unit roundoffs that tolerances derive from."""

import math

import numpy as np
import scipy.linalg
import torch

import fastlr.linalg as la

UNIT_ROUNDOFF = {
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-8,
    torch.float32: 2.0**-24,
    torch.float64: 2.0**-53,
}


def unit_roundoff(A: torch.Tensor) -> float:
    return UNIT_ROUNDOFF[A.dtype.to_real() if A.is_complex() else A.dtype]


def exact(A) -> np.ndarray:
    """A as a float64 or complex128 NumPy array."""
    array = A.resolve_conj() if isinstance(A, torch.Tensor) else np.asarray(A)
    if isinstance(array, torch.Tensor):
        array = (array if array.is_complex() else array.double()).numpy()
    return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)


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
    wide = {
        torch.float64: np.longdouble,
        torch.complex64: np.complex128,
        torch.complex128: np.clongdouble,
    }.get(Q.dtype, np.float64)
    columns = np.asarray(Q.mT.resolve_conj()).astype(wide)
    gram = np.array([[np.sum(a.conj() * b) for b in columns] for a in columns], dtype=wide)
    error = np.linalg.norm((gram - np.eye(k)).astype(np.complex128))
    return float(error / (math.sqrt(k) * unit_roundoff(Q)))


def rounding(A: torch.Tensor) -> float:
    """What rounding may add to ‖A − USVh‖_F: some √k·u of ‖A‖_F, 40 √k·u allowed."""
    return 40 * math.sqrt(min(A.shape)) * unit_roundoff(A) * float(np.linalg.norm(exact(A)))


def residual(A, result) -> float:
    """‖A − U·diag(S)·Vh‖_F."""
    U, S, Vh = (exact(factor) for factor in result)
    return float(np.linalg.norm(exact(A) - (U * S) @ Vh))


def operator(A: torch.Tensor) -> la.LinearOperator:
    """A known by its products alone: its entries, and so ‖A‖_F, are not seen."""
    return la.LinearOperator(A.shape, lambda X: A @ X, lambda Y: A.mH @ Y, dtype=A.dtype)


def backward_error(A, b, x) -> float:
    """The estimate of Karlson and Waldén for A·x ≈ b, relative, with columns of unit length."""
    A, b, x = exact(A), exact(b), exact(x)
    lengths = np.linalg.norm(A, axis=0)
    lengths[lengths == 0] = 1
    A, x = A / lengths, x * lengths
    norm, size = np.linalg.norm(A), np.linalg.norm(b)
    if norm == 0 or size == 0:
        return 0.0
    residual = b - A @ x
    theta = norm / size
    growth = np.hypot(1, theta * np.linalg.norm(x))
    _, values, adjoint = scipy.linalg.svd(A, full_matrices=False)
    parts = adjoint @ (A.conj().T @ residual)
    shifted = np.hypot(values, theta * np.linalg.norm(residual) / growth)
    seen = shifted > 0
    return float(np.linalg.norm(parts[seen] / shifted[seen]) / (size * growth))


def lstsq_in_extended_precision(A, b) -> np.ndarray:
    """Householder QR in NumPy's longdouble, eleven bits more than float64 has."""
    R, y = exact(A).astype(np.longdouble), exact(b).astype(np.longdouble)
    n = R.shape[1]
    for j in range(n):
        v = R[j:, j].copy()
        v[0] += np.copysign(np.sqrt(np.sum(v * v)), v[0])
        v /= np.sqrt(np.sum(v * v))
        R[j:, j:] -= 2 * v[:, None] * np.sum(v[:, None] * R[j:, j:], axis=0)
        y[j:] -= 2 * v * np.sum(v * y[j:])
    x = np.zeros(n, np.longdouble)
    for j in reversed(range(n)):
        x[j] = (y[j] - np.sum(R[j, j + 1 :] * x[j + 1 :])) / R[j, j]
    return x


def matern(a, b, nu, length):
    """The kernel between two vectors of coordinates, of variance 1, for ν = 1/2, 3/2 and 5/2."""
    x = np.sqrt(2 * nu) * np.abs(np.subtract.outer(np.asarray(a), np.asarray(b))) / length
    return {0.5: 1, 1.5: 1 + x, 2.5: 1 + x + x**2 / 3}[nu] * np.exp(-x)
