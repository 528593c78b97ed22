"""Products of Householder reflectors and their gradient, against torch's.

All take lower trapezoidal vectors, m × k, and return the first k columns of the product. The floor
is two matrix products for each block of 32 reflectors forward and six backward, over the rows and
columns that it changes. `orthogonality` is ‖QᵀQ − I‖₂ / (√k·u).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import fastlr.linalg as la
from harness import Case, Session

SHAPES = [(512, 64), (512, 256), (512, 512), (2048, 256), (2048, 1024)]
WIDTH = 32


def by_torch(V: Tensor) -> Tensor:
    """LAPACK's form: a diagonal of ones, and scales."""
    unit = V.tril(-1) + torch.eye(*V.shape, dtype=V.dtype)
    return torch.linalg.householder_product(unit, 2 / unit.square().sum(0))


def products(V: Tensor) -> None:
    X = torch.zeros_like(V)
    for first in range(0, V.shape[1], WIDTH):
        U, part = V[first:, first : first + WIDTH], X[first:, first:]
        for backward in (False, True, True):
            Z = U.T @ part
            part.addmm_(U, Z)
            if backward:
                part @ Z.T


def orthogonality(Q: Tensor) -> dict[str, Any]:
    wide = Q.detach().double()
    eye = torch.eye(Q.shape[1], dtype=torch.float64)
    departure = float(torch.linalg.matrix_norm(wide.T @ wide - eye, 2))
    return {"orthogonality": f"{departure / (Q.shape[1] ** 0.5 * 2**-24):.2f}"}


def main() -> None:
    with Session(__doc__) as session:
        for m, k in SHAPES:
            V = la.random_matrix(m, k, seed=1).tril().requires_grad_()
            weights = la.random_matrix(m, k, seed=2)

            def both(
                product: Callable[[Tensor], Tensor], V: Tensor = V, weights: Tensor = weights
            ) -> Tensor:
                Q = product(V)
                torch.autograd.grad((Q * weights).sum(), V)
                return Q

            session.table(
                f"householder_product {m} × {k} float32, forward and backward",
                [
                    Case(
                        "fastlr, lower",
                        lambda both=both: both(partial(la.householder_product, lower=True)),
                        orthogonality,
                    ),
                    Case(
                        "fastlr, all of V",
                        lambda both=both: both(la.householder_product),
                        orthogonality,
                    ),
                    Case(
                        "torch.linalg.householder_product",
                        lambda both=both: both(by_torch),
                        orthogonality,
                    ),
                ],
                floor=Case("floor: the products", lambda V=V: products(V.detach())),
            )


if __name__ == "__main__":
    main()
