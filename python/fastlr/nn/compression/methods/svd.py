"""The truncated singular value decomposition of the weight: all inputs count alike."""

from __future__ import annotations

from fastlr.nn.compression.methods.low_rank import low_rank_candidates
from fastlr.nn.compression.problem import Candidates, LayerProblem


def prepare(problem: LayerProblem, form: str, multiple: int) -> Candidates:
    """Minimise ‖W − W'‖."""
    return low_rank_candidates(problem, form, multiple=multiple)
