"""Matrix sensing: a matrix of low rank from Gaussian measurements.

The floor is the products with the operator that the iterations of `scaled_gd` cannot avoid. The
peer solves least squares problems for U and V in turns, from the same spectral start, until the
residual is below the same tolerance, or 200 times. `error` is ‖X − truth‖_F / ‖truth‖_F; the
residual is brought down to 1e-9.

With --plot FILE also the residuals of plain and of scaled gradient descent over the iterations, as
an image: right rank and beyond, symmetric and asymmetric, several starts, rebalanced or not.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

import fastlr.linalg as la
from harness import Case, Session

TOLERANCE = 1e-9
# Order, rank of the truth, measurements, κ, rank that is sought, and whether plain descent runs.
PROBLEMS = [
    (40, 3, 900, 1.0, 3, True),
    (40, 3, 900, 1e3, 3, False),
    (40, 3, 1600, 1.0, 6, False),
    (80, 4, 2500, 10.0, 4, False),
]


class Problem(NamedTuple):
    A: Tensor
    y: Tensor
    X: Tensor


def problem(
    n: int, rank: int, p: int, kappa: float, *, symmetric: bool = False, seed: int = 0
) -> Problem:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    U = torch.linalg.qr(normal(n, rank))[0]
    V = U if symmetric else torch.linalg.qr(normal(n, rank))[0]
    X = U * torch.logspace(0, -math.log10(kappa), rank, dtype=torch.float64) @ V.mT
    A = normal(p, n * n) / math.sqrt(p)
    return Problem(A, A @ X.ravel(), X)


def alternating(given: Problem, rank: int) -> tuple[Tensor, Tensor]:
    """Least squares for U, then V, and so on."""
    p, (m, n) = len(given.y), given.X.shape
    stack = given.A.reshape(p, m, n)
    V = torch.linalg.svd((given.A.mT @ given.y).reshape(m, n))[2][:rank].mT
    for _ in range(200):
        U = torch.linalg.lstsq((stack @ V).reshape(p, -1), given.y[:, None]).solution
        U = torch.linalg.qr(U.reshape(m, rank))[0]
        design = (stack.mT @ U).reshape(p, -1)
        solution = torch.linalg.lstsq(design, given.y[:, None]).solution
        V = solution.reshape(n, rank)
        if (design @ solution - given.y[:, None]).norm() <= TOLERANCE * given.y.norm():
            break
    return U, V


def compared(
    session: Session, n: int, rank: int, p: int, kappa: float, sought: int, plain: bool
) -> None:
    given = problem(n, rank, p, kappa)

    def quality(result: Any) -> dict[str, Any]:
        U, V = result
        columns = {"error": f"{float((U @ V.mT - given.X).norm() / given.X.norm()):.0e}"}
        if isinstance(result, la.SensingResult):
            columns |= {"iterations": str(result.info.iterations)}
        return columns

    def solve(method: str) -> Case:
        def run() -> Any:
            return la.matrix_sensing(
                given.A, given.y, (n, n), sought, method=method, tol=TOLERANCE, seed=0
            )

        return Case(f"fastlr, {method}", run, quality)

    iterations = solve("scaled_gd").run().info.iterations
    two = torch.ones(n * n, 2, dtype=torch.float64)

    def products() -> None:
        for _ in range(iterations):
            given.A @ two
            given.A @ two[:, :1]
            given.A.mT @ given.y[:, None]

    cases = [solve("scaled_gd")] + [solve("gd")] * plain
    cases.append(Case("alternating least squares", lambda: alternating(given, sought), quality))
    session.table(
        f"{n} × {n} of rank {rank}, κ = {kappa:g}, rank {sought} sought, {p} measurements",
        cases,
        floor=Case("floor: products", products),
    )


def residuals(n: int, rank: int, most: int, *, kappa: float = 1.0, **options: Any) -> Any:
    given = problem(n, 2, 600, kappa, symmetric=options.get("parameterization") == "symmetric")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", la.ConvergenceWarning)
        return la.matrix_sensing(
            given.A, given.y, (n, n), rank, max_iters=most, seed=0, **options
        ).info.history


def plot(path: str) -> None:
    """Four panels, the last one for `scaled_gd`."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(9, 6.6), layout="constrained")
    gd: dict[str, Any] = {"method": "gd"}
    symmetric = gd | {"parameterization": "symmetric"}

    panel = axes[0, 0]
    panel.set_title("gd, symmetric", fontsize=10)
    for rank, scale in ((2, 0.1), (4, 0.1), (4, 0.01)):
        history = residuals(12, rank, 10000, init_scale=scale, **symmetric)
        panel.loglog(history, label=f"rank {rank}, α = {scale:g}")
    panel.loglog([100, 10000], [2e-2, 2e-4], "k:", label="1/T")

    panel = axes[0, 1]
    panel.set_title("gd, asymmetric, rank 4", fontsize=10)
    for scale in (0.4, 0.3, 0.2, 0.1):
        history = residuals(12, 4, 3000, init_scale=scale, **gd)
        panel.semilogy(history, label=f"α = {scale:g}")
    panel.semilogy(residuals(12, 2, 3000, **gd), "k", linewidth=0.8, label="rank 2, α = 0.1")

    panel = axes[1, 0]
    panel.set_title("gd, asymmetric, rank 4, rebalanced", fontsize=10)
    for scale in (0.4, 0.1, 0.01, 0.0001):
        history = residuals(12, 4, 400, init_scale=scale, rebalance=True, **gd)
        panel.semilogy(history, label=f"α = {scale:g}")
    panel.semilogy(residuals(12, 2, 400, **gd), "k", linewidth=0.8, label="rank 2, α = 0.1")

    panel = axes[1, 1]
    panel.set_title("scaled_gd (and gd, dotted), rank 2", fontsize=10)
    for index, kappa in enumerate((1.0, 10.0, 1e3)):
        color = f"C{index}"
        panel.semilogy(residuals(12, 2, 400, kappa=kappa), color, label=f"κ = {kappa:g}")
        panel.semilogy(residuals(12, 2, 400, kappa=kappa, **gd), color, linestyle=":")

    for panel in axes.flat:
        panel.set_xlabel("iterations")
        panel.set_ylabel("relative residual")
        panel.set_ylim(1e-16, 3)
        panel.legend(fontsize=8)
    # Room for its legend above the curves.
    axes[0, 1].set_ylim(1e-16, 1e5)
    axes[0, 1].legend(fontsize=8, loc="upper right", ncols=2)
    axes[0, 0].set_ylim(1e-5, 3)
    figure.savefig(path, dpi=110)


def main() -> None:
    with Session(__doc__, repeats=5, options={"plot": ""}) as session:
        if session.options.plot:
            plot(session.options.plot)
            return
        for case in PROBLEMS:
            compared(session, *case)


if __name__ == "__main__":
    main()
