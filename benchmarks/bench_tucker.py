"""Tucker decompositions of dense tensors, beside TensorLy and pyttb where they are installed.

`hooi`: a float32 tensor of the rank that is asked for, with half as much noise. The floor is the
products that the start and the sweeps cannot avoid: two with rank + 10 vectors and two with `rank`
vectors a sweep, along the last mode. TensorLy makes as many sweeps; its rows are timed once, since
they are slow.

`tolerance`: a float64 tensor whose unfoldings have singular values near 0.7^i. The floor is one
product with as many vectors as the rank.

`sparse` (`--sparse COUNT`): so many entries at random places of 10⁵ × 10⁴ × 10³, to 16³; the time
of one run and the most memory that the process has taken.
"""

from __future__ import annotations

import importlib.util
import resource
import time
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fastlr.linalg as la
from harness import Case, Session


def planted(n: int, rank: int) -> Tensor:
    core = la.random_matrix(rank * rank, rank, seed=0).reshape(rank, rank, rank)
    factors = [la.random_matrix(n, rank, seed=seed) for seed in (1, 2, 3)]
    X = la.TuckerTensor(core, factors).full()
    noise = la.random_matrix(n * n, n, seed=4).reshape(n, n, n)
    return X / X.norm() + 0.5 * noise / noise.norm()


def graded(n: int, ratio: float) -> Tensor:
    rank = min(n, 120)
    decay = ratio ** torch.arange(rank, dtype=torch.float64)
    core = la.random_matrix(rank * rank, rank, seed=0, dtype=torch.float64).reshape([rank] * 3)
    core = core * decay[:, None, None] * decay[:, None] * decay
    factors = [
        la.orthonormalize(la.random_matrix(n, rank, seed=seed, dtype=torch.float64))
        for seed in (1, 2, 3)
    ]
    return la.TuckerTensor(core, factors).full()


def error(X: Tensor, core: Any, factors: Any) -> float:
    T = la.TuckerTensor(torch.as_tensor(core), [torch.as_tensor(F) for F in factors])
    return float((T.full() - X).norm() / X.norm())


def hooi(session: Session, n: int, rank: int, sweeps: int) -> None:
    X = planted(n, rank)
    matrix = X.view(-1, n)
    wide, thin = (la.random_matrix(n, width, seed=9) for width in (rank + 10, rank))

    def floor() -> None:
        for _ in range(2):
            matrix @ wide
        for _ in range(2 * done):
            matrix @ thin

    def quality(T: la.TuckerTensor) -> dict[str, Any]:
        assert T.info is not None
        return {"error": f"{T.info.relative_error:.5f}", "sweeps": T.info.sweeps}

    def run() -> la.TuckerTensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", la.ConvergenceWarning)
            return la.tucker(X, rank, max_sweeps=sweeps, seed=0)

    info = run().info
    assert info is not None
    done = info.sweeps
    session.table(
        f"{n}³ float32 → {rank}³, at most {sweeps} sweeps",
        [Case("fastlr, hooi", run, quality)],
        floor=Case("floor: the products", floor),
    )
    if importlib.util.find_spec("tensorly"):
        import tensorly
        from tensorly.decomposition import tucker

        tensorly.set_backend("pytorch")
        start = time.perf_counter()
        core, factors = tucker(X, rank=[rank] * 3, n_iter_max=sweeps, tol=0, random_state=0)
        seconds = time.perf_counter() - start
        print(f"TensorLy, once: {seconds:.2f} s, error {error(X, core, factors):.5f}\n")


def tolerance(session: Session, n: int, ratio: float, tol: float) -> None:
    X = graded(n, ratio)
    array = X.numpy()
    ranks = la.tucker(X, tol=tol, method="st_hosvd").ranks
    thin = la.random_matrix(n, max(ranks), seed=9, dtype=torch.float64)

    def quality(T: Any) -> dict[str, Any]:
        core, factors = T if isinstance(T, la.TuckerTensor) else (T.core.data, T.factor_matrices)
        return {
            "ranks": " × ".join(map(str, core.shape)),
            "error": f"{error(X, np.asarray(core), [np.asarray(F) for F in factors]):.2e}",
        }

    cases = [
        Case(f"fastlr, {method}", lambda m=method: la.tucker(X, tol=tol, method=m, seed=0), quality)
        for method in ("st_hosvd", "randomized", "hooi")
    ]
    if importlib.util.find_spec("pyttb"):
        import pyttb

        tensor = pyttb.tensor(array)
        cases.append(Case("pyttb, hosvd", lambda: pyttb.hosvd(tensor, tol, verbosity=0), quality))
    session.table(
        f"{n}³ float64, decay {ratio:g}, tolerance {tol:g}",
        cases,
        floor=Case("floor: a product", lambda: X.view(-1, n) @ thin),
    )


def sparse(count: int) -> None:
    sizes = (100_000, 10_000, 1_000)
    generator = torch.Generator().manual_seed(0)
    indices = torch.stack([torch.randint(n, (count,), generator=generator) for n in sizes])
    values = torch.randn(count, generator=generator)
    X = torch.sparse_coo_tensor(indices, values, sizes, check_invariants=True)
    del indices
    start = time.perf_counter()
    T = la.tucker(X, 16, seed=0)
    seconds = time.perf_counter() - start
    assert T.info is not None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{count} entries: {seconds:.1f} s, {T.info.sweeps + 1} sweeps, {peak:.2f} GB at most")


def main() -> None:
    options = {"size": 400, "large": 500, "sparse": 0}
    with Session(__doc__, repeats=3, options=options) as session:
        if session.options.sparse:
            sparse(session.options.sparse)
            return
        hooi(session, 200, 20, 5)
        hooi(session, session.options.size, 40, 5)
        tolerance(session, session.options.large, 0.7, 1e-3)
        tolerance(session, session.options.large, 0.95, 1e-3)


if __name__ == "__main__":
    main()
