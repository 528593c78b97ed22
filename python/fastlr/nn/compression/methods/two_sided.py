"""Both sides weighted: the quadratic model of the network's loss with a Kronecker-factored Fisher.

J. Martens, R. Grosse, "Optimizing neural networks with Kronecker-factored approximate curvature",
ICML 2015, for the factorization Σ (g gᵀ ⊗ x xᵀ) ≈ (Σ g gᵀ) ⊗ (Σ x xᵀ) / tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastlr.nn.compression.gram import Gram
from fastlr.nn.compression.methods.low_rank import low_rank_candidates
from fastlr.nn.compression.problem import Candidates, LayerProblem

# Of the mean of the diagonal, added to it: directions that calibration hardly saw count too.
DAMPING_OF_GRADIENTS = 0.1
DAMPING_OF_INPUTS = 0.01


def prepare(problem: LayerProblem, form: str, multiple: int) -> Candidates:
    """Minimise tr(H Δ G Δᵀ), Δ = W − W': twice the predicted increase of the loss, by tokens²."""
    left, right = loss_weights(problem, DAMPING_OF_GRADIENTS, DAMPING_OF_INPUTS)
    known = left is not None and right is not None
    return low_rank_candidates(
        problem, form, left=left, right=right, multiple=multiple, compared=known
    )


def loss_weights(
    problem: LayerProblem, gradients: float, inputs: float
) -> tuple[Tensor | None, Tensor | None]:
    """Damped H and G per token: tr(H Δ G Δᵀ)/2 is the predicted increase of the mean loss."""
    return _damped(problem.gradients, gradients), _damped(problem.inputs, inputs)


def _damped(gram: Gram | None, damping: float) -> Tensor | None:
    # Without any gradient at all (or any input) everything counts alike.
    if gram is None or not bool(gram.matrix.diagonal().any()):
        return None
    matrix = gram.matrix / max(gram.tokens, 1)
    return matrix + damping * matrix.diagonal().mean() * torch.eye(len(matrix)).to(matrix)
