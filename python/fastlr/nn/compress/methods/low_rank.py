"""What the low-rank methods share: one solver, whatever the weights of rows and columns are."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastlr.nn.compress.forms import Form, form_named
from fastlr.nn.compress.gram import Gram
from fastlr.nn.compress.problem import Candidates, LayerProblem
from fastlr.nn.compress.solver import Solution, solve


def low_rank_candidates(
    problem: LayerProblem,
    form: str,
    *,
    left: Gram | Tensor | None = None,
    right: Gram | Tensor | None = None,
    multiple: int = 1,
    compared: bool = True,
) -> Candidates:
    """All ranks of the best approximations W' of the weight in ‖H^½ (W − W') G^½‖.

    H = `left` (o × o) and G = `right` (i × i); None is the identity. Only multiples of `multiple`
    are offered, and the dense layer as the last candidate.
    """
    return candidates_of(problem, solve(problem.weight, right, left=left), form, multiple, compared)


def candidates_of(
    problem: LayerProblem, solution: Solution, form: str, multiple: int, compared: bool
) -> Candidates:
    """The candidates of a solution, by rank."""
    stored: Form = form_named(form)
    out_features, in_features = problem.shape
    ranks = [
        rank
        for rank in range(multiple, min(problem.shape) + 1, multiple)
        if stored.parameters(out_features, in_features, rank) < problem.entries
    ]
    sizes = [stored.parameters(out_features, in_features, rank) for rank in ranks]
    tails = solution.total * (solution.energies.flip(0).cumsum(0).flip(0)).cpu()
    tails = torch.cat((tails, tails.new_zeros(1)))

    def build(index: int) -> nn.Module | None:
        if index == len(ranks):
            return None
        return stored.build(problem.linear, solution.truncate(ranks[index]))

    return Candidates(
        torch.tensor([*sizes, problem.entries]),
        torch.cat((tails[torch.tensor(ranks, dtype=torch.int64)], tails.new_zeros(1))),
        solution.total,
        build,
        solution.energies.cpu() * solution.total,
        torch.tensor([*ranks, min(problem.shape)]),
        compared,
    )
