"""Gaussian sketch A Ω, where Ω is made block by block and never stored, against making it first.

The floor is the product alone, with a matrix that is already there.
"""

from __future__ import annotations

import torch

import fastlr.linalg as la
from harness import Case, Session

SHAPES = [(8000, 4000, 110), (2000, 20000, 64), (500, 200000, 32)]


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


if __name__ == "__main__":
    main()
