"""Factors from which an alternation for A ≈ X·Vᵀ, X ≥ 0, begins."""

import torch
from torch import Tensor

from fastlr.linalg.random import random_matrix
from fastlr.linalg.svd import randomized_svd

# Alternating projections that look for a positive vector in a subspace, and how far from zero,
# relative to its largest entry, the least entry has to be.
_PROJECTIONS, _POSITIVE = 50, 1e-2


def nonnegative_start(A: Tensor, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    """Of each leading pair of singular vectors the larger one of the two parts of one sign.

    Source: Boutsidis, Gallopoulos, "SVD based initialization: a head start for nonnegative matrix
    factorization", Pattern Recognition 41 (2008).
    """
    U, S, Vh = randomized_svd(A, min(rank, *A.shape), seed=seed)
    positive, negative = _parts(U, Vh.mT)
    larger = torch.linalg.vector_norm(positive[0], dim=0) * torch.linalg.vector_norm(
        positive[1], dim=0
    ) >= torch.linalg.vector_norm(negative[0], dim=0) * torch.linalg.vector_norm(negative[1], dim=0)
    X, V = (torch.where(larger, *parts) for parts in zip(positive, negative, strict=True))
    return _filled(X * S, V, rank, random_start(A, rank, seed, "uniform")[1])


def _parts(U: Tensor, V: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    return (U.clamp_min(0), V.clamp_min(0)), ((-U).clamp_min(0), (-V).clamp_min(0))


def random_start(A: Tensor, rank: int, seed: int, kind: str) -> tuple[Tensor, Tensor]:
    """Random columns of V; zeros for X, as the first step fits it."""
    V = random_matrix(A.shape[1], rank, kind=kind, seed=seed, dtype=A.dtype, device=A.device)
    return V.new_zeros(A.shape[0], rank), V


def signed_start(A: Tensor, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    """The largest parts of one sign of leading left singular vectors, with the right ones."""
    U, S, Vh = randomized_svd(A, min(rank, *A.shape), seed=seed)
    X = torch.cat([U.clamp_min(0), (-U).clamp_min(0)], 1) * S.repeat(2)
    V = torch.cat([Vh.mT, -Vh.mT], 1)
    order = torch.linalg.vector_norm(X, dim=0).argsort(descending=True, stable=True)[:rank]
    return _filled(X[:, order], V[:, order], rank, random_start(A, rank, seed, "gaussian")[1])


def rotated_start(A: Tensor, rank: int, seed: int) -> Tensor:
    """Nonnegative columns that span the leading singular subspace, or all of it but one dimension.

    With a positive u in the span of U, U + u·sᵀ is nonnegative for s large enough, and spans the
    same. Where no such u is found, it is the vector of ones, beside one column of U less.
    """
    k = min(rank, *A.shape)
    U, _, _ = randomized_svd(A, k, seed=seed)
    shift = _positive_vector(U)
    if shift is None:
        shift = U.new_full((len(U), 1), len(U) ** -0.5)
        U = torch.cat([U[:, : rank - 1], shift], 1)
    # The sign of each column that needs the smaller shift.
    up, down = (-U / shift).amax(0).clamp_min(0), (U / shift).amax(0).clamp_min(0)
    X = torch.where(up <= down, U + up * shift, down * shift - U).clamp_min(0)
    return torch.cat([X, X.new_zeros(len(X), rank - X.shape[1])], 1)


def _positive_vector(U: Tensor) -> Tensor | None:
    """An entrywise positive vector (m × 1) in the span of orthonormal columns, if one is found."""
    target = U.new_ones(len(U), 1)
    for _ in range(_PROJECTIONS):
        u = U @ (U.mT @ target)
        least, most = u.aminmax()
        if float(least) >= _POSITIVE * float(most) > 0:
            unit: Tensor = u / torch.linalg.vector_norm(u)
            return unit
        target = u.clamp_min(2 * _POSITIVE * float(u.abs().max()))
    return None


def _filled(X: Tensor, V: Tensor, rank: int, random: Tensor) -> tuple[Tensor, Tensor]:
    """With random columns of V where there are none or zeros; such a pair has no singular value."""
    missing = rank - V.shape[1]
    X, V = (torch.cat([F, F.new_zeros(len(F), missing)], 1) for F in (X, V))
    return X, torch.where((V == 0).all(0), random, V)
