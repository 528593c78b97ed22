"""Low-rank approximations of a layer's weight in the norm of its outputs.

float32 weights and G = X·Xᵀ in float64, for the shapes of SmolLM2-135M; `--large 1` adds larger
ones. The floor is what cannot be left out: the products W·G and (W·G)·Wᵀ, one eigenproblem of order
min(o, i), for o > i also that of G, and the product that gives the other factor. `excess` is the
weighted error above the optimum, relative to it. The peer is the published procedure: a Cholesky
factor L of G, all of the SVD of W·L in float64, and L⁻¹.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import fastlr.linalg as la
from harness import Case, Session

SHAPES = [(576, 576), (192, 576), (1536, 576), (576, 1536)]
LARGE = [(4096, 4096), (11008, 4096)]
SHARE = 0.4  # of min(o, i): the rank


def layer(o: int, i: int) -> tuple[Tensor, Tensor]:
    """A weight and the second moments of inputs whose components decay like 1/j."""
    W = la.random_matrix(o, i, seed=0)
    mixing = torch.linalg.qr(la.random_matrix(i, i, seed=1, dtype=torch.float64)).Q
    return W, (mixing / torch.arange(1, i + 1)) @ mixing.T


def floor(W: Tensor, G: Tensor) -> Callable[[], Any]:
    o, i = W.shape
    wide = W.double()
    _, Q = torch.linalg.eigh(G)

    def run() -> None:
        if o <= i:
            _, U = torch.linalg.eigh((wide @ G) @ wide.T)
            U.T @ wide
        else:
            torch.linalg.eigh(G)
            outputs = wide @ Q
            _, V = torch.linalg.eigh(outputs.T @ outputs)
            (outputs @ V).T @ wide

    return run


def published(W: Tensor, G: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Whitening by a Cholesky factor."""
    L = torch.linalg.cholesky(G)
    U, S, Vh = torch.linalg.svd(W.double() @ L, full_matrices=False)
    A = torch.linalg.solve_triangular(L, Vh[:rank], upper=False, left=False)
    return U[:, :rank] * S[:rank], A


def compared(session: Session, o: int, i: int, rank: int, title: str) -> None:
    W, G = layer(o, i)
    eigen = torch.linalg.eigh(G)
    H = layer(i, o)[1]
    best = float(la.weighted_low_rank(W, right=G).S[rank:].norm())

    def excess(result: Any) -> dict[str, Any]:
        D = W.double() - result[0][:, :rank].double() @ result[1][:rank].double()
        error = float((D @ G * D).sum().sqrt())
        return {"excess": f"{max(0.0, error / best - 1):.0e}"}

    def quality(result: la.WeightedLowRank) -> dict[str, Any]:
        return {**excess(result), "method": result.info.method}

    cases = [
        Case("fastlr, all ranks", lambda: la.weighted_low_rank(W, right=G), quality),
        Case(f"fastlr, rank {rank}", lambda: la.weighted_low_rank(W, rank, right=G), quality),
        Case(
            "the same, G by its eigenvectors",
            lambda: la.weighted_low_rank(W, rank, right=eigen),
            quality,
        ),
        Case("the same, rows weighted too", lambda: la.weighted_low_rank(W, rank, left=H, right=G)),
        Case("Cholesky factor and SVD", lambda: published(W, G, rank), excess),
    ]
    session.table(title, cases, floor=Case("floor: products and eigenproblems", floor(W, G)))


def main() -> None:
    with Session(__doc__, repeats=5, options={"large": 0}) as session:
        for o, i in SHAPES + (LARGE if session.options.large else []):
            rank = int(SHARE * min(o, i))
            compared(session, o, i, rank, f"{o} × {i}, rank {rank}")
        side = 4096 if session.options.large else 1024
        compared(session, side, side, side // 16, f"{side} × {side}, rank {side // 16}")


if __name__ == "__main__":
    main()
