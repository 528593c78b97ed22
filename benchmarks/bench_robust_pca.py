"""Robust PCA: low rank and sparse, beside full singular value decompositions.

Planted matrices in float64: Gaussian factors, and a share of the entries replaced by uniform ones
of up to the largest of L. The floor is one full SVD in the form that the peers take in every
iteration. `error` is that of L, `excess` the objective ‖L‖_* + λ‖A − L‖₁ above the lower bound that
fastlr returns. The peers are the inexact augmented Lagrangian of Lin, Chen, Ma as it is usually
written, in NumPy, to the same residual of 1e-7, and TensorLy's `robust_pca`, where it is installed,
with the weight that makes it the same problem.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

import fastlr.linalg as la
from harness import Case, Session

Matrix = npt.NDArray[np.float64]
TOL = 1e-7


def planted(m: int, n: int, rank: int, share: float) -> tuple[Matrix, Matrix]:
    """The matrix, and its low-rank part."""
    rng = np.random.default_rng(0)
    L = rng.standard_normal((m, rank)) @ rng.standard_normal((rank, n))
    wrong = rng.random((m, n)) < share
    top = np.abs(L).max()
    return L + wrong * rng.uniform(-top, top, (m, n)), L


def ialm(A: Matrix, most: int = 200) -> Matrix:
    weight = 1 / math.sqrt(max(A.shape))
    spectral, size = np.linalg.norm(A, 2), np.linalg.norm(A)
    Y = A / max(spectral, np.abs(A).max() / weight)
    S, mu = np.zeros_like(A), 1.25 / spectral
    for _ in range(most):
        U, values, Vh = np.linalg.svd(A - S + Y / mu, full_matrices=False)
        L = (U * np.maximum(values - 1 / mu, 0)) @ Vh
        rest = A - L + Y / mu
        S = np.sign(rest) * np.maximum(np.abs(rest) - weight / mu, 0)
        Y = Y + mu * (A - L - S)
        mu = min(1.5 * mu, 1e7)
        if np.linalg.norm(A - L - S) <= TOL * size:
            break
    return L


def tensorly(A: Matrix) -> Callable[[], Matrix]:
    from tensorly.decomposition import robust_pca

    # Both unfoldings of a matrix have a term, so that twice the nuclear norm is weighed.
    weight = 2 / math.sqrt(max(A.shape))
    return lambda: robust_pca(A, reg_E=weight, tol=TOL, n_iter_max=500, verbose=0)[0]


def compared(session: Session, m: int, n: int, rank: int, share: float) -> None:
    A, L = planted(m, n, rank, share)
    weight = 1 / math.sqrt(max(m, n))
    info = la.robust_pca(A, seed=0).info
    bound = info.objective * (1 - info.gap)

    def of_matrix(found: Matrix) -> dict[str, Any]:
        objective = np.linalg.norm(found, "nuc") + weight * np.abs(A - found).sum()
        return {
            "error": f"{np.linalg.norm(found - L) / np.linalg.norm(L):.1e}",
            "excess": f"{objective / bound - 1:.1e}",
        }

    def quality(result: la.RobustPCAResult) -> dict[str, Any]:
        return {
            **of_matrix(result.low_rank),
            "rank": result.info.rank,
            "iterations": result.info.iterations,
        }

    cases = [
        Case("fastlr", lambda: la.robust_pca(A, seed=0), quality),
        Case("fastlr, tol=1e-5", lambda: la.robust_pca(A, tol=1e-5, seed=0), quality),
        Case("augmented Lagrangian, full SVDs, NumPy", lambda: ialm(A), of_matrix),
    ]
    if importlib.util.find_spec("tensorly"):
        cases.append(Case("TensorLy", tensorly(A), of_matrix))
    svd = Case("floor: one full SVD", lambda: np.linalg.svd(A, full_matrices=False))
    session.table(f"{m} × {n}, rank {rank}, {share:.0%} of the entries wrong", cases, floor=svd)


def main() -> None:
    with Session(__doc__, repeats=3) as session:
        compared(session, 500, 500, 20, 0.1)
        compared(session, 2000, 400, 15, 0.1)
        compared(session, 200, 200, 20, 0.2)


if __name__ == "__main__":
    main()
