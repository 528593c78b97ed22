"""A rank from what a user says: the rank, the share that is removed, or a tolerance."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
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


def check_between(owner: str, name: str, number: int, limit: int) -> None:
    """Raise TypeError or ValueError unless `number` is an integer from 1 to `limit`."""
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{owner}: {name} must be an integer, got {number!r}")
    if not 1 <= number <= limit:
        raise ValueError(f"{owner}: {name} must be between 1 and {limit}, got {number}")


def check_common_rank(rank: int) -> None:
    """Raise TypeError or ValueError for what is no rank; one too large for a layer is cut there."""
    if isinstance(rank, bool) or not isinstance(rank, int):
        raise TypeError(f"rank must be an integer, got {rank!r}")
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")


def check_tolerance(owner: str, tol: float) -> None:
    """Raise ValueError unless 0 ≤ tol < 1."""
    if not 0 <= tol < 1:
        raise ValueError(f"{owner}: tol must be in [0, 1), got {tol}")


def largest_rank(
    owner: str,
    ratio: float,
    *,
    limit: int,
    numbers: Callable[[int], int],
    dense: int,
    name: str = "rank",
) -> int:
    """The largest rank up to `limit` that stores (1 − ratio)·dense `numbers`, which grow with it.

    ValueError if that is too few for a rank of 1.
    """
    kept = (1 - ratio) * dense if 0 <= ratio < 1 else 0.0
    if kept < numbers(1):
        raise ValueError(
            f"{owner}: ratio must leave {name}=1, {numbers(1)} of {dense} numbers, got {ratio}"
        )
    return bisect_right(range(1, limit + 1), kept, key=numbers)


def least_rank(tol: float, S: Tensor) -> int:
    """The least rank, from 1, with ‖S[rank:]‖ ≤ tol·‖S‖, of values that fall."""
    relative = S / S[0] if float(S[0]) > 0 else S  # whose squares do not underflow
    tails = relative.square().flip(0).cumsum(0).flip(0)  # tails[r]: of rank r
    return max(1, int((tails > tol**2 * tails[0]).sum()))


def least_rank_with(meets: Callable[[int], bool], limit: int) -> int:
    """The least rank from 1 to `limit` that `meets` what larger ones do, too; `limit` if none."""
    return bisect_left(range(1, limit), True, key=meets) + 1


def choose_rank(
    owner: str,
    rank: int | None,
    ratio: float | None,
    tol: float | None,
    *,
    limit: int,
    numbers: Callable[[int], int],
    dense: int,
    within: Callable[[float], int],
    name: str = "rank",
) -> int:
    """The rank, between 1 and `limit`.

    Parameters
    ----------
    rank, ratio, tol
        One of them: the rank; the share of the numbers that is removed, for the largest rank that
        leaves so few; a bound of the relative error, for the least rank within it.
    numbers : callable
        What a layer of a rank stores; it grows with the rank.
    dense : int
        Numbers of the dense layer.
    within : callable
        The rank for a `tol` in [0, 1).
    name : str
        What the layer calls its rank.
    """
    check_one(owner, rank, ratio, tol, name)
    if rank is not None:
        check_between(owner, name, rank, limit)
        return rank
    if ratio is not None:
        return largest_rank(owner, ratio, limit=limit, numbers=numbers, dense=dense, name=name)
    assert tol is not None
    check_tolerance(owner, tol)
    return within(tol)
