"""Columns that give all others, float64.

The floor is two products with as many columns as are chosen. `error` is ‖A − A[:, J]·X‖_F over that
of the best approximation of the same rank, and `largest` the largest coefficient.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg.interpolative as peer
import torch
from torch import Tensor

import fastlr.linalg as la
from harness import Case, Session

DECAYS = {"0.9^i": lambda i: 0.9**i, "1/i": lambda i: 1 / (1 + i)}


def with_decay(n: int, values: Tensor) -> Tensor:
    left, right = (
        la.orthonormalize(la.random_matrix(n, len(values), seed=seed, dtype=torch.float64))
        for seed in (1, 2)
    )
    return (left * values) @ right.T


def main() -> None:
    with Session(__doc__, repeats=3, options={"size": 5000, "rank": 100}) as session:
        n, k = session.options.size, session.options.rank
        for name, decay in DECAYS.items():
            values = decay(torch.arange(4.0 * k, dtype=torch.float64))
            A, best = with_decay(n, values), float(values[k:].norm())
            as_numpy = A.numpy()

            def graded(columns: Tensor, X: Tensor, A: Tensor = A, best: float = best) -> Any:
                error = torch.linalg.matrix_norm(A - A[:, columns] @ X)
                return {
                    "error": f"{float(error) / best:.3f}",
                    "largest": f"{float(X.abs().max()):.2f}",
                }

            def scipys(result: Any, graded: Any = graded) -> Any:
                order, others = result
                X = torch.empty(k, len(order), dtype=torch.float64)
                X[:, order] = torch.cat([torch.eye(k, dtype=X.dtype), torch.as_tensor(others)], 1)
                return graded(torch.as_tensor(order[:k]), X)

            right = la.random_matrix(n, k, seed=3, dtype=torch.float64)
            session.table(
                f"{n:,} × {n:,} float64, rank {k}, singular values {name}",
                [
                    Case(
                        "fastlr",
                        lambda A=A: la.interpolative(A, k, axis=1, seed=0),
                        lambda r, graded=graded: graded(*r),
                    ),
                    Case(
                        "scipy interp_decomp",
                        lambda A=as_numpy: peer.interp_decomp(A, k, rng=np.random.default_rng(0)),
                        scipys,
                    ),
                    Case(
                        "scipy interp_decomp, rand=False",
                        lambda A=as_numpy: peer.interp_decomp(A, k, rand=False),
                        scipys,
                    ),
                ],
                floor=Case(
                    "floor: two products", lambda A=A, right=right: (A @ right, right.T @ A)
                ),
            )


if __name__ == "__main__":
    main()
