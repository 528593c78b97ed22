"""Completion: ratings by alternating least squares, float32, and exact recovery, float64.

Ratings: a matrix of rank 8 with noise, at random places. Fits of 1 and of 6 sweeps are timed: their
difference is five sweeps, without what comes before. The floor of a sweep is a matrix product of as
many flops as the Gram matrices of all rows and all columns have, nnz·k² each. `validation` is the
root of the mean square error on a tenth as many entries. implicit's solver sees the same entries as
confidences and answers another question: its row is for the time.

Recovery: what is left of the whole matrix, relative; "als" makes sweeps until it is below 1e-6.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse
import torch

import fastlr.linalg as la
from harness import Case, Session

RIDGE = 2.0
SHORT, LONG = 1, 6


class Ratings:
    """Entries of a noisy matrix of rank 8, with those that are left out."""

    def __init__(self, users: int, items: int, count: int) -> None:
        rng = np.random.default_rng(0)
        self.shape = users, items
        U, V = (rng.standard_normal((size, 8)).astype(np.float32) for size in self.shape)
        drawn = count + count // 10
        rows, cols = rng.integers(users, size=drawn), rng.integers(items, size=drawn)
        values = np.concatenate(
            [
                np.einsum("ij,ij->i", U[r], V[c])
                for r, c in zip(np.array_split(rows, 100), np.array_split(cols, 100), strict=True)
            ]
        )
        values += 0.5 * rng.standard_normal(drawn, dtype=np.float32)
        self.rows, self.cols, self.values = rows[:count], cols[:count], values[:count]
        self.left_out = rows[count:], cols[count:], values[count:]

    def error(self, U: Any, V: Any) -> dict[str, str]:
        """On what is left out."""
        rows, cols, values = self.left_out
        rest = values - np.einsum("ij,ij->i", np.asarray(U)[rows], np.asarray(V)[cols])
        return {"validation": f"{np.sqrt(np.mean(rest**2)):.4f}"}


def fits(ratings: Ratings, k: int) -> dict[str, Callable[[int], tuple[Any, Any]]]:
    """From a number of sweeps to the factors, by each library that there is."""
    found: dict[str, Callable[[int], tuple[Any, Any]]] = {}
    entries = ratings.rows, ratings.cols, ratings.values

    def fastlr(sweeps: int, solver: Any) -> tuple[Any, Any]:
        completion = la.complete(
            *entries, ratings.shape, k, method="als", ridge=RIDGE, solver=solver, tol=0,
            max_sweeps=sweeps, seed=0,
        )  # fmt: skip
        return completion.U, completion.V

    found["fastlr"] = lambda sweeps: fastlr(sweeps, "cholesky")
    found["fastlr, conjugate gradients"] = lambda sweeps: fastlr(sweeps, "cg")
    coo = scipy.sparse.coo_matrix((ratings.values, entries[:2]), shape=ratings.shape)
    threads = torch.get_num_threads()
    with contextlib.suppress(ImportError):
        from cmfrec import CMF

        def cmfrec(sweeps: int, gradients: bool) -> tuple[Any, Any]:
            model = CMF(
                k=k, lambda_=RIDGE, method="als", use_cg=gradients, user_bias=False,
                item_bias=False, center=False, scale_lam=False, niter=sweeps, finalize_chol=False,
                nthreads=threads, use_float=True, verbose=False, random_state=0,
            ).fit(coo)  # fmt: skip
            return model.A_, model.B_

        found["cmfrec"] = lambda sweeps: cmfrec(sweeps, False)
        found["cmfrec, conjugate gradients"] = lambda sweeps: cmfrec(sweeps, True)
    with contextlib.suppress(ImportError):
        from implicit.als import AlternatingLeastSquares

        csr = abs(coo.tocsr())

        def implicit(sweeps: int, gradients: bool) -> tuple[Any, Any]:
            model = AlternatingLeastSquares(
                factors=k, regularization=RIDGE, iterations=sweeps, use_gpu=False,
                use_cg=gradients, num_threads=threads, random_state=0,
            )  # fmt: skip
            model.fit(csr, show_progress=False)
            return model.user_factors, model.item_factors

        found["implicit"] = lambda sweeps: implicit(sweeps, False)
        found["implicit, conjugate gradients"] = lambda sweeps: implicit(sweeps, True)
    return found


def sweep_floor(count: int, k: int) -> Callable[[], Any]:
    """A product of 2·count·k² flops: one sweep's Gram matrices."""
    inner = 1024
    outer = max(1, int((count * k * k / inner) ** 0.5))
    left, right = torch.randn(outer, inner), torch.randn(inner, outer)
    return lambda: left @ right


