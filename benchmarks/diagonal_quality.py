"""Low rank plus diagonal: Newton steps over growing ranks, and plain alternation from two starts.

The best diagonal for L and the best L for the diagonal, in turns, are what needs no library: it
gets ten times the decompositions, or stops by the rule of `low_rank_plus_diagonal`.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor

import fastlr.linalg as la


def gaussian(m: int, n: int, seed: int) -> Tensor:
    return la.random_matrix(m, n, seed=seed, dtype=torch.float64)


def flat(n: int, rank: int) -> Tensor:
    return gaussian(n, n, 1)


def planted(n: int, rank: int) -> Tensor:
    """Of this rank, and a diagonal of three times its entries."""
    A = gaussian(n, rank, 1) @ gaussian(rank, n, 2)
    A.diagonal().add_(3 * rank**0.5 * gaussian(n, 1, 3)[:, 0])
    return A


def falling(n: int, rank: int) -> Tensor:
    """Singular values 0.8ᵏ, and a Gaussian diagonal."""
    U, V = (torch.linalg.qr(gaussian(n, n, seed)).Q for seed in (1, 2))
    A = (U * 0.8 ** torch.arange(n)) @ V
    A.diagonal().add_(gaussian(n, 1, 3)[:, 0])
    return A


def near_identity(n: int, rank: int) -> Tensor:
    """I, a small matrix of this rank, and noise of 1e-3."""
    low = gaussian(n, rank, 1) @ gaussian(rank, n, 2) / n
    return torch.eye(n, dtype=torch.float64) + low + 1e-3 * gaussian(n, n, 3)


def alternation(A: Tensor, rank: int, start: Tensor, most: int) -> tuple[float, int]:
    """The relative error, and how many decompositions it took."""
    d, norm, count = start, float(A.norm()), 0
    while count < most:
        count += 1
        M = A - torch.diag(d)
        U, S, Vh = torch.linalg.svd(M)
        rest = M - (U[:, :rank] * S[:rank]) @ Vh[:rank]
        moved, error = rest.diagonal(), float(rest.norm())
        d = d + moved
        if float(moved.norm()) <= max(1e-6 * error, len(A) * 1.1e-16 * float(S[0])):
            break
    return float((rest - torch.diag(moved)).norm()) / norm, count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=100)
    parser.add_argument("--ranks", type=int, nargs="+", default=[5, 25, 50])
    args = parser.parse_args()
    n: int = args.size
    print(
        "matrix | rank | truncated SVD | Newton | SVDs | s | from A | SVDs | from zero | SVDs | s"
    )
    for make in (flat, planted, falling, near_identity):
        for rank in args.ranks:
            A = make(n, rank)
            tail = float(torch.linalg.svdvals(A)[rank:].norm() / A.norm())
            begin = time.perf_counter()
            info = la.low_rank_plus_diagonal(A, rank).info
            newton = time.perf_counter() - begin
            begin = time.perf_counter()
            starts = (torch.zeros(n).double(), A.diagonal().clone())
            most = 10 * info.decompositions
            others = [alternation(A, rank, start, most) for start in starts]
            plain = time.perf_counter() - begin
            cells = [make.__name__, rank, f"{tail:.2e}", f"{info.error / info.norm:.4e}"]
            cells += [info.decompositions, f"{newton:.2f}"]
            for error, count in others:
                cells += [f"{error:.4e}", count]
            print(" | ".join(map(str, [*cells, f"{plain:.2f}"])), flush=True)


if __name__ == "__main__":
    main()
