"""Products of Householder reflectors and their gradient, against torch's and other packages'.

All take lower trapezoidal vectors, m × k, and return the first k columns of the product. The floor
is two matrix products for each block of 64 reflectors forward and six backward, over the rows and
columns that it changes. `orthogonality` is ‖QᵀQ − I‖₂ / (√k·u).

The second table for 512 rows is of the weight of a parametrized layer and its gradient; geotorch's
is an exponential of a skew matrix. It leaves much memory behind to be freed in the time of what
comes next, so it comes last, before torch's.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import fastlr.linalg as la
from fastlr.nn.parametrize import orthogonal
from harness import Case, Session

SHAPES = [(512, 64), (512, 256), (512, 512), (2048, 256), (2048, 1024), (2048, 2048)]
WIDTH = 64


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


def parametrized(m: int, k: int) -> list[Case]:
    def case(name: str, parametrize: Callable[[nn.Module, str], object]) -> Case:
        layer = nn.Linear(k, m, bias=False)
        parametrize(layer, "weight")
        weights = la.random_matrix(m, k, seed=2)

        def run() -> Tensor:
            Q: Tensor = layer.weight
            torch.autograd.grad(Q, list(layer.parameters()), weights)
            return Q

        return Case(name, run, orthogonality)

    by_torch = partial(nn.utils.parametrizations.orthogonal, orthogonal_map="householder")
    cases = [
        case("torch.nn.utils.parametrizations.orthogonal", by_torch),
        case("fastlr.nn.parametrize.orthogonal", orthogonal),
    ]
    if importlib.util.find_spec("geotorch"):
        cases.append(case("geotorch.orthogonal", importlib.import_module("geotorch").orthogonal))
    return cases


def main() -> None:
    with Session(__doc__) as session:
        for m, k in SHAPES:
            V = la.random_matrix(m, k, seed=1).tril().requires_grad_()
            weights = la.random_matrix(m, k, seed=2)

            def both(
                product: Callable[[Tensor], Tensor], V: Tensor = V, weights: Tensor = weights
            ) -> Tensor:
                Q = product(V)
                torch.autograd.grad(Q, V, weights)
                return Q

            def case(
                name: str, product: Callable[[Tensor], Tensor], both: Callable[..., Tensor] = both
            ) -> Case:
                return Case(name, lambda: both(product), orthogonality)

            cases = [
                case("fastlr, lower", partial(la.householder_product, lower=True)),
                case("fastlr, all of V", la.householder_product),
                case("torch.linalg.householder_product", by_torch),
            ]
            if importlib.util.find_spec("torch_householder"):
                peer = importlib.import_module("torch_householder")
                cases.append(case("torch_householder_orgqr", peer.torch_householder_orgqr))
            session.table(
                f"householder_product {m} × {k} float32, forward and backward",
                cases,
                floor=Case("floor: the products", lambda V=V: products(V.detach())),
            )
            if m == 512:  # geotorch takes half a minute for 2048
                session.table(
                    f"an orthogonal weight {m} × {k} and its gradient", parametrized(m, k)
                )


if __name__ == "__main__":
    main()
