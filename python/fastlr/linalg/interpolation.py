"""Decompositions in rows or columns of the matrix itself."""

from typing import Any

import torch

from fastlr.linalg._arguments import Seed, as_integer, as_seed
from fastlr.linalg._arrays import adapt
from fastlr.linalg.results import InterpolativeInfo, InterpolativeResult, error_fields


def interpolative(A: Any, rank: int, *, axis: int, seed: Seed = None) -> InterpolativeResult:
    """Approximate a matrix by `rank` of its own rows or columns.

    Parameters
    ----------
    A : array or Tensor, shape (m, n)
        float16 and bfloat16 are computed in float32. Never written to.
    rank : int
        Number of rows or columns chosen, between 1 and min(m, n).
    axis : {0, 1}
        0 chooses rows, 1 columns; −1 and −2 count from the end.
    seed : int, torch.Generator or None
        Of the randomized SVD that compresses A first, and of the error probes.

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
        Not a matrix, a rank or an axis out of range, an entry that is not finite.
    TypeError
        A sparse or complex matrix, a number that is not an integer.
    torch.linalg.LinAlgError
        The pivoting did not settle (never seen).

    Notes
    -----
    Strong rank-revealing pivoting with f = 2: Gaussian elimination on the leading singular vectors
    picks a first selection, and exchanges continue until none would multiply the volume by more
    than 2. Then σ_i(A[:, indices]) ≥ σ_i(A)/√(1 + 4·rank·(n − rank)) and ‖A − A[:, indices]·
    coefficients‖₂ ≤ σ_{rank+1}(A)·√(1 + 4·rank·(n − rank)), up to the error of the compression.
    Cost: that of `randomized_svd` with rank + 10 and two more passes over A, and
    O(n·rank²) flops; rank = min(m, n) needs no SVD. Not differentiable.

    Sources: Gu, Eisenstat, SISC 17 (1996); Goreinov et al., "How to find a good submatrix" (2010).

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> A = torch.tensor([[1.0, 0.0, 1.0], [0.0, 3.0, 3.0]])
    >>> columns, coefficients = la.interpolative(A, 2, axis=1, seed=0)
    >>> torch.allclose(A[:, columns] @ coefficients, A)
    True
    """
    adapted = adapt(A, "interpolative")
    if axis not in (0, 1, -1, -2):
        raise ValueError(f"interpolative: axis must be 0 or 1, got {axis}")
    rows = axis in (0, -2)
    indices, coefficients, numbers = torch.ops.fastlr.interpolative(
        adapted.tensor.mT if rows else adapted.tensor,
        as_integer(rank, "interpolative", "rank"),
        as_seed(seed, "interpolative"),
    )
    passes, estimate, probes = numbers.tolist()
    info = InterpolativeInfo(
        method="strong rank-revealing pivoting", **error_fields(passes, estimate, probes)
    )
    coefficients = coefficients.mT if rows else coefficients
    return InterpolativeResult(adapted.restore(indices), adapted.restore(coefficients), info)
