"""Entries that matter little for the loss are left out, and the others make up for them.

The quadratic model of the loss is that of ``two_sided``; what a weight keeps is no space of low
rank but single entries, marked by one bit each. For one size that holds far more of the model than
any low-rank form while not much is removed (see the documentation's ablation).

B. Hassibi, D. G. Stork, "Second order derivatives for network pruning: Optimal brain surgeon",
NIPS 1992, for the choice; the refit of all kept entries at once is a least squares problem.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastlr.nn.compression.gram import power_of_two_above
from fastlr.nn.compression.methods.two_sided import loss_weights
from fastlr.nn.compression.problem import Candidates, LayerProblem
from fastlr.nn.compression.sparse_solver import (
    ascending_values,
    fit_on_mask,
    inverse_diagonal,
    mask_of_largest,
    saliency,
    weighted,
)
from fastlr.nn.modules import SparseLinear
from fastlr.nn.modules.dense import dense_weight

# Of the mean of the diagonals: what calibration saw little of counts on other texts.
DAMPING_OF_GRADIENTS = 0.2
DAMPING_OF_INPUTS = 0.1
# The densities that are offered, in parts of the whole.
_STEPS = 1024


def prepare(problem: LayerProblem, form: str, multiple: int) -> Candidates:
    """Minimise tr(H Δ G Δᵀ), Δ = W − W', over W' with so many entries that are not zero."""
    left, right = loss_weights(problem, DAMPING_OF_GRADIENTS, DAMPING_OF_INPUTS)
    rows, columns = problem.shape
    inverses = inverse_diagonal(left, rows), inverse_diagonal(right, columns)
    entries = problem.entries
    mask_numbers = SparseLinear.mask_numbers(rows, columns, dense_weight(problem.linear).dtype)
    steps = {round(entries * step / _STEPS) for step in range(1, _STEPS)}
    counts = sorted(count for count in steps if 0 < count < entries - mask_numbers)

    def build(index: int) -> nn.Module | None:
        if index == len(counts):
            return None
        # Recomputed: the scores of all layers at once would take as much memory as the model.
        mask = mask_of_largest(saliency(problem.weight, *inverses), counts[index])
        return SparseLinear.in_place_of(problem.linear, _fitted(problem, mask), mask)

    ascending = ascending_values(saliency(problem.weight, *inverses))
    lost = torch.cat((ascending.new_zeros(1), ascending.cumsum(0)))
    kept = torch.tensor([*counts, entries])
    return Candidates(
        torch.tensor([*(count + mask_numbers for count in counts), entries]),
        lost[entries - kept],
        float((weighted(problem.weight, left, right) * problem.weight).sum()),
        build,
        compared=left is not None and right is not None,
    )


def _fitted(problem: LayerProblem, mask: Tensor) -> Tensor:
    """In float32, but for a float64 layer: what is fitted need not be exact, only no worse."""
    double = dense_weight(problem.linear).dtype == torch.float64
    dtype = torch.float64 if double else torch.float32
    # Near one: squares of the entries stay in range.
    weights = [
        None if matrix is None else (matrix / matrix.diagonal().mean()).to(dtype)
        for matrix in loss_weights(problem, DAMPING_OF_GRADIENTS, DAMPING_OF_INPUTS)
    ]
    scale = power_of_two_above(problem.weight)
    return fit_on_mask((problem.weight / scale).to(dtype), mask, *weights) * scale
