"""Orthonormal bases: CholeskyQR with verification against Householder QR.

The floor is 4 m k² flops as two Gram matrices YᵀY and two products Y R. Orthogonality is
‖QᵀQ − I‖ / (√k·u) in float64.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import fastlr.linalg as la
from harness import Case, Session

SHAPES = [(8000, 110), (100000, 64), (4000, 600)]
UNIT = torch.finfo(torch.float32).eps / 2


def well_conditioned(rows: int, columns: int) -> Tensor:
    return la.random_matrix(rows, columns, seed=1)


def ill_conditioned(rows: int, columns: int) -> Tensor:
    """Condition number 10⁶: beyond CholeskyQR2 in float32, within its shifted third pass."""
    left = torch.linalg.qr(la.random_matrix(rows, columns, seed=1, dtype=torch.float64))[0]
    right = torch.linalg.qr(la.random_matrix(columns, columns, seed=2, dtype=torch.float64))[0]
    return ((left * torch.logspace(0, -6, columns, dtype=torch.float64)) @ right).float()


def orthogonality(Q: Tensor) -> dict[str, Any]:
    wide = Q.double()
    identity = torch.eye(Q.shape[1], dtype=torch.float64)
    departure = float(torch.linalg.matrix_norm(wide.T @ wide - identity))
    return {"orthogonality": f"{departure / (Q.shape[1] ** 0.5 * UNIT):.2f}"}


def main() -> None:
    with Session(__doc__) as session:
        for rows, columns in SHAPES:
            for title, make in (("", well_conditioned), (", condition 10⁶", ill_conditioned)):
                Y = make(rows, columns)
                square = la.random_matrix(columns, columns, seed=3)

                def products(Y: Tensor = Y, square: Tensor = square) -> None:
                    for _ in range(2):
                        Y.T @ Y
                        Y @ square

                cases = [
                    Case("fastlr orthonormalize", lambda Y=Y: la.orthonormalize(Y), orthogonality),
                    Case(
                        "torch.linalg.qr",
                        lambda Y=Y: torch.linalg.qr(Y),
                        lambda result: orthogonality(result.Q),
                    ),
                ]
                session.table(
                    f"orthonormalize {rows} × {columns} float32{title}",
                    cases,
                    floor=Case("floor: two Gram matrices and two products", products),
                )


if __name__ == "__main__":
    main()
