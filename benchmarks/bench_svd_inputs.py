"""Randomized SVD of thin, batched, small and sparse matrices, and to ten digits.

The floor of a thin matrix is the six products with 60 columns of two power iterations; `memory` is
the peak beyond A, in units of (m + n)·(rank + oversample) numbers. `σ error` is the largest
relative error of the singular values. `time / ATen` divides the time of a call by that of the ATen
calls within it, both under torch's profiler.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
import torch
from sklearn.utils.extmath import randomized_svd as sklearn_randomized_svd
from torch import Tensor
from torch.profiler import profile

import fastlr.linalg as la
from harness import Case, Session

POWER_ITERS = 2


def lowrank(A: Tensor, width: int) -> Any:
    # Not seeded: that would take longer than the SVD of a small matrix.
    return torch.svd_lowrank(A, q=width, niter=POWER_ITERS)


def peak_beyond(A: Tensor, run: Callable[[], Any], width: int) -> dict[str, Any]:
    """Peak resident memory of a run above what there was before, where Linux tells."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before = _resident("VmRSS")
        run()
        peak = _resident("VmHWM") - before
    except OSError:
        return {"memory": "unknown"}
    return {"memory": f"{peak / (sum(A.shape) * width * A.element_size()):.2f}"}


def _resident(field: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition(f"{field}:")[2].split()[0]) * 1024


def thin(session: Session) -> None:
    """1 000 000 × 200 and its transpose, rank 50."""
    tall = la.random_matrix(1_000_000, 200, seed=1) / torch.arange(1, 201).sqrt()
    for A in (tall, tall.T.contiguous()):
        right = la.random_matrix(A.shape[1], 60, seed=2)
        left = la.random_matrix(A.shape[0], 60, seed=3)

        def products(A: Tensor = A, right: Tensor = right, left: Tensor = left) -> None:
            for _ in range(1 + POWER_ITERS):
                A @ right
                A.T @ left

        session.table(
            f"{A.shape[0]:,} × {A.shape[1]:,} float32, rank 50 + 10",
            [
                Case(
                    "fastlr",
                    lambda A=A: la.randomized_svd(A, 50, power_iters=POWER_ITERS, seed=0),
                    lambda _, A=A: peak_beyond(
                        A, lambda: la.randomized_svd(A, 50, power_iters=POWER_ITERS, seed=0), 60
                    ),
                ),
                Case(
                    "torch.svd_lowrank",
                    lambda A=A: lowrank(A, 60),
                    lambda _, A=A: peak_beyond(A, lambda: lowrank(A, 60), 60),
                ),
            ],
            floor=Case("floor: 6 products with 60 columns", products),
        )


def batched(session: Session) -> None:
    """1000 matrices of 128 × 96, rank 8."""
    A = la.random_matrix(128_000, 96, seed=1).view(1000, 128, 96)
    session.table(
        "1000 × (128 × 96) float32, rank 8 + 10",
        [
            Case("fastlr", lambda: la.randomized_svd(A, 8, power_iters=POWER_ITERS, seed=0)),
            Case("torch.svd_lowrank, batched", lambda: lowrank(A, 18)),
            Case("torch.svd_lowrank, a Python loop", lambda: [lowrank(each, 18) for each in A]),
        ],
    )


def small(session: Session) -> None:
    """A hundred calls for 50 × 40, rank 5."""
    A = la.random_matrix(50, 40, seed=1)
    calls = range(100)

    def fastlr() -> Any:
        return [la.randomized_svd(A, 5, power_iters=POWER_ITERS, seed=0) for _ in calls]

    def over_aten(_: Any) -> dict[str, Any]:
        with profile() as profiled:
            fastlr()
        spent = [(event.key, event.self_cpu_time_total) for event in profiled.key_averages()]
        within = sum(time for key, time in spent if key.startswith("aten::"))
        begun = min(event.time_range.start for event in profiled.events())
        ended = max(event.time_range.end for event in profiled.events())
        return {"time / ATen": f"{(ended - begun) / within:.2f}"}

    session.table(
        "100 times 50 × 40 float32, rank 5 + 10",
        [
            Case("fastlr", fastlr, over_aten),
            Case("torch.svd_lowrank", lambda: [lowrank(A, 15) for _ in calls]),
        ],
    )


class ValueErrors:
    """Relative errors of singular values, against reference ones."""

    def __init__(self, reference: Any) -> None:
        self.reference = np.asarray(reference)

    def __call__(self, values: Any) -> dict[str, Any]:
        ordered = np.sort(np.asarray(values))[::-1]
        return {"σ error": f"{np.max(np.abs(ordered / self.reference - 1)):.1e}"}


def sparse(session: Session) -> None:
    """200 000² with 10⁷ entries, rank 50."""
    size, entries, rank = 200_000, 10**7, 50
    rng = np.random.default_rng(0)
    rows, columns = rng.integers(0, size, (2, entries))
    values = rng.standard_normal(entries, dtype=np.float32) / np.sqrt(1 + columns % 1000)
    A = scipy.sparse.csr_array((values.astype(np.float32), (rows, columns)), shape=(size, size))

    norm = float(scipy.sparse.linalg.norm(A))

    def captured(values: Any) -> dict[str, Any]:
        missed = np.sqrt(norm**2 - float(np.linalg.norm(values)) ** 2)
        return {"error": f"{missed / norm:.4f}"}

    def svds(solver: str) -> Any:
        return scipy.sparse.linalg.svds(A, rank, tol=0.1, solver=solver)[1]

    session.table(
        "sparse 200 000 × 200 000, 10⁷ entries, float32, rank 50 + 10",
        [
            Case("fastlr", lambda: la.randomized_svd(A, rank, power_iters=4, seed=0).S, captured),
            Case(
                "sklearn randomized_svd",
                lambda: sklearn_randomized_svd(A, rank, n_iter=4, random_state=0)[1],
                captured,
            ),
            Case("scipy svds, ARPACK", lambda: svds("arpack"), captured),
            Case("scipy svds, PROPACK", lambda: svds("propack"), captured),
        ],
        note="4 power iterations; tol = 0.1 for svds. The error is √(‖A‖² − ‖S‖²) / ‖A‖.",
    )


def ten_digits(session: Session) -> None:
    """2000 × 1500 with σ_j = 0.98^j, rank 50."""
    rank = 50
    left, _ = torch.linalg.qr(la.random_matrix(2000, 1500, seed=1, dtype=torch.float64))
    right, _ = torch.linalg.qr(la.random_matrix(1500, 1500, seed=2, dtype=torch.float64))
    values = 0.98 ** torch.arange(1500, dtype=torch.float64)
    A = (left * values) @ right.T
    as_numpy = A.numpy()
    graded = ValueErrors(values[:rank])
    session.table(
        "2000 × 1500 float64, σ_j = 0.98^j, rank 50 to ten digits",
        [
            Case("fastlr, krylov", lambda: la.randomized_svd(A, rank, method="krylov").S, graded),
            Case(
                "scipy svds, ARPACK",
                lambda: scipy.sparse.linalg.svds(as_numpy, rank, tol=1e-10)[1],
                graded,
            ),
        ],
    )


def main() -> None:
    with Session(__doc__, repeats=3) as session:
        for tables in (thin, batched, small, ten_digits, sparse):
            tables(session)


if __name__ == "__main__":
    main()
