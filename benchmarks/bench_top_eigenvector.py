"""The leading eigenvector of a stream of rows.

The floor is one product with a vector and one with its image, in blocks of 512 rows in float64.
`1 - corr` is what is missing of a correlation of 1 with the eigenvector of AᵀA.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import fastlr.linalg as la
from harness import Case, Session

ROWS, COLUMNS = 40_000, 256


def spiked(gap: float) -> Tensor:
    """Gaussian rows with λ₁/λ₂ near `gap`."""
    A = la.random_matrix(ROWS, COLUMNS, seed=0)
    v = la.random_matrix(COLUMNS, 1, seed=1)
    v /= v.norm()
    return A + (gap**0.5 - 1) * (A @ v) @ v.T


def streams(session: Session) -> None:
    for gap in (2.0, 8.0, 32.0):
        A = spiked(gap)
        wide = A.double()
        values, vectors = torch.linalg.eigh(wide.T @ wide)
        start = la.random_matrix(COLUMNS, 1, seed=2, dtype=torch.float64)

        def floor(A: Tensor = A, v: Tensor = start) -> None:
            for part in A.split(512):
                rows = part.double()
                rows.T @ (rows @ v)

        def quality(found: Any, top: Tensor = vectors[:, -1]) -> dict[str, Any]:
            return {"1 - corr": f"{1 - float((found.vector.double() @ top).abs()):.1e}"}

        session.table(
            f"{ROWS:,} × {COLUMNS} float32, λ₁/λ₂ = {float(values[-1] / values[-2]):.2f}",
            [
                Case(
                    f"fastlr, {method}",
                    lambda A=A, method=method: la.top_eigenvector_stream(A, method=method, seed=0),
                    quality,
                )
                for method in ("random_order", "oja")
            ],
            floor=Case("floor", floor),
        )


def main() -> None:
    with Session(__doc__) as session:
        streams(session)


if __name__ == "__main__":
    main()
