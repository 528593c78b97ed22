"""A truncated singular value decomposition whose U and V are given by Householder vectors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastlr.linalg import householder_vectors
from fastlr.nn.modules.dense import high_precision


class HouseholderSVD(NamedTuple):
    """U·diag(phases·S)·Vᵀ with U and V the ``householder_product(·, lower=True)`` of vectors."""

    of_U: Tensor
    S: Tensor
    of_V: Tensor
    phases: Tensor


def householder_svd(weight: Tensor, rank: int) -> HouseholderSVD:
    """The leading triples of a weight, found in float64 and rounded once to its dtype."""
    U, S, Vh = torch.linalg.svd(high_precision(weight), full_matrices=False)
    of_U, left = householder_vectors(U[:, :rank])
    of_V, right = householder_vectors(Vh[:rank].mT)
    # One sign for both vectors of a triple is free: those of V go to U.
    found = (of_U, S[:rank], of_V, left * right)
    return HouseholderSVD(*(part.to(weight) for part in found))
