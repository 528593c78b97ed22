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

from fastlr.nn.compress.gram import power_of_two_above
from fastlr.nn.compress.methods.two_sided import loss_weights
from fastlr.nn.compress.problem import Candidates, LayerProblem
from fastlr.nn.compress.sparse_solver import fit_on_mask, inverse_diagonal, saliency
from fastlr.nn.modules import SparseLinear
from fastlr.nn.modules.dense import dense_weight

# Of the mean of the diagonals: what calibration saw little of counts on other texts.
DAMPING_OF_GRADIENTS = 0.1
DAMPING_OF_INPUTS = 0.1
# The densities that are offered, in parts of the whole.
_STEPS = 1024


def prepare(problem: LayerProblem, form: str, multiple: int) -> Candidates:
    """Minimise tr(H Δ G Δᵀ), Δ = W − W', over W' with so many entries that are not zero."""
    weight = problem.weight
    left, right = loss_weights(problem, DAMPING_OF_GRADIENTS, DAMPING_OF_INPUTS)
    scores = saliency(
        weight,
        inverse_diagonal(left, len(weight)).to(weight.device),
        inverse_diagonal(right, weight.shape[1]).to(weight.device),
    ).flatten()
    order = scores.argsort(descending=True, stable=True)
    lost = scores[order].flip(0).cumsum(0).flip(0).cpu()
    lost = torch.cat((lost, lost.new_zeros(1)))
    mask_numbers = SparseLinear.mask_numbers(*problem.shape, dense_weight(problem.linear).dtype)
    counts = [round(weight.numel() * step / _STEPS) for step in range(1, _STEPS)]
    kept = sorted({count for count in counts if 0 < count < weight.numel() - mask_numbers})

    def build(index: int) -> nn.Module | None:
        if index == len(kept):
            return None
        mask = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device)
        mask[order[: kept[index]]] = True
        mask = mask.view(weight.shape)
        return SparseLinear.in_place_of(problem.linear, _fitted(problem, mask, left, right), mask)

    sizes = torch.tensor([*(count + mask_numbers for count in kept), weight.numel()])
    errors = torch.cat((lost[torch.tensor(kept, dtype=torch.int64)], lost.new_zeros(1)))
    known = left is not None and right is not None
    return Candidates(sizes, errors, _norm(weight, left, right), build, compared=known)


def _fitted(
    problem: LayerProblem, mask: Tensor, left: Tensor | None, right: Tensor | None
) -> Tensor:
    """In float32, but for a float64 layer: what is fitted need not be exact, only no worse."""
    double = dense_weight(problem.linear).dtype == torch.float64
    dtype = torch.float64 if double else torch.float32
    # Near one: squares of the entries stay in range.
    weights = [None if m is None else (m / m.diagonal().mean()).to(dtype) for m in (left, right)]
    scale = power_of_two_above(problem.weight)
    return fit_on_mask((problem.weight / scale).to(dtype), mask, *weights) * scale


def _norm(weight: Tensor, left: Tensor | None, right: Tensor | None) -> float:
    product = weight if left is None else left @ weight
    product = product if right is None else product @ right
    return float((product * weight).sum())
