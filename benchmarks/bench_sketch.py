"""Sketches that are made block by block and never stored.

The Gaussian one A Ω against making Ω first; the floor is the product alone, with a matrix that is
already there. Then S A of every kind; the floor is one read of A.
"""

from __future__ import annotations

import torch
from scipy.linalg import clarkson_woodruff_transform
from torch import Tensor

import fastlr.linalg as la
from harness import Case, Session

SHAPES = [(8000, 4000, 110), (2000, 20000, 64), (500, 200000, 32)]
# Rows, columns and size of tall matrices, float64: sketches of least squares problems.
TALL = [(200_000, 500, 2000), (400_000, 100, 800)]
NONZEROS = 8
KINDS = ("gaussian", "rademacher", "sparse_sign", "countsketch", "srht", "uniform", "leverage")


def main() -> None:
    with Session(__doc__) as session:
        for rows, columns, size in SHAPES:
            A = la.random_matrix(rows, columns, seed=1)
            omega = la.random_matrix(columns, size, seed=2)
            cases = [
                Case("fastlr sketch", lambda A=A, k=size: la.sketch(A, k, axis=1, seed=0)),
                Case(
                    "A @ la.random_matrix(…)",
                    lambda A=A, k=size: A @ la.random_matrix(A.shape[1], k, seed=0),
                ),
                Case("A @ torch.randn(…)", lambda A=A, k=size: A @ torch.randn(A.shape[1], k)),
            ]
            session.table(
                f"sketch to {size} columns, {rows} × {columns} float32",
                cases,
                floor=Case("floor: the product", lambda A=A, omega=omega: A @ omega),
            )
        for rows, columns, size in TALL:
            A = la.random_matrix(rows, columns, seed=1, dtype=torch.float64)
            array = A.numpy()

            def kind(name: str, A: Tensor = A, size: int = size) -> Case:
                return Case(name, lambda: la.sketch(A, size, kind=name, seed=0, nonzeros=NONZEROS))

            session.table(
                f"S A with {size} rows, {rows} × {columns} float64",
                [
                    *(kind(name) for name in KINDS),
                    Case(
                        "scipy clarkson_woodruff_transform",
                        lambda a=array, k=size: clarkson_woodruff_transform(a, k, seed=0),
                    ),
                ],
                floor=Case("floor: one read of A", lambda A=A: A.sum()),
            )


if __name__ == "__main__":
    main()
