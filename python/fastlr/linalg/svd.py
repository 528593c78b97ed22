"""Truncated singular value decompositions."""

from typing import Any, Literal

import torch

from fastlr.linalg._arguments import Seed, as_integer, as_seed
from fastlr.linalg._arrays import adapt
from fastlr.linalg.results import SVDInfo, SVDResult, error_fields


def randomized_svd(
    A: Any,
    rank: int,
    *,
    oversample: int = 10,
    power_iters: int | Literal["auto"] = "auto",
    seed: Seed = None,
) -> SVDResult:
    """Compute the leading singular triplets of a matrix by randomized subspace iteration.

    Parameters
    ----------
    A : array or Tensor, shape (m, n)
        float16 and bfloat16 are computed in float32. Never written to.
    rank : int
        Number of triplets returned, between 1 and min(m, n).
    oversample : int
        Columns of the random sketch beyond `rank`.
    power_iters : int or "auto"
        Subspace iterations. "auto" iterates until none of the leading `rank` singular values grows
        by more than 2 %, at least once and at most 8 times (``info.converged`` says whether that
        was enough); 0 is fast and poor unless the spectrum decays quickly.
    seed : int, torch.Generator or None
        The same seed gives the same factors; None draws one from torch's default generator.

    Returns
    -------
    SVDResult
        ``U`` (m × rank), ``S`` (rank), ``Vh`` (rank × n), of the kind, dtype and device of A, and
        ``info``. U and Vh are orthonormal to 10·√rank·u whatever the rank of A; singular values
        below 4·√(rank + oversample)·u·S[0] are rounding noise and returned as exact zeros; the
        largest entry of each column of U is positive. Where A has a zero dimension, the factors are
        empty.

    Raises
    ------
    ValueError
        Not a matrix, a rank out of range, a negative `oversample` or `power_iters`, an entry that
        is not finite (its index is named).
    TypeError
        A sparse or complex matrix, a number that is not an integer.

    Notes
    -----
    2 + 2·power_iters passes over A, each 2·m·n·(rank + oversample) flops, and
    O((m + n)·(rank + oversample)²) besides. Where rank + oversample reaches min(m, n), one dense
    SVD is computed instead. Matrices whose entries are so large or small that squares would leave
    the floating-point range are rescaled by a power of two (a copy of A, three more passes).

    ``info.error`` is an upper estimate of ‖A − U·diag(S)·Vh‖_F from ten random probes that share
    the first pass over A; it fails with the stated probability.

    Source: Halko, Martinsson, Tropp, "Finding structure with randomness", SIAM Review 53 (2011).
    Not differentiable.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> A = torch.outer(torch.arange(1.0, 5.0), torch.ones(3))
    >>> U, S, Vh = la.randomized_svd(A, 2, seed=0)
    >>> S
    tensor([9.4868, 0.0000])
    >>> la.randomized_svd(A, 1, seed=0).info.error < 1e-4
    True
    """
    adapted = adapt(A, "randomized_svd")
    rank = as_integer(rank, "randomized_svd", "rank")
    iterations = (
        None
        if isinstance(power_iters, str) and power_iters == "auto"
        else as_integer(power_iters, "randomized_svd", 'power_iters (or "auto")')
    )
    U, S, Vh, numbers = torch.ops.fastlr.randomized_svd(
        adapted.tensor,
        rank,
        as_integer(oversample, "randomized_svd", "oversample"),
        iterations,
        as_seed(seed, "randomized_svd"),
    )
    passes, estimate, probes, iterated, converged = numbers.tolist()
    info = SVDInfo(
        method="subspace iteration" if probes else "dense SVD",
        **error_fields(passes, estimate, probes),
        power_iters=int(iterated),
        converged=bool(converged),
    )
    return SVDResult(adapted.restore(U), adapted.restore(S), adapted.restore(Vh), info)
