"""Decompositions in rows or columns of the matrix itself."""

from typing import Any

import torch
from torch import Tensor

from fastlr import _core
from fastlr.linalg._arguments import Seed, as_integer, as_out, as_real, as_seed
from fastlr.linalg._arrays import check_one_matrix, number_or_batch
from fastlr.linalg._autocast import as_written
from fastlr.linalg._sources import open_matrix
from fastlr.linalg._warnings import warn
from fastlr.linalg.results import ConvergenceWarning, InterpolativeInfo, InterpolativeResult

_CALLER = "interpolative"


@as_written
def interpolative(
    A: Any,
    rank: int | None = None,
    *,
    axis: int,
    tol: float | None = None,
    seed: Seed = None,
    out: str | None = None,
) -> InterpolativeResult:
    """Approximate a matrix by few of its own rows or columns.

    Parameters
    ----------
    A : array, Tensor, sparse matrix, operator or source of rows, shape (…, m, n)
        As in `randomized_svd`: real or complex, a batch of dense matrices, or one matrix of any
        other kind. float16 and bfloat16 are computed in float32. Never written to.
    rank : int, optional
        Number of rows or columns chosen, between 1 and min(m, n). With `tol`, the most.
    axis : {0, 1}
        0 chooses rows, 1 columns; −1 and −2 count from the end.
    tol : float, optional
        As few as leave ‖A − approximation‖_F ≤ tol·‖A‖_F, for 0 < tol < 1, in the order of the
        pivots. A zero matrix has rank 0.
    seed : int, torch.Generator or None
        Of the sketches and of the error probes.
    out : {"torch", "numpy"}, optional
        Kind of the results; that of A if None.

    Returns
    -------
    InterpolativeResult
        ``indices`` (int64) and ``coefficients``, at most 2 in magnitude and the identity at
        ``indices``: ``A ≈ coefficients @ A[indices]`` for ``axis=0`` (coefficients m × rank),
        ``A ≈ A[:, indices] @ coefficients`` for ``axis=1`` (rank × n). Exact to rounding where A
        has rank `rank` or less, so always where rank = min(m, n). ``info`` has the error.

    Raises
    ------
    ValueError
        Neither `rank` nor `tol`, a number or an axis out of range, `tol` for a batch, an entry
        that is not finite (its index is named where entries can be seen).
    TypeError
        An input of none of the kinds above, a number that is not an integer.
    torch.linalg.LinAlgError
        The pivoting did not settle (never seen).

    Warns
    -----
    ConvergenceWarning
        `rank` of them do not meet `tol`.

    See Also
    --------
    pivoted_qr, randomized_svd

    Notes
    -----
    For ``axis=1``, with l = rank + 20: Q is an orthonormal basis of A·Ω for a Gaussian Ω of l
    columns, and QR with strong pivots (f = 2) of QᴴA chooses the columns C, so that no exchange of
    one of them for another multiplies the volume of their projections by more than 2. The
    coefficients are those of least squares, C⁺·A; those of the projections, (QᴴC)⁺·QᴴA, where one
    of these is above 2. Where l reaches min(m, n), the triangle of A takes the place of QᴴA, and Gu
    and Eisenstat's bounds hold for A itself: σ_i(C) ≥ σ_i(A)/√(1 + 4·rank·(n − rank)),
    ‖A − C·coefficients‖₂ ≤ σ_{rank+1}(A)·√(1 + 4·rank·(n − rank)).

    With `tol`, Q grows by half of its columns until it leaves less than half of the tolerance, and
    pivots are taken until what they leave is within it. That is checked with A itself: by
    ‖A‖² − ‖Q_CᴴA‖² for a basis Q_C of C, without a chance of failure, or by fresh probes where
    that cancels (tol below 32·√u), or A is an operator, of which ‖QᴴA‖ takes the place of ‖A‖.

    Four passes over A, of l, l, rank and 10 columns: 2·m·n·(3·rank + 50) flops, one more for the
    columns of what is not dense; O((m + n)·l²) flops besides. With `tol`, two for every growth and
    one or two for every check. Batches are worked on matrix by matrix, on all threads. Not
    differentiable.

    Sources: Gu, Eisenstat, SISC 17 (1996); Voronin, Martinsson, "Efficient algorithms for
    CUR and interpolative matrix decompositions", Adv. Comput. Math. 43 (2017), for the choice from
    a projection; Goreinov et al., "How to find a good submatrix" (2010), for rank = min(m, n).

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> A = torch.tensor([[1.0, 0.0, 1.0], [0.0, 3.0, 3.0]])
    >>> columns, coefficients = la.interpolative(A, 2, axis=1, seed=0)
    >>> torch.allclose(A[:, columns] @ coefficients, A)
    True
    >>> la.interpolative(torch.diag(2.0 ** -torch.arange(90)), tol=0.01, axis=0, seed=0).info.rank
    7
    """
    matrix = open_matrix(A, _CALLER)
    if axis not in (0, 1, -1, -2):
        raise ValueError(f"{_CALLER}: axis must be 0 or 1, got {axis}")
    out = as_out(out, _CALLER)
    if tol is not None:
        check_one_matrix(matrix.data.shape, _CALLER)
    functions = torch.ops.fastlr if isinstance(matrix.data, Tensor) else _core
    indices, coefficients, numbers = functions.interpolative(
        matrix.data,
        None if rank is None else as_integer(rank, _CALLER, "rank"),
        None if tol is None else as_real(tol, _CALLER, "tol"),
        axis in (0, -2),
        as_seed(seed, _CALLER),
    )
    info = _info(numbers, indices.shape[-1], matrix.reads)
    if not info.converged:
        warn(
            f"{_CALLER}: tol={tol:g} not met by {info.rank}; the error is {info.error:.3g} at most "
            "(see info)",
            ConvergenceWarning,
        )
    return InterpolativeResult(
        matrix.restore(indices, out), matrix.restore(coefficients, out), info
    )


def _info(numbers: Tensor, rank: int, reads: int) -> InterpolativeInfo:
    passes, estimate, upper, failure, converged = numbers.detach().unbind(-1)

    return InterpolativeInfo(
        method="strong rank-revealing pivoting",
        passes=reads + int(passes.max()) if passes.numel() else 0,
        error=number_or_batch(upper),
        error_estimate=number_or_batch(estimate),
        failure_probability=float(failure.max()) if failure.numel() else 0.0,
        rank=rank,
        converged=bool(converged.all()),
    )
