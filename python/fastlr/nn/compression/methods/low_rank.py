"""What the low-rank methods share: one solver, whatever the weights of rows and columns are."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastlr.nn.compression.forms import Form, form_named
from fastlr.nn.compression.gram import Gram
from fastlr.nn.compression.problem import Candidates, LayerProblem, sums_beyond
from fastlr.nn.compression.solver import solve


def low_rank_candidates(
    problem: LayerProblem,
    form: str,
    *,
    left: Gram | Tensor | None = None,
    right: Gram | Tensor | None = None,
    multiple: int = 1,
    beside: int = 0,
    compared: bool = True,
) -> Candidates:
    """All ranks of the best approximations W' of the weight in ‖H^½ (W − W') G^½‖.

    H = `left` (o × o) and G = `right` (i × i); None is the identity. Only multiples of `multiple`
    are offered, and the dense layer as the last candidate. `beside` numbers are stored with each.
    """
    solution = solve(problem.weight, right, left=left)
    stored: Form = form_named(form)
    every = range(multiple, min(problem.shape) + 1, multiple)
    sizes = {rank: stored.parameters(*problem.shape, rank) + beside for rank in every}
    ranks = [rank for rank in every if sizes[rank] < problem.entries]
    squares = solution.energies.cpu() * solution.total

    def build(index: int) -> nn.Module | None:
        if index == len(ranks):
            return None
        return stored.build(problem.linear, solution.truncate(ranks[index]))

    return Candidates(
        torch.tensor([*(sizes[rank] for rank in ranks), problem.entries]),
        sums_beyond(squares)[torch.tensor([*ranks, len(squares)])],
        solution.total,
        build,
        squares,
        torch.tensor([*ranks, min(problem.shape)]),
        compared,
    )
