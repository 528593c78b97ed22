"""CUR of a large float32 matrix, 100 columns and rows.

The floor is two passes over the matrix: products with 110 columns on either side, which the sketch
and the matrix in the middle cannot avoid. `error` is ‖A − C·U·R‖ over that of the best
approximation of the rank, in the Frobenius norm, with 30 random vectors that the library has not
seen.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

import fastlr.linalg as la
from harness import Case, Session

COMPONENTS = 300


def decaying(n: int, rank: int) -> tuple[Tensor, float]:
    """σ_i near 1 / (i + 1), up to 300 of them, and the norm of what is beyond the rank."""
    left, right = (la.orthonormalize(la.random_matrix(n, COMPONENTS, seed=seed)) for seed in (1, 2))
    values = 1 / torch.arange(1.0, COMPONENTS + 1)
    return (left * values) @ right.T, float(values[rank:].double().norm())


def main() -> None:
    with Session(__doc__, repeats=5, options={"size": 20_000, "rank": 100}) as session:
        n, rank = session.options.size, session.options.rank
        A, best = decaying(n, rank)
        left, right, fresh = (
            la.random_matrix(n, columns, seed=seed)
            for seed, columns in ((3, rank + 10), (4, rank + 10), (5, 30))
        )

        def passes() -> None:
            A.T @ left
            A @ right

        def graded(result: Any) -> dict[str, Any]:
            C, U, R = result[:3]
            residual = A @ fresh - C @ (U @ (R @ fresh))
            error = float(residual.double().norm()) / math.sqrt(fresh.shape[1])
            return {"error": f"{error / best:.2f}", "passes": result.info.passes}

        def svd_graded(result: Any) -> dict[str, Any]:
            U, S, Vh = result
            residual = A @ fresh - U @ (S[:, None] * (Vh @ fresh))
            error = float(residual.double().norm()) / math.sqrt(fresh.shape[1])
            return {"error": f"{error / best:.2f}", "passes": result.info.passes}

        cases = [
            Case(
                f'select="{select}", middle="{middle}"',
                lambda select=select, middle=middle: la.cur(
                    A, rank, select=select, middle=middle, seed=0
                ),
                graded,
            )
            for select, middle in (
                ("rrqr", "projection"),
                ("rrqr", "intersection"),
                ("uniform", "projection"),
                ("deim", "projection"),
            )
        ]
        svd = Case("randomized_svd", lambda: la.randomized_svd(A, rank, seed=0), svd_graded)
        session.table(
            f"{n:,} × {n:,} float32, rank {rank}",
            [*cases, svd],
            floor=Case(f"floor: two products with {rank + 10} columns", passes),
        )


if __name__ == "__main__":
    main()
