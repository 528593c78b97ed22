"""QR with column pivoting, all columns, float64.

The floor is the flops of R and Q, 4·n²·(m − n/3), as products of the sizes of the blocks, 64
columns each. `error` is ‖A[:, pivots] − Q·R‖ / (u·‖A‖) in the Frobenius norm, `orthogonality`
‖QᵀQ − I‖₂ / (√k·u), and `σ / r` the largest σ_i(A) / |r_ii|: what the diagonal has missed of a
singular value.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

import fastlr.linalg as la
from harness import Case, Session

UNIT = 2.0**-53


def decaying(m: int, n: int) -> Tensor:
    """Gaussian, with columns that get smaller: σ falls to 1e-6."""
    A = la.random_matrix(m, n, seed=1, dtype=torch.float64)
    mixed = la.random_matrix(n, n, seed=2, dtype=torch.float64) / n**0.5
    return A @ (torch.logspace(0, -6, n, dtype=torch.float64)[:, None] * mixed)


def main() -> None:
    with Session(__doc__, repeats=3, options={"size": 4000}) as session:
        size = session.options.size
        for m, n in ((size, size), (50 * size, size // 20)):
            A = decaying(m, n)
            as_numpy, values = A.numpy(), torch.linalg.svdvals(A)

            def graded(
                Q: Any, R: Any, pivots: Any, A: Tensor = A, values: Tensor = values
            ) -> dict[str, Any]:
                Q, R, pivots = (torch.as_tensor(np.asarray(part)) for part in (Q, R, pivots))
                k = Q.shape[1]
                error = torch.linalg.matrix_norm(A[:, pivots.long()] - Q @ R)
                # Short sums: one of 200,000 squares errs by more than what is measured.
                gram = torch.stack([part.T @ part for part in Q.split(500)]).sum(0)
                departure = gram - torch.eye(k, dtype=Q.dtype)
                return {
                    "error": f"{float(error / torch.linalg.matrix_norm(A)) / UNIT:.1f}",
                    "orthogonality": f"{float(spectral(departure)) / (k**0.5 * UNIT):.1f}",
                    "σ / r": f"{float((values / R.diagonal().abs()).max()):.2f}",
                }

            left = la.random_matrix(64, m, seed=3, dtype=torch.float64)
            floor = 4 * n * n * (m - n / 3) / (4 * 64 * m * n)

            def products(A: Tensor = A, left: Tensor = left, count: float = floor) -> None:
                for _ in range(round(count)):
                    left.T @ (left @ A)

            session.table(
                f"{m:,} × {n:,} float64",
                [
                    Case("fastlr", lambda A=A: la.pivoted_qr(A, seed=0), lambda r: graded(*r)),
                    Case(
                        "scipy.linalg.qr, pivoting=True",
                        lambda A=as_numpy: scipy.linalg.qr(A, mode="economic", pivoting=True),
                        lambda r: graded(*r),
                    ),
                    Case("torch.linalg.qr, no pivots", lambda A=A: torch.linalg.qr(A)),
                ],
                floor=Case("floor: products with 64 columns", products),
            )


def spectral(symmetric: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(symmetric).abs().max()


if __name__ == "__main__":
    main()
