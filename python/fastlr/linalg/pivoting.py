"""QR with column pivoting."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastlr.linalg._arguments import Seed, as_integer, as_real, as_seed
from fastlr.linalg._arrays import adapt, check_one_matrix, number_or_batch
from fastlr.linalg._autocast import as_written
from fastlr.linalg._warnings import warn
from fastlr.linalg.results import ConvergenceWarning

_CALLER = "pivoted_qr"
# In the order of the core's enumeration.
_METHODS = ("blocked Householder", "preconditioned Cholesky")


@dataclass(frozen=True)
class PivotedQRInfo:
    """How a pivoted QR factorization was obtained.

    Attributes
    ----------
    method : str
        "blocked Householder", or "preconditioned Cholesky" for long matrices of full rank.
    rank : int
        The number k of columns of Q.
    error : float
        ‖A[:, pivots] − Q·R‖_F: the norm of what is left of the other columns; 0 of a whole
        factorization. Rounding, some 10·√n·u·‖A‖_F, comes on top of it.
    exchanges : int
        How often `strong` exchanged a column that the sketches had chosen.
    bound : float
        √(1 + f²·k·(n − k)) for ``strong=f``: σ_i(R[:, :k]) ≥ σ_i(A)/bound for i ≤ k, and
        ‖A[:, pivots] − Q·R‖₂ ≤ bound·σ_{k+1}(A), both to rounding; infinite otherwise.
    converged : bool
        Whether `tol` is met.

    Of a batch, `error` and `exchanges` are arrays of the batch's shape, and `method` names all that
    were used.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> info = la.pivoted_qr(torch.diag(torch.tensor([1.0, 3.0, 2.0])), rank=2, seed=0).info
    >>> info.rank, info.error
    (2, 1.0)
    """

    method: str
    rank: int
    error: float
    exchanges: int
    bound: float
    converged: bool


class _PivotedQRFields(NamedTuple):
    Q: Any
    R: Any
    pivots: Any


class PivotedQRResult(_PivotedQRFields):
    """A[:, pivots] ≈ Q @ R, with `info` about how it was obtained.

    Attributes
    ----------
    Q : array, shape (…, m, k)
        ‖QᴴQ − I‖₂ ≤ 10·√k·u.
    R : array, shape (…, k, n)
        Upper triangular, with a diagonal that is real and not negative.
    pivots : array of int64, shape (…, n)
        A permutation of the columns of A; the first k are those that R's triangle is of.
    info : PivotedQRInfo
        Not part of the tuple.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> Q, R, pivots = la.pivoted_qr(torch.diag(torch.tensor([1.0, 3.0, 2.0])), seed=0)
    >>> pivots.tolist(), R.diagonal().tolist()
    ([1, 2, 0], [3.0, 2.0, 1.0])
    """

    info: PivotedQRInfo

    def __new__(cls, Q: Any, R: Any, pivots: Any, info: PivotedQRInfo) -> "PivotedQRResult":
        self = super().__new__(cls, Q, R, pivots)
        self.info = info
        return self


@as_written
def pivoted_qr(
    A: Any,
    rank: int | None = None,
    *,
    tol: float | None = None,
    strong: float | None = None,
    seed: Seed = None,
) -> PivotedQRResult:
    """QR factorization with pivots that reveal the rank, in blocks chosen by random sketches.

    Parameters
    ----------
    A : array or Tensor, shape (…, m, n)
        Real or complex; leading dimensions are a batch. float16 and bfloat16 are computed in
        float32. Never written to.
    rank : int, optional
        At most so many columns of Q, between 1 and min(m, n); all of them by default.
    tol : float, optional
        As few columns, in the order of the pivots, as leave
        ‖A[:, pivots] − Q·R‖_F ≤ tol·‖A‖_F; what is left is computed, not estimated.
    strong : float, optional
        Gu and Eisenstat's f ≥ 1, for a truncated factorization: columns are exchanged until no
        exchange of one of the first k for another multiplies their volume by more than f, which
        bounds what singular values may lose: see ``info.bound``. By default the sketches decide
        alone, which in practice is as good.
    seed : int, torch.Generator or None
        Of the sketches.

    Returns
    -------
    PivotedQRResult
        ``Q`` (m × k), ``R`` (k × n), ``pivots`` (n), with k = min(m, n) if neither `rank` nor `tol`
        says less, and ``info``. Any rank of A will do: where columns depend on each other, R has
        rows of rounding noise and Q is orthonormal all the same.

    Raises
    ------
    ValueError
        Not a matrix, a rank out of range, a negative `tol`, `tol` for a batch, an f below 1, an
        entry that is not finite (its index is named).
    TypeError
        A sparse matrix, a rank that is not an integer.
    torch.linalg.LinAlgError
        The exchanges did not settle (never seen).

    Warns
    -----
    ConvergenceWarning
        `rank` columns do not meet `tol`.

    See Also
    --------
    interpolative, randomized_svd

    Notes
    -----
    Blocks of 64 columns are those that QR with pivoting takes first from a Gaussian sketch of 72
    rows of what is left of A, or from its rows themselves once these are 128 or fewer; the sketch
    is carried along with the reflections [1]_ [2]_.
    Everything else is products: 4·m·n·k − 2·(m + n)·k² + 4·k³/3 flops for R, as many as without
    pivots, about a tenth more for the sketches, and 4·m·k² − 4·k³/3 for Q. A matrix with m ≥ 4·n is
    factored whole by one sparse sign sketch of 3·n rows, whose R_s leaves A·R_s⁻¹ well conditioned,
    and Cholesky QR [3]_: some 9·m·n² flops at the speed of products, if it has full rank. `strong`
    adds a factorization in the new order for each exchange [4]_. Batches are worked on matrix by
    matrix, on all threads. Not differentiable.

    References
    ----------
    .. [1] J. A. Duersch, M. Gu, "Randomized QR with column pivoting", SIAM J. Sci. Comput. 39
       (2017).
    .. [2] P.-G. Martinsson, G. Quintana-Ortí, N. Heavner, R. van de Geijn, "Householder QR
       factorization with randomization for column pivoting", SIAM J. Sci. Comput. 39 (2017).
    .. [3] M. Melnichenko, O. Balabanov, R. Murray, J. Demmel, M. W. Mahoney, P. Luszczek,
       "CholeskyQR with randomization and pivoting for tall matrices" (2024).
    .. [4] M. Gu, S. C. Eisenstat, "Efficient algorithms for computing a strong rank-revealing QR
       factorization", SIAM J. Sci. Comput. 17 (1996).

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> B = la.random_matrix(60, 5, seed=0, dtype=torch.float64)
    >>> A = B @ la.random_matrix(5, 40, seed=1, dtype=torch.float64)
    >>> Q, R, pivots = qr = la.pivoted_qr(A, tol=1e-12, seed=0)
    >>> qr.info.rank, torch.allclose(A[:, pivots], Q @ R)
    (5, True)
    """
    adapted = adapt(A, _CALLER, batched=True, complex_=True)
    allowed = 0.0 if tol is None else as_real(tol, _CALLER, "tol")
    if allowed > 0:
        check_one_matrix(adapted.tensor.shape, _CALLER)
    f = None if strong is None else as_real(strong, _CALLER, "strong")
    Q, R, pivots, numbers = torch.ops.fastlr.pivoted_qr(
        adapted.tensor,
        None if rank is None else as_integer(rank, _CALLER, "rank"),
        allowed,
        f,
        as_seed(seed, _CALLER),
    )
    info = _info(numbers, Q.shape[-1], R.shape[-1], f)
    if not info.converged:
        warn(
            f"{_CALLER}: tol = {allowed:g} is not met by {info.rank} columns; the error is "
            f"{info.error:.3g} (see info)",
            ConvergenceWarning,
        )
    return PivotedQRResult(adapted.restore(Q), adapted.restore(R), adapted.restore(pivots), info)


def _info(numbers: Tensor, k: int, n: int, f: float | None) -> PivotedQRInfo:
    error, exchanges, converged, method = numbers.detach().unbind(-1)
    used = sorted({_METHODS[int(index)] for index in method.flatten().tolist()})

    return PivotedQRInfo(
        method=" and ".join(used),
        rank=k,
        error=number_or_batch(error),
        exchanges=number_or_batch(exchanges.long()),
        bound=math.inf if f is None else math.sqrt(1 + f**2 * k * (n - k)),
        converged=bool(converged.all()),
    )
