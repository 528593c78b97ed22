"""Randomized SVD, 8000 × 4000 float32, rank 100 + 10, two power iterations.

The floor is the six products with 110 columns that no such algorithm avoids: A Ω, then Aᵀ Q and A Q
for each power iteration, and the last Aᵀ Q. The error is ‖A − U S Vᵀ‖ / ‖A‖ in the Frobenius norm;
its optimum comes from the spectrum of AᵀA in float64. Orthogonality is ‖UᵀU − I‖ / (√k·u), the
worse one of U and V.
"""

from __future__ import annotations

from typing import Any

import torch
from sklearn.utils.extmath import randomized_svd as sklearn_randomized_svd
from torch import Tensor

import fastlr.linalg as la
from harness import Case, Session

ROWS, COLUMNS, RANK, OVERSAMPLE, POWER_ITERS = 8000, 4000, 100, 10, 2
WIDTH = RANK + OVERSAMPLE
PRODUCTS = 2 + 2 * POWER_ITERS
SIGNAL, NOISE = 500, 0.02
UNIT = torch.finfo(torch.float32).eps / 2


def slow_decay() -> Tensor:
    """Singular values near 1/√j for j ≤ 500, and Gaussian noise of spectral norm 0.02."""
    left = la.random_matrix(ROWS, SIGNAL, seed=1) / ROWS**0.5
    right = la.random_matrix(COLUMNS, SIGNAL, seed=2) / COLUMNS**0.5
    signal = left @ (right / torch.arange(1, SIGNAL + 1).sqrt()).T
    noise = la.random_matrix(ROWS, COLUMNS, seed=3)
    return signal + noise * (NOISE / (ROWS**0.5 + COLUMNS**0.5))


class Quality:
    """The columns that say how good a factorization of A is."""

    def __init__(self, A: Tensor) -> None:
        self.A = A.double()
        squares = torch.linalg.eigvalsh(self.A.T @ self.A)
        self.optimum = float(squares[:-RANK].sum().sqrt())
        self.norm = float(squares.sum().sqrt())

    def __call__(self, U: Any, S: Any, Vh: Any) -> dict[str, Any]:
        left, values, right = (torch.as_tensor(x).double() for x in (U, S, Vh))
        left, values, right = left[:, :RANK], values[:RANK], right[:RANK]
        error = float(torch.linalg.matrix_norm(self.A - (left * values) @ right))
        return {
            "error": f"{error / self.norm:.6f}",
            "above optimum": f"{error / self.optimum - 1:.2%}",
            "orthogonality": f"{max(_departure(left.T @ left), _departure(right @ right.T)):.2f}",
        }


def _departure(gram: Tensor) -> float:
    identity = torch.eye(len(gram), dtype=gram.dtype)
    return float(torch.linalg.matrix_norm(gram - identity)) / (len(gram) ** 0.5 * UNIT)


def main() -> None:
    with Session(__doc__) as session:
        A = slow_decay()
        as_numpy = A.numpy()
        quality = Quality(A)
        thin = la.random_matrix(COLUMNS, WIDTH, seed=4)
        tall = la.random_matrix(ROWS, WIDTH, seed=5)

        def products() -> None:
            for _ in range(PRODUCTS // 2):
                A @ thin
                A.T @ tall

        def fastlr(power_iters: Any) -> Any:
            return la.randomized_svd(
                A, RANK, oversample=OVERSAMPLE, power_iters=power_iters, seed=0
            )

        automatic = fastlr("auto").info

        def sklearn() -> Any:
            return sklearn_randomized_svd(
                as_numpy, RANK, n_oversamples=OVERSAMPLE, n_iter=POWER_ITERS, random_state=0
            )

        def lowrank() -> Any:
            torch.manual_seed(0)
            U, S, V = torch.svd_lowrank(A, q=WIDTH, niter=POWER_ITERS)
            return U, S, V.T

        def graded(result: Any) -> dict[str, Any]:
            return {"power iters": POWER_ITERS, **quality(*result)}

        cases = [
            Case("fastlr", lambda: fastlr(POWER_ITERS), graded),
            Case("sklearn randomized_svd", sklearn, graded),
            Case("torch.svd_lowrank", lowrank, graded),
            Case(
                'fastlr, power_iters="auto"',
                lambda: fastlr("auto"),
                lambda result: {"power iters": automatic.power_iters, **quality(*result)},
                floors=automatic.passes / PRODUCTS,
            ),
        ]
        session.table(
            f"randomized SVD, {ROWS} × {COLUMNS} float32, rank {RANK} + {OVERSAMPLE}",
            cases,
            floor=Case(f"floor: {PRODUCTS} products with {WIDTH} columns", products),
            note=f"A: singular values 1/√j for j ≤ {SIGNAL}, and noise of spectral norm {NOISE}; "
            f"optimal error {quality.optimum / quality.norm:.6f}. The floor of the last row is "
            f"{automatic.passes} products.",
        )

        wide = [matrix.double() for matrix in (A, thin, tall)]

        def double_products() -> None:
            for _ in range(PRODUCTS // 2):
                wide[0] @ wide[1]
                wide[0].T @ wide[2]

        def double(precision: Any) -> Any:
            return la.randomized_svd(
                wide[0],
                RANK,
                oversample=OVERSAMPLE,
                power_iters=POWER_ITERS,
                precision=precision,
                seed=0,
            )

        session.table(
            "the same in float64, the range finder in float32 or in float64",
            [
                Case(f'fastlr, precision="{name}"', lambda name=name: double(name), graded)
                for name in ("auto", "full")
            ],
            floor=Case(f"floor: {PRODUCTS} products in float64", double_products),
        )


if __name__ == "__main__":
    main()
