"""Least squares: tall dense and sparse matrices, and tables of real data.

The floor of the dense table is twelve reads of A, each for A·x and its product with Aᵀ, and that
of the sparse one the products of as many iterations: what the sketch and its triangle come on top
of. `backward error` is the estimate of Karlson and Waldén, relative, with columns of unit length:
exact for the dense table, by the triangle of A for the sparse one.

    python benchmarks/bench_lstsq.py --tables folder_of_csv_gz
"""

from __future__ import annotations

import gzip
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse
import scipy.sparse.linalg
import torch
from torch import Tensor

import fastlr.linalg as la
from harness import Case, Session, seconds_of

ITERATIONS = 12


def backward_error(triangle: Tensor, gradient: Tensor, x: Tensor, rest: float, size: float) -> str:
    """From R with RᵀR = AᵀA, Aᵀr, x, ‖r‖ and ‖b‖."""
    lengths = triangle.norm(dim=0)
    scaled, parts, x = triangle / lengths, gradient / lengths, x * lengths
    theta = float(scaled.norm()) / size
    growth = float(np.hypot(1, theta * float(x.norm())))
    _, values, vectors = torch.linalg.svd(scaled)
    weights = torch.hypot(values, torch.full_like(values, theta * rest / growth))
    return f"{float((vectors @ parts / weights).norm()) / (size * growth):.1e}"


def dense(session: Session, m: int, n: int) -> None:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    # Singular values from 1 to 1e-8 in random directions, √m times that.
    A = normal(m, n) @ (
        torch.logspace(0, -8, n).double()[:, None] * torch.linalg.qr(normal(n, n))[0]
    )
    b = A @ normal(n)
    b += 0.1 * float(b.norm()) / m**0.5 * normal(m)
    triangle = torch.linalg.qr(A, mode="r")[1]

    def quality(x: Any) -> dict[str, Any]:
        x = torch.as_tensor(x).reshape(n)
        r = b - A @ x
        found = backward_error(triangle, A.T @ r, x, float(r.norm()), float(b.norm()))
        return {"backward error": found}

    def reads() -> None:
        operator = la.LinearOperator(
            (m, n), lambda X: A @ X, lambda Y: A.T @ Y, dtype=torch.float64
        )
        v = torch.ones(n, 1, dtype=torch.float64)
        for _ in range(ITERATIONS):
            v = operator.rmatmat(operator.matmat(v))
            v /= v.norm()

    def solve(**options: Any) -> Callable[[], Tensor]:
        return lambda: la.lstsq(A, b, seed=0, **options).x

    def by_qr() -> Tensor:
        return torch.linalg.lstsq(A, b[:, None], driver="gels")[0]

    cases = [
        Case("fastlr", solve(), quality),
        *(
            Case(f"fastlr, {name}", solve(method=name), quality)
            for name in ("precondition", "iterative", "direct")
        ),
        Case("AᵀA", lambda: A.T @ A),
        Case(
            "torch lstsq, QR", lambda: torch.linalg.lstsq(A, b[:, None], driver="gels")[0], quality
        ),
        Case("scipy lstsq, SVD", lambda: scipy.linalg.lstsq(A.numpy(), b.numpy())[0], quality),
    ]
    title = f"{m:,} × {n} float64, condition number 1e8"
    session.table(title, cases, floor=Case(f"floor: {ITERATIONS} times A·x and Aᵀ·y", reads))


def sparse_problem(m: int, n: int) -> tuple[Any, Any]:
    """Eight random entries side by side in a row, times second differences of n unknowns: ten
    entries a row, and the condition number of the differences, 4·n²/π², which no scaling of the
    columns undoes."""
    rng = np.random.default_rng(0)
    columns = rng.integers(0, n - 7, m)[:, None] + np.arange(8)
    entries = rng.standard_normal(8 * m)
    rows = scipy.sparse.csr_array((entries, columns.ravel(), np.arange(0, 8 * m + 1, 8)), (m, n))
    ones = np.ones(n)
    differences = scipy.sparse.diags_array([ones[1:], -2 * ones, ones[1:]], offsets=[-1, 0, 1])
    A = (rows @ differences).tocsr()
    A.sort_indices()
    return A, A @ rng.standard_normal(n) + 0.1 * rng.standard_normal(m)


