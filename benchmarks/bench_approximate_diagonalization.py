"""HiPPO matrices and Jordan blocks, perturbed and diagonalized, against the plain eigenproblem.

Condition is that of V, error ‖A − V·diag(λ)·V⁻¹‖₂ / ‖A‖₂; medians of nine seeds. The floor is
`torch.linalg.eig`, whose V has no inverse where the condition number is above 1e16 (and which is
cheap here: these matrices are triangular).
"""

from __future__ import annotations

import statistics
from typing import Any

import torch
from torch import Tensor

import fastlr.linalg as la
from harness import Case, Session

SIZES = [16, 64, 256]
EPS = [1e-10, 1e-8, 1e-6, 1e-4, 1e-2]
SEEDS = range(9)


def legs(n: int) -> Tensor:
    """HiPPO with the scaled Legendre measure."""
    p = torch.arange(1, 2 * n, 2, dtype=torch.float64).sqrt()
    return torch.arange(n).diag() - torch.outer(p, p).tril()


def jordan(n: int) -> Tensor:
    return torch.ones(n - 1, dtype=torch.float64).diag(1)


def plain(A: Tensor, V: Tensor) -> dict[str, Any]:
    return {"condition": f"{float(torch.linalg.cond(V)):.1e}"}


def perturbed(A: Tensor, eps: float) -> dict[str, Any]:
    results = [la.perturb_then_diagonalize(A, eps, seed=seed) for seed in SEEDS]
    condition = statistics.median(result.info.condition for result in results)
    error = statistics.median(result.info.backward_error for result in results)
    residual = statistics.median(result.info.residual for result in results)
    right = max(float(result.eigenvalues.real.max()) for result in results)
    return {
        "condition": f"{condition:.1e}",
        "error": f"{error:.2e}",
        "residual": f"{residual:.0e}",
        "largest real part": f"{right:.2f}",
    }


def main() -> None:
    with Session(__doc__) as session:
        for name, make in (("HiPPO-LegS", legs), ("Jordan block", jordan)):
            for n in SIZES:
                A = make(n)
                cases = [
                    Case(
                        f"eps = {eps:.0e}",
                        lambda A=A, eps=eps: la.perturb_then_diagonalize(A, eps, seed=0),
                        lambda _, A=A, eps=eps: perturbed(A, eps),
                    )
                    for eps in EPS
                ]
                floor = Case(
                    "torch.linalg.eig",
                    lambda A=A: torch.linalg.eig(A),
                    lambda result, A=A: plain(A, result.eigenvectors),
                )
                session.table(f"{name}, n = {n}", cases, floor=floor)


if __name__ == "__main__":
    main()
