"""A rank from what a user says: the rank, the share that is removed, or a tolerance."""

from __future__ import annotations

import math

from torch import Tensor


def check_one(owner: str, rank: int | None, ratio: float | None, tol: float | None) -> None:
    """Raise ValueError unless one of the three is given."""
    if sum(given is not None for given in (rank, ratio, tol)) != 1:
        raise ValueError(
            f"{owner}: one of rank, ratio and tol must be given, got rank={rank}, ratio={ratio}, "
            f"tol={tol}"
        )


def kept_numbers(owner: str, ratio: float, dense: int, least: int) -> float:
    """(1 − ratio)·dense, of which a layer of rank 1 needs `least`."""
    kept = (1 - ratio) * dense if 0 <= ratio < 1 else 0.0
    if kept < least:
        raise ValueError(
            f"{owner}: ratio must leave a rank of 1, {least} of {dense} numbers, got {ratio}"
        )
    return kept


def choose_rank(
    owner: str,
    rank: int | None,
    ratio: float | None,
    tol: float | None,
    *,
    S: Tensor,
    each: int,
    dense: int,
) -> int:
    """The rank, between 1 and ``len(S)``.

    Parameters
    ----------
    rank, ratio, tol
        One of them: the rank; the share of the numbers that is removed, for the largest rank that
        leaves so few; a bound of ‖S[rank:]‖ / ‖S‖ for the least rank within it.
    S : Tensor
        What the error of a rank is made of, falling.
    each, dense : int
        Numbers of a rank, and of the dense layer.
    """
    check_one(owner, rank, ratio, tol)
    if rank is not None:
        if not 1 <= rank <= len(S):
            raise ValueError(f"{owner}: rank must be between 1 and {len(S)}, got {rank}")
        return rank
    if ratio is not None:
        return min(math.floor(kept_numbers(owner, ratio, dense, each) / each), len(S))
    assert tol is not None
    if not 0 <= tol < 1:
        raise ValueError(f"{owner}: tol must be in [0, 1), got {tol}")
    relative = S / S[0] if float(S[0]) > 0 else S  # whose squares do not underflow
    tails = relative.square().flip(0).cumsum(0).flip(0)  # tails[r]: of rank r
    return max(1, int((tails > tol**2 * tails[0]).sum()))
