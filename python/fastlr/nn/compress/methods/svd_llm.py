"""Truncation after whitening the inputs: the error that counts is that of the layer's output.

X. Wang, Y. Zheng, Z. Wan, M. Zhang, "SVD-LLM: Truncation-aware singular value decomposition for
large language model compression", ICLR 2025.
"""

from __future__ import annotations

from torch import Tensor

from fastlr.nn.compress.gram import Gram
from fastlr.nn.compress.solver import Solution, solve


def factor(weight: Tensor, gram: Gram | None) -> Solution:
    """Minimise ‖(W − W')X‖ with X Xᵀ = `gram`; plain singular values where `gram` is None."""
    return solve(weight, gram)
