"""Recall of CURIndex against score calls for a query, on a real score matrix.

A `.npz` file holds one matrix of scores, queries × items. Anchor queries are drawn from the first
half of a random order of the queries, and the others are searched for. There are no texts beside
the scores, so that no dual encoder can be run; two orders stand for one, the best of which are
scored exactly:

- mean score: items by their mean score over the anchor queries, the same for all queries;
- rank r: the best rank-r fit to the whole matrix, scores of the searched queries included. A dual
  encoder of r dimensions gives a matrix of rank r, and none a better fit: in the squared error this
  is what training could reach at most, with scores that no encoder would have.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fastlr.linalg as la
from harness import machine_line, markdown

STEPS = {"adaptive, 10 a round": (10, 10), "fixed, 25 anchor items": (25, None)}
RANKS = (8, 16, 32)


def recall(S: Tensor, found: Tensor) -> float:
    """The share of the best k items that are among the k found; a row for each query."""
    true = S.topk(found.shape[1]).indices
    return float((true[:, :, None] == found[:, None, :]).any(2).double().mean())


def reranked(S: Tensor, order: Tensor, k: int, budget: int) -> Tensor:
    """The best k of the head of an order, by exact scores."""
    head = order[:, :budget]
    return head.gather(1, S.gather(1, head).topk(k).indices)


def rows_of(S: Tensor, anchors: int, k: int, budgets: list[int], splits: int) -> list[Any]:
    """A row for each method, of means over the splits."""
    found: dict[str, list[list[float]]] = {}
    for seed in range(splits):
        order = torch.from_numpy(np.random.default_rng(seed).permutation(len(S)))
        known, searched = order[: len(S) // 2].tolist(), order[len(S) // 2 :].tolist()
        truth = S[searched]
        for name, (items, step) in STEPS.items():
            index = la.CURIndex.build(
                lambda queries, items: S[queries, items],
                known,
                range(S.shape[1]),
                anchors_q=range(anchors),
                anchors_i=items,
                seed=seed,
            )
            recalls = [
                recall(truth, index.search(searched, k, budget, step=step).indices)
                for budget in budgets
            ]
            found.setdefault(f"CURIndex, {name}", []).append(recalls)
        U, values, Vh = torch.linalg.svd(S.double(), full_matrices=False)
        scores = {"mean score": S[known[:anchors]].mean(0).expand(len(searched), -1)}
        for rank in RANKS:
            fit = (U[:, :rank] * values[:rank]) @ Vh[:rank]
            scores[f"rank {rank}, fitted to all scores"] = fit[searched]
        for name, estimate in scores.items():
            best = estimate.argsort(dim=1, descending=True)
            recalls = [recall(truth, reranked(truth, best, k, budget)) for budget in budgets]
            found.setdefault(f"re-ranked: {name}", []).append(recalls)
    return [
        {
            f"recall@{k}, {anchors} anchor queries": name,
            **{
                f"{budget} calls": f"{mean:.3f}"
                for budget, mean in zip(budgets, np.mean(recalls, 0), strict=True)
            },
        }
        for name, recalls in found.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scores", type=Path, help="a .npz file with one matrix, queries × items")
    parser.add_argument("--anchors", type=int, nargs="+", default=[50, 100, 200])
    parser.add_argument("--budgets", type=int, nargs="+", default=[30, 50, 75, 100, 150])
    parser.add_argument("--k", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--splits", type=int, default=3, help="random splits of the queries")
    options = parser.parse_args()
    (scores,) = np.load(options.scores).values()
    print(machine_line())
    for k in options.k:
        for anchors in options.anchors:
            rows = rows_of(torch.from_numpy(scores), anchors, k, options.budgets, options.splits)
            print("\n" + markdown(rows))


if __name__ == "__main__":
    main()
