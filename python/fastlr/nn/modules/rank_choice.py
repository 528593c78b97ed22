"""A rank from what a user says: the rank, the share that is removed, or a tolerance."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor


def check_one(
    owner: str, rank: int | None, ratio: float | None, tol: float | None, name: str = "rank"
) -> None:
    """Raise ValueError unless one of the three is given."""
    if sum(given is not None for given in (rank, ratio, tol)) != 1:
        raise ValueError(
            f"{owner}: one of {name}, ratio and tol must be given, got {name}={rank}, "
            f"ratio={ratio}, tol={tol}"
        )


def kept_numbers(owner: str, ratio: float, dense: int, least: int, name: str = "rank") -> float:
    """(1 − ratio)·dense, of which a layer of rank 1 needs `least`."""
    kept = (1 - ratio) * dense if 0 <= ratio < 1 else 0.0
    if kept < least:
        raise ValueError(
            f"{owner}: ratio must leave {name}=1, {least} of {dense} numbers, got {ratio}"
        )
    return kept


def choose_rank(
    owner: str,
    rank: int | None,
    ratio: float | None,
    tol: float | None,
    *,
    limit: int,
    each: int,
    dense: int,
    values: Callable[[], Tensor],
    name: str = "rank",
) -> int:
    """The rank, between 1 and `limit`.

    Parameters
    ----------
    rank, ratio, tol
        One of them: the rank; the share of the numbers that is removed, for the largest rank that
        leaves so few; a bound of ‖S[rank:]‖ / ‖S‖ for the least rank within it.
    each, dense : int
        Numbers of a rank, and of the dense layer.
    values : callable
        S, what the error of a rank is made of, falling. Asked for by `tol` alone.
    name : str
        What the layer calls its rank.
    """
    check_one(owner, rank, ratio, tol, name)
    if rank is not None:
        if isinstance(rank, bool) or not isinstance(rank, int):
            raise TypeError(f"{owner}: {name} must be an integer, got {rank!r}")
        if not 1 <= rank <= limit:
            raise ValueError(f"{owner}: {name} must be between 1 and {limit}, got {rank}")
        return rank
    if ratio is not None:
        return min(math.floor(kept_numbers(owner, ratio, dense, each, name) / each), limit)
    assert tol is not None
    if not 0 <= tol < 1:
        raise ValueError(f"{owner}: tol must be in [0, 1), got {tol}")
    S = values()
    relative = S / S[0] if float(S[0]) > 0 else S  # whose squares do not underflow
    tails = relative.square().flip(0).cumsum(0).flip(0)  # tails[r]: of rank r
    return max(1, int((tails > tol**2 * tails[0]).sum()))
