"""Columns scaled by the size of their inputs.

Z. Yuan, Y. Shang, Y. Song, Q. Wu, Y. Yan, G. Sun, "ASVD: Activation-aware singular value
decomposition for compressing large language models", arXiv:2312.05821, 2023.
"""

from __future__ import annotations

import torch

from fastlr.nn.compression.methods.low_rank import low_rank_candidates
from fastlr.nn.compression.problem import Candidates, LayerProblem

ALPHA = 0.5


def prepare(problem: LayerProblem, form: str, multiple: int) -> Candidates:
    """Minimise ‖(W − W') diag(m^α)‖ with m the mean of |x| and α = 0.5."""
    inputs = problem.inputs
    right = None
    if inputs is not None and inputs.magnitude is not None:
        right = torch.diag((inputs.magnitude / max(inputs.tokens, 1)) ** (2 * ALPHA))
    return low_rank_candidates(
        problem, form, right=right, multiple=multiple, compared=right is not None
    )
