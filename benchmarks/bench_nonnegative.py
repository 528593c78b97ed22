"""Nonnegative factorizations: the time to come within 1 % of the best objective that is found.

Peers are scikit-learn's coordinate descent, from the same random factors and from its own singular
vectors. Each gets as many iterations as it needs (found beforehand) and no more; the start counts.
The floor is the two products of one iteration.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse
import sklearn.decomposition
import torch

import fastlr.linalg as la
from harness import Case, Session

RANK = 20
# The best of so many iterations of either, and within what of it.
LONG, WITHIN = 400, 1.01

Run = Callable[[int], tuple[Any, Any]]


def planted(dtype: Any) -> Any:
    """5000 × 1000: twenty sparse nonnegative factors, and noise."""
    rng = np.random.default_rng(0)
    W = rng.random((5000, RANK)) * (rng.random((5000, RANK)) < 0.3)
    H = rng.random((RANK, 1000)) * (rng.random((RANK, 1000)) < 0.3)
    return (W @ H + 0.1 * rng.random((5000, 1000))).astype(dtype)


def documents() -> Any:
    """20000 documents of 100 words of 8000: topics with words by Zipf's law; log(1 + count)."""
    rng = np.random.default_rng(0)
    count, words, length, topics = 20000, 8000, 100, 30
    ranks = rng.permuted(np.tile(np.arange(words), (topics, 1)), axis=1)
    shares = rng.dirichlet(np.full(topics, 0.1), count)
    topic = np.array([rng.choice(topics, length, p=share) for share in shares])
    cumulated = np.cumsum(1 / np.arange(1, words + 1))
    drawn = np.searchsorted(cumulated, rng.random(topic.shape) * cumulated[-1])
    columns = ranks[topic, drawn].ravel()
    rows = np.repeat(np.arange(count), length)
    A = scipy.sparse.csr_matrix((np.ones(rows.size), (rows, columns)), shape=(count, words))
    A.sum_duplicates()
    return A.log1p()


def square(A: Any, factors: tuple[Any, Any]) -> float:
    """‖A − W·H‖² / ‖A‖², by inner products: it is far from zero here."""
    W, H = factors
    norm = float((A.multiply(A) if scipy.sparse.issparse(A) else A * A).sum())
    cross = float(np.sum((A @ H.T) * W))
    return 1 - 2 * cross / norm + float(np.sum((W.T @ W) * (H @ H.T))) / norm


def ours(A: Any, init: Any) -> Run:
    def run(iterations: int) -> tuple[Any, Any]:
        W, H = la.nmf(A, RANK, init=init, tol=0, max_iters=iterations, seed=0)
        return W, H

    return run


def theirs(A: Any, init: Any) -> Run:
    """`init` is a name or factors."""

    def run(iterations: int) -> tuple[Any, Any]:
        named = isinstance(init, str)
        model = sklearn.decomposition.NMF(
            RANK, init=init if named else "custom", tol=0, max_iter=iterations, random_state=0
        )
        factors = {} if named else {"W": init[0].copy(), "H": init[1].copy()}
        return model.fit_transform(A, **factors), model.components_

    return run


def needed(A: Any, run: Run, goal: float) -> int:
    """The fewest iterations that come to `goal`, by bisection: objectives fall."""
    low, high = 0, LONG
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if square(A, run(middle)) <= goal else (middle, high)
    return high


def compare(session: Session, title: str, A: Any) -> None:
    rng = np.random.default_rng(1)
    start = rng.random((A.shape[0], RANK)), rng.random((RANK, A.shape[1]))
    start = tuple(factor.astype(A.dtype) for factor in start)
    runs = {
        "fastlr, random start": ours(A, start),
        "scikit-learn, the same start": theirs(A, start),
        "fastlr, singular vectors": ours(A, "svd"),
        "scikit-learn, nndsvd": theirs(A, "nndsvd"),
    }
    reached = {name: square(A, run(LONG)) for name, run in runs.items()}
    names = list(runs)
    goals = {}
    for pair in (names[:2], names[2:]):  # by start, as local minima differ
        goals.update(dict.fromkeys(pair, WITHIN * max(reached[name] for name in pair)))
    cases = []
    for name, run in runs.items():
        count = needed(A, run, goals[name])

        def quality(
            factors: tuple[Any, Any], name: str = name, count: int = count
        ) -> dict[str, Any]:
            return {
                "iterations": count,
                "objective": f"{square(A, factors):.6f}",
                "after 400": f"{reached[name]:.6f}",
            }

        cases.append(Case(name, lambda run=run, count=count: run(count), quality))
    matrix = torch.from_numpy(A) if isinstance(A, np.ndarray) else A
    left, right = (torch.from_numpy(f) if isinstance(A, np.ndarray) else f for f in start)
    floor = Case("two products", lambda: (matrix @ right.T, matrix.T @ left))
    session.table(title, cases, floor=floor)


def main() -> None:
    warnings.simplefilter("ignore")
    with Session(__doc__, repeats=5) as session:
        compare(session, f"5000 × 1000 float64, rank {RANK}", planted(np.float64))
        compare(session, f"5000 × 1000 float32, rank {RANK}", planted(np.float32))
        A = documents()
        compare(session, f"sparse {A.shape[0]} × {A.shape[1]}, {A.nnz} entries, rank {RANK}", A)


if __name__ == "__main__":
    main()
