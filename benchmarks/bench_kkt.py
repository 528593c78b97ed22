"""Equality-constrained Newton systems: sketches to a tolerance, and a factorization.

The floor is the factorization, `torch.linalg.solve` of the dense matrix. SciPy's MINRES gets the
same system and tolerance, with products of the same matrices.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse.linalg
import torch
from torch import Tensor

import fastlr.linalg as la
from harness import Case, Session

N, M = 2000, 100
SPECTRA = {
    "1 to 10": torch.linspace(1, 10, N),
    "1 to 10, 20 outliers up to 1e4": torch.cat(
        [torch.linspace(1, 10, N - 20), torch.logspace(1, 4, 20)]
    ),
    "1e-4 to 1, logarithmic": torch.logspace(-4, 0, N),
}


def system(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """H with these eigenvalues, a Gaussian A, a right-hand side; draws unlike the solver's."""
    Q = torch.linalg.qr(la.random_matrix(N, N, seed=10, dtype=torch.float64)).Q
    H = (Q * values.double()) @ Q.T
    A = la.random_matrix(M, N, seed=11, dtype=torch.float64) / N**0.5
    return (H + H.T) / 2, A, la.random_matrix(N + M, 1, seed=12, dtype=torch.float64)[:, 0]


def minres(H: Tensor, A: Tensor, b: Tensor, tol: float) -> Any:
    """SciPy's solution and its number of products."""
    products = 0

    def product(z: Any) -> Any:
        nonlocal products
        products += 1
        x, multipliers = torch.from_numpy(z).split([N, M])
        return torch.cat([H @ x + A.T @ multipliers, A @ x]).numpy()

    K = scipy.sparse.linalg.LinearOperator((N + M, N + M), product, dtype=np.float64)
    z, _ = scipy.sparse.linalg.minres(K, b.numpy(), rtol=tol, maxiter=5 * N)
    return torch.from_numpy(z), products


def systems(session: Session) -> None:
    for name, values in SPECTRA.items():
        H, A, b = system(values)
        K = torch.cat([torch.cat([H, A.T], 1), torch.cat([A, torch.zeros(M, M).double()], 1)])
        for tol in (1e-1, 1e-4, 1e-8):

            def residual(z: Tensor, K: Tensor = K, b: Tensor = b) -> str:
                return f"{float((b - K @ z).norm() / b.norm()):.1e}"

            def of_fastlr(solution: Any, residual: Any = residual) -> dict[str, Any]:
                return {
                    "residual": residual(torch.cat(tuple(solution))),
                    "products": solution.info.products,
                    "method": solution.info.method,
                }

            def of_scipy(found: Any, residual: Any = residual) -> dict[str, Any]:
                return {"residual": residual(found[0]), "products": found[1], "method": "MINRES"}

            session.table(
                f"n = {N}, m = {M}, eigenvalues {name}, tolerance {tol:g}",
                [
                    Case(
                        "fastlr",
                        lambda H=H, A=A, b=b, tol=tol: la.solve_kkt(
                            H, A, b[:N], b[N:], tol=tol, seed=0
                        ),
                        of_fastlr,
                    ),
                    Case("SciPy", lambda H=H, A=A, b=b, tol=tol: minres(H, A, b, tol), of_scipy),
                ],
                floor=Case("torch.linalg.solve", lambda K=K, b=b: torch.linalg.solve(K, b)),
            )


def main() -> None:
    with Session(__doc__) as session:
        systems(session)


if __name__ == "__main__":
    main()