def recovery(session: Session, n: int, k: int, share: float) -> None:
    """Until the whole matrix is known to 1e-6."""
    rng = np.random.default_rng(1)
    U, V = rng.standard_normal((n, k)), rng.standard_normal((n, k))
    rows, cols = np.divmod(np.sort(rng.choice(n * n, int(share * n * n), replace=False)), n)
    values = np.einsum("ij,ij->i", U[rows], V[cols])
    truth = U @ V.T
    entries = rows, cols, values, (n, n), k

    def error(completion: Any) -> dict[str, Any]:
        rest = np.linalg.norm(completion.dense() - truth) / np.linalg.norm(truth)
        return {"error": f"{rest:.1e}", "sweeps": completion.info.sweeps}

    def sweeps_of_als() -> int:
        history = la.complete(*entries, method="als", tol=0, max_sweeps=300, seed=0).history
        size = np.sqrt(np.mean(values**2))
        return 1 + int(np.argmax(np.array(history.training_error) < 1e-6 * size))

    def by_lstsq() -> Any:
        """Exact solutions of rows by LAPACK, one at a time, from the same spectral start."""
        matrix = scipy.sparse.csr_matrix((values, (rows, cols)), shape=(n, n))
        other = matrix.T.tocsr()
        right = np.linalg.qr(la.randomized_svd(matrix, k, power_iters=2, seed=0).Vh.T)[0]
        sweeps, rest = 0, 1.0
        while rest > 1e-6 and sweeps < 100:
            left = np.linalg.qr(rows_of(matrix, right))[0]
            right, sweeps = rows_of(other, left), sweeps + 1
            rest = np.linalg.norm(values - np.einsum("ij,ij->i", left[rows], right[cols]))
            rest /= np.linalg.norm(values)
            product, right = left @ right.T, np.linalg.qr(right)[0]
        return product, sweeps

    def rows_of(matrix: Any, factor: Any) -> Any:
        return np.stack(
            [
                np.linalg.lstsq(factor[matrix.indices[a:b]], matrix.data[a:b], rcond=None)[0]
                for a, b in zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True)
            ]
        )

    most = sweeps_of_als()
    session.table(
        f"{n:,} × {n:,} float64, rank {k}, {share:.0%} observed, to 1e-6",
        [
            Case("altmin", lambda: la.complete(*entries, tol=1e-6, seed=0), error),
            Case(
                "altmin, conjugate gradients",
                lambda: la.complete(*entries, tol=1e-6, solver="cg", seed=0),
                error,
            ),
            Case(
                "exact rows, random start (als)",
                lambda: la.complete(*entries, method="als", tol=0, max_sweeps=most, seed=0),
                error,
            ),
            Case(
                "exact rows, spectral start (NumPy, LAPACK)",
                by_lstsq,
                lambda r: {
                    "error": f"{np.linalg.norm(r[0] - truth) / np.linalg.norm(truth):.1e}",
                    "sweeps": r[1],
                },
            ),
        ],
    )


def main() -> None:
    options = {"users": 100_000, "items": 20_000, "count": 10_000_000, "rank": 32, "size": 5000}
    warnings.filterwarnings("ignore")
    with Session(__doc__, repeats=3, options=options) as session:
        o = session.options
        recovery(session, o.size, 10, 0.02)
        ratings = Ratings(o.users, o.items, o.count)
        floor = sweep_floor(o.count, o.rank)
        for sweeps in (SHORT, LONG):
            session.table(
                f"{o.count:,} ratings, {o.users:,} × {o.items:,}, rank {o.rank}, {sweeps} sweeps",
                [
                    Case(
                        name,
                        lambda fit=fit, sweeps=sweeps: fit(sweeps),
                        lambda r: ratings.error(*r),
                        sweeps,
                    )
                    for name, fit in fits(ratings, o.rank).items()
                ],
                floor=Case("one product", floor),
            )


if __name__ == "__main__":
    main()
