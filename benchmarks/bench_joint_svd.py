"""Bounds of joint SVDs, and clusters of matrices that share a basis.

Matrices of 512 × 512 in eight groups; those of a group lie near the same space of dimension 10.
`above truth` is by how much a bound is too large, the median over pairs of the same group or of
different ones, `worst` the largest. The exact errors of all pairs are timed for ten matrices only.
"""

from __future__ import annotations

import itertools
import statistics
from typing import Any

import torch
from torch import Tensor

import fastlr.linalg as la
from harness import Case, Session

SIZE, RANK, GROUPS, TOL = 512, 10, 8, 0.3
BOUNDS = ("weyl", "residual", "estimate")


def family(count: int) -> list[Tensor]:
    """Matrices with 4 % noise, by energy, around the spaces of their groups."""
    matrices = []
    for j in range(count):
        space = la.random_matrix(SIZE, RANK, seed=j % GROUPS) / SIZE**0.5
        shared = space @ la.random_matrix(RANK, SIZE, seed=1000 + j)
        decay = torch.arange(1, SIZE + 1) ** -0.5
        noise = la.random_matrix(SIZE, SIZE, seed=5000 + j) * decay
        matrices.append(shared + 0.2 * noise * (shared.norm() / noise.norm()))
    return matrices


def exact_error(matrices: list[Tensor]) -> float:
    """By the singular values of the matrices side by side."""
    values = torch.linalg.svdvals(torch.cat(matrices, 1)).double()
    return float(values[RANK:].norm() / values.norm())


def gram_error(matrices: list[Tensor]) -> float:
    """By the eigenvalues of the Gram matrix: faster, blind below √u."""
    A = torch.cat(matrices, 1)
    values = torch.linalg.eigvalsh(A @ A.T).double().flip(0).clamp_min(0)
    return float((values[RANK:].sum() / values.sum()).sqrt())


def all_pairs(session: Session) -> None:
    """The errors of all pairs, which is what clustering begins with."""
    matrices = family(10)
    pairs = list(itertools.combinations(range(len(matrices)), 2))

    def predicted() -> Any:
        return la.cluster_matrices(matrices, TOL, rank=RANK, seed=0)

    def exactly(error: Any) -> list[float]:
        return [error([matrices[a], matrices[b]]) for a, b in pairs]

    session.table(
        f"all {len(pairs)} pairs of {len(matrices)} matrices, {SIZE} × {SIZE} float32, rank {RANK}",
        [
            Case("fastlr, estimate: factors, predictions and merges", predicted),
            Case("SVD of every pair", lambda: exactly(exact_error)),
            Case("Gram matrix of every pair", lambda: exactly(gram_error)),
        ],
    )


def tightness(session: Session) -> None:
    """What each bound is, relative to the truth."""
    matrices = family(16)
    kinds = {
        "the same group": [
            (a, b) for a, b in itertools.combinations(range(16), 2) if not (b - a) % GROUPS
        ],
        "different groups": [(a, a + 1) for a in range(15)],
        "all 16": [tuple(range(16))],
    }
    cases = []
    for kind, groups in kinds.items():
        chosen = [[matrices[j] for j in group] for group in groups]
        truths = [exact_error(each) for each in chosen]
        found = [la.joint_svd_bounds(each, RANK, seed=0) for each in chosen]
        for bound in BOUNDS:
            ratios = [getattr(one, bound) / truth for one, truth in zip(found, truths, strict=True)]
            quality = {
                "truth": statistics.median(truths),
                "above truth": f"{100 * (statistics.median(ratios) - 1):.3g} %",
                "worst": f"{100 * (max(ratios) - 1):.3g} %",
            }
            cases.append(
                Case(
                    f"{bound}, {kind}",
                    lambda each=chosen[0]: la.joint_svd_bounds(each, RANK, seed=0),
                    lambda _, quality=quality: quality,
                )
            )
    session.table("bounds beside the truth (`time` is that of all three bounds)", cases)


def clusters(session: Session) -> None:
    """200 matrices."""
    matrices = family(200)

    def quality(found: la.MatrixClusters) -> dict[str, Any]:
        return {
            "clusters": len(found.clusters),
            "worst error": max(found.errors),
            "worst bound": max(found.predicted_errors),
        }

    session.table(
        f"200 matrices, {SIZE} × {SIZE} float32, rank {RANK}, tol = {TOL}",
        [
            Case(
                f"fastlr, {bound}",
                lambda bound=bound: la.cluster_matrices(
                    matrices, TOL, bound=bound, rank=RANK, seed=0
                ),
                quality,
            )
            for bound in BOUNDS
        ]
        + [Case("one SVD of all 200 side by side", lambda: exact_error(matrices))],
    )


def main() -> None:
    with Session(__doc__, repeats=3) as session:
        for tables in (clusters, all_pairs, tightness):
            tables(session)


if __name__ == "__main__":
    main()