def sparse(session: Session, m: int, n: int, limit: int) -> None:
    A, b = sparse_problem(m, n)
    gram = torch.from_numpy((A.T @ A).toarray())
    # The triangle of A by the Gram matrix loses what is below 1e-8: fine for an estimate.
    values, vectors = torch.linalg.eigh(gram)
    triangle = values.clamp_min(0).sqrt()[:, None] * vectors.T

    def quality(x: Any) -> dict[str, Any]:
        r = b - A @ x
        found = backward_error(
            triangle,
            torch.from_numpy(A.T @ r),
            torch.from_numpy(x),
            float(np.linalg.norm(r)),
            float(np.linalg.norm(b)),
        )
        return {"backward error": found}

    def products() -> None:
        v = np.ones(n)
        for _ in range(ITERATIONS):
            v = A.T @ (A @ v)
            v /= np.linalg.norm(v)

    # Of LSQR, with which it ends at a backward error of that size.
    tol = 1e-12

    def peer(function: Any, **options: Any) -> Callable[[], Any]:
        return lambda: function(A, b, **options)[0]

    cases = [
        Case("fastlr", lambda: la.lstsq(A, b, seed=0).x, quality),
        Case(
            "scipy lsqr",
            peer(scipy.sparse.linalg.lsqr, atol=tol, btol=tol, iter_lim=limit),
            quality,
        ),
        Case(
            "scipy lsmr",
            peer(scipy.sparse.linalg.lsmr, atol=tol, btol=tol, conlim=0, maxiter=limit),
            quality,
        ),
    ]
    title = f"sparse {m:,} × {n}, ten entries a row, condition number {4 * n**2 / np.pi**2:.1e}"
    session.table(title, cases, floor=Case(f"floor: {ITERATIONS} times A·x and Aᵀ·y", products))


def tables(folder: Path, repeats: int) -> None:
    """Linear regression on the squares and products of the columns, all standardised."""
    print("\n| table | matrix | condition | numpy | fastlr | R² | backward error |")
    print("| ----- | -----: | --------: | ----: | -----: | -: | -------------: |")
    for path in sorted(folder.glob("*.csv.gz")):
        with gzip.open(path) as file:
            data = np.loadtxt(file, delimiter=",")
        print(regression(path.name.split(".")[0], data[:, :-1], data[:, -1], repeats))


def regression(name: str, inputs: Any, target: Any, repeats: int) -> str:
    """A row of the table."""
    inputs = (inputs - inputs.mean(0)) / np.where(inputs.std(0) > 0, inputs.std(0), 1)
    i, j = np.triu_indices(inputs.shape[1])
    A = np.column_stack([np.ones(len(inputs)), inputs, inputs[:, i] * inputs[:, j]])
    b = (target - target.mean()) / target.std()
    result = la.lstsq(A, b, seed=0)
    explained = 1 - float(np.sum(result.residual**2)) / len(b)
    peer = seconds_of(lambda: np.linalg.lstsq(A, b, rcond=None), repeats)
    own = seconds_of(lambda: la.lstsq(A, b, seed=0), repeats)
    return (
        f"| {name} | {A.shape[0]:,} × {A.shape[1]} | {result.info.condition:.0e} | "
        f"{peer * 1e3:.0f} ms | {own * 1e3:.0f} ms | {explained:.4f} | "
        f"{result.info.backward_error:.1e} |"
    )


def main() -> None:
    with Session(__doc__, repeats=3, options={"tables": "", "limit": 20000}) as session:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            dense(session, 200_000, 500)
            sparse(session, 1_000_000, 2000, session.options.limit)
        if session.options.tables:
            tables(Path(session.options.tables), session.options.repeats)


if __name__ == "__main__":
    main()
