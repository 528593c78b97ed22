"""CP of a float32 tensor with noise, of general and of collinear components, beside TensorLy.

The floor is the products of one sweep of alternating least squares: the tensor times a Khatri-Rao
product of two factors, and times the third. `error` is ‖X − X̂‖ / ‖X‖, recomputed in double
precision; `least` is that of the components the tensor was made of. TensorLy makes a number of
sweeps from singular vectors, which its time includes, with its line search and without. Columns of
the factors have cosines of 0, with equal weights, or of 0.9.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import tensorly
import torch
from tensorly.decomposition import parafac
from torch import Tensor

import fastlr.linalg as la
from harness import Case, Session


def planted(n: int, rank: int, cosine: float, noise: float) -> tuple[Tensor, float]:
    """A tensor with relative noise, and the error of its components."""
    gram = torch.full((rank, rank), cosine) + (1 - cosine) * torch.eye(rank)
    mixing = torch.linalg.cholesky(gram).mT
    factors = [la.orthonormalize(la.random_matrix(n, rank, seed=k)) @ mixing for k in range(3)]
    X = la.CPTensor(torch.ones(rank), factors).full()
    N = la.random_matrix(n * n, n, seed=9).reshape(X.shape)
    N *= noise * X.norm() / N.norm()
    return X + N, float(N.norm() / (X + N).norm())


def main() -> None:
    warnings.simplefilter("ignore", la.ConvergenceWarning)
    tensorly.set_backend("pytorch")
    options = {"size": 200, "rank": 20, "noise": 0.05}
    with Session(__doc__, repeats=1, options=options) as session:
        n, rank = session.options.size, session.options.rank
        for cosine in (0.0, 0.9):
            X, least = planted(n, rank, cosine, session.options.noise)
            one, many = la.random_matrix(n, rank, seed=1), la.random_matrix(n * n, rank, seed=2)

            def products(X: Tensor = X, one: Tensor = one, many: Tensor = many) -> None:
                X.reshape(len(X), -1) @ many
                X.reshape(len(X), -1).mT @ one

            def error(weights: Tensor, factors: list[Tensor], X: Tensor = X) -> float:
                double = la.CPTensor(weights.double(), [F.double() for F in factors])
                return float((X - double.full()).norm() / X.double().norm())

            def peer(sweeps: int, line: bool, X: Tensor = X) -> Callable[[], Any]:
                # The line search needs the errors, which a tolerance of 0 leaves out.
                tol = 1e-12 if line else 0
                return lambda: parafac(X, rank, n_iter_max=sweeps, tol=tol, linesearch=line)

            cases = [
                Case(
                    "fastlr",
                    lambda X=X: la.cp(X, rank, seed=0),
                    lambda T, error=error, least=least: {
                        "error": error(*T),
                        "least": least,
                        "sweeps": T.info.sweeps,
                    },
                )
            ]
            cases += [
                Case(
                    f"TensorLy, {sweeps} sweeps{', line search' if line else ''}",
                    peer(sweeps, line),
                    lambda T, error=error, least=least, sweeps=sweeps: {
                        "error": error(*T),
                        "least": least,
                        "sweeps": sweeps,
                    },
                )
                for sweeps, line in ((25, False), (100, False), (100, True))
            ]
            title = f"{n}³, rank {rank}, cosines {cosine}, noise {session.options.noise}"
            session.table(title, cases, floor=Case("products of a sweep", products))


if __name__ == "__main__":
    main()
