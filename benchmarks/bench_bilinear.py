"""Self-calibration: gains and signals at once.

The floor is the QR of the rows that are left after one group of unknowns is eliminated, made
beforehand, and where it is the signals the QR of each A. The peers build all of M and solve the
same problems by LAPACK: least squares with the constraint as a row, and the last singular vector by
an SVD. `error` is that of d against the truth, without noise.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import fastlr.linalg as la
from harness import Case, Session

# Model, measurements, sensors and unknowns of a signal, dtype, and whether M is built.
PROBLEMS = [
    ("repeated", 4, 400, 100, torch.float64, True),
    ("repeated", 4, 1000, 200, torch.complex128, False),
    ("diverse", 4, 2000, 25, torch.float64, False),
    ("diverse", 6, 400, 150, torch.float64, False),
    ("snapshots", 6, 400, 150, torch.float64, False),
]


def problem(model: str, p: int, m: int, n: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """A, Y and d, with gains around 1."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=dtype, generator=generator)

    A = normal(m, n) if model == "snapshots" else normal(p, m, n)
    x = normal(n) if model == "repeated" else normal(p, n)
    d = 1 + 0.3 * normal(m)
    Y = A @ x if model == "repeated" else (A @ x[..., None])[..., 0]
    return A, d * Y, d


def whole(A: Tensor, Y: Tensor) -> Tensor:
    """M of the model "repeated"."""
    return torch.cat([torch.cat([torch.diag(y), -a], 1) for y, a in zip(Y, A, strict=True)])


def dense_lstsq(A: Tensor, Y: Tensor) -> Tensor:
    M, m = whole(A, Y), Y.shape[1]
    row = torch.cat([M.new_full((m,), 1 / m), M.new_zeros(A.shape[2])])
    right = M.new_zeros(len(M) + 1, 1)
    right[-1] = 1
    return 1 / torch.linalg.lstsq(torch.cat([M, row[None]]), right, driver="gels").solution[:m, 0]


def dense_spectral(A: Tensor, Y: Tensor) -> Tensor:
    return 1 / torch.linalg.svd(whole(A, Y), full_matrices=False)[2][-1, : Y.shape[1]].conj()


def compared(
    session: Session, model: str, p: int, m: int, n: int, dtype: torch.dtype, dense: bool
) -> None:
    A, Y, d = problem(model, p, m, n, dtype)
    unknowns = n if model == "repeated" else p * n
    gains = model == "repeated" or unknowns <= m
    rows = torch.randn(*(((p - 1) * m, unknowns) if gains else (p * (m - n), m)), dtype=dtype)

    def factorizations() -> None:
        if not gains:
            for design in A[None] if model == "snapshots" else A:
                torch.linalg.qr(design, mode="complete")
        torch.linalg.qr(rows, mode="r")

    def error(result: Any) -> dict[str, Any]:
        found = result if isinstance(result, Tensor) else result.d
        ratio = found / d
        return {"error": f"{float((ratio / ratio.mean() - 1).abs().max()):.0e}"}

    def solve(method: str) -> Case:
        return Case(
            f"fastlr, {method}",
            lambda: la.bilinear_lstsq(A, Y, model=model, method=method),
            error,
        )

    cases = [solve("lstsq"), solve("spectral")]
    if dense:
        cases += [
            Case("all of M, lstsq", lambda: dense_lstsq(A, Y), error),
            Case("all of M, SVD", lambda: dense_spectral(A, Y), error),
        ]
    session.table(
        f"{model}: {p} × {m} measurements, signals of {n}, {str(dtype).removeprefix('torch.')}",
        cases,
        floor=Case("floor: QRs", factorizations),
    )


def main() -> None:
    with Session(__doc__, repeats=5) as session:
        for case in PROBLEMS:
            compared(session, *case)


if __name__ == "__main__":
    main()
