"""Rows weighted by their Fisher information.

Y.-C. Hsu, T. Hua, S. Chang, Q. Lou, Y. Shen, H. Jin, "Language model compression with weighted
low-rank factorization", ICLR 2022.
"""

from __future__ import annotations

import torch

from fastlr.nn.compression.methods.low_rank import low_rank_candidates
from fastlr.nn.compression.problem import Candidates, LayerProblem


def prepare(problem: LayerProblem, form: str, multiple: int) -> Candidates:
    """Minimise ‖D (W − W')‖, D² the rows' Fisher information: Σ g², up to a common factor.

    The published weight of row r is Σ over columns c and samples of (∂loss/∂W_rc)²; with gradient
    and input taken as independent it is Σ g_r² times the same factor for all rows.
    """
    gradients = problem.gradients
    left = None if gradients is None else torch.diag(gradients.matrix.diagonal())
    return low_rank_candidates(
        problem, form, left=left, multiple=multiple, compared=gradients is not None
    )
