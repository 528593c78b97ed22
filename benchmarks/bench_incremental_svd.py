"""Incremental SVD: rows one by one, blocks of rows, and merges.

The floor of rows one by one is a product of each with 50 vectors, 2·n·k flops a row, as the rows
come; that of blocks is the same in one product a block. `error` is ‖A − U·diag(S)·Vh‖_F over that
of the best approximation of the rank, and `bound` what the state says of it. IncrementalPCA has no
error bound; it centres, so the columns here have mean zero. A merge of two states of m rows and n
columns is O((m + n)·k²): its floor is the product of the lower left factor with a k × k matrix, and
those of both right factors.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from sklearn.decomposition import IncrementalPCA
from torch import Tensor

import fastlr.linalg as la
from harness import Case, Session

COLUMNS, RANK = 2000, 50


def stream(rows: int, dtype: torch.dtype) -> Tensor:
    """80 directions whose strength decays, and noise; columns of mean zero."""
    left = la.random_matrix(rows, 80, seed=0, dtype=dtype)
    right = la.random_matrix(80, COLUMNS, seed=1, dtype=dtype)
    strength = 0.95 ** torch.arange(80, dtype=dtype)
    A = (left * strength) @ right + la.random_matrix(rows, COLUMNS, seed=2, dtype=dtype) / 10
    return A - A.mean(0)


def by_rows(A: Tensor) -> la.IncrementalSVD:
    state = la.IncrementalSVD(RANK)
    for row in A:
        state.append_rows(row)
    return state


def by_blocks(A: Tensor, height: int) -> la.IncrementalSVD:
    state = la.IncrementalSVD(RANK)
    for block in A.split(height):
        state.append_rows(block)
    return state


def peer(A: Tensor, height: int) -> IncrementalPCA:
    model = IncrementalPCA(RANK)
    for block in A.numpy().reshape(-1, height, COLUMNS):
        model.partial_fit(block)
    return model


def appends(session: Session, rows: int, dtype: torch.dtype) -> None:
    A = stream(rows, dtype)
    vectors = la.random_matrix(RANK, COLUMNS, seed=3, dtype=dtype)
    best = float(torch.linalg.svdvals(A.double())[RANK:].norm())

    def graded(result: Any) -> dict[str, Any]:
        U, S, Vh = (part.double() for part in result)
        error = float(torch.linalg.matrix_norm(A.double() - U * S @ Vh))
        return {"error": error / best, "bound": result.info.error / best}

    def graded_peer(model: IncrementalPCA) -> dict[str, Any]:
        V = torch.from_numpy(model.components_).double()
        rest = A.double() - A.double() @ V.T @ V
        return {"error": float(torch.linalg.matrix_norm(rest)) / best}

    def one_by_one() -> None:
        for row in A:
            vectors @ row

    session.table(
        f"{rows:,} rows one by one, {COLUMNS} columns, rank {RANK}, {str(dtype)[6:]}",
        [Case("fastlr", lambda: by_rows(A), lambda state: graded(state.result()))],
        floor=Case("floor: 2·n·k flops a row, row by row", one_by_one),
    )
    height = 500

    def products() -> None:
        for block in A.split(height):
            block @ vectors.mT

    session.table(
        f"The same in blocks of {height} rows",
        [
            Case("fastlr", lambda: by_blocks(A, height), lambda state: graded(state.result())),
            Case("sklearn IncrementalPCA", lambda: peer(A, height), graded_peer),
        ],
        floor=Case("floor: 2·n·k flops a row, block by block", products),
    )


def merges(session: Session, rows: int) -> None:
    for m in (rows // 4, rows, 4 * rows):
        A = stream(m, torch.float32)
        above, below = by_blocks(A, m), by_blocks(A.flip(0), m)
        width = RANK + 10
        left = la.random_matrix(m, width, seed=3)
        right = la.random_matrix(COLUMNS, width, seed=4)
        square = la.random_matrix(width, width, seed=5)

        def merged(above: la.IncrementalSVD = above, below: la.IncrementalSVD = below) -> None:
            copy.copy(above).merge(below)

        def products(left: Tensor = left, right: Tensor = right, square: Tensor = square) -> None:
            left @ square
            right @ square
            right @ square

        session.table(
            f"Merge of two states of {m:,} rows, {COLUMNS} columns, rank {RANK}, float32",
            [Case("fastlr", merged)],
            floor=Case("floor: three factors times a k × k matrix", products),
        )


def main() -> None:
    with Session(__doc__, repeats=3, options={"rows": 10_000}) as session:
        for dtype in (torch.float32, torch.float64):
            appends(session, session.options.rows, dtype)
        merges(session, session.options.rows)


if __name__ == "__main__":
    main()
