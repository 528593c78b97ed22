"""Truncation after whitening the inputs: the error that counts is that of the layer's output.

X. Wang, Y. Zheng, Z. Wan, M. Zhang, "SVD-LLM: Truncation-aware singular value decomposition for
large language model compression", ICLR 2025.
"""

from __future__ import annotations

from fastlr.nn.compression.methods.low_rank import low_rank_candidates
from fastlr.nn.compression.problem import Candidates, LayerProblem


def prepare(problem: LayerProblem, form: str, multiple: int) -> Candidates:
    """Minimise ‖(W − W')X‖; without inputs, ‖W − W'‖."""
    return low_rank_candidates(
        problem,
        form,
        right=problem.inputs,
        multiple=multiple,
        compared=problem.inputs is not None,
    )
