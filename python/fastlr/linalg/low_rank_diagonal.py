"""The nearest sum of a matrix of low rank and a diagonal one."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastlr.linalg._arguments import as_integer, as_tolerance, at_least
from fastlr.linalg._arrays import adapt
from fastlr.linalg._autocast import as_written
from fastlr.linalg._balanced import check_finite, power_of_two
from fastlr.linalg._free_diagonal import FreeDiagonal, norm
from fastlr.linalg._warnings import warn
from fastlr.linalg.results import ConvergenceWarning

_CALLER = "low_rank_plus_diagonal"


@dataclass(frozen=True)
class DiagonalInfo:
    """How a matrix of low rank and a diagonal were found, and how far their sum is from A.

    Attributes
    ----------
    error : float
        ‖A − left·right − diag(diagonal)‖_F, measured from the arrays as they are returned.
    norm : float
        ‖A‖_F.
    off_diagonal : float
        The norm of A without its diagonal, of which alone the error depends.
    decompositions : int
        Singular value decompositions, those for the smaller ranks included.
    products : int
        Products with a second derivative.
    converged : bool
        False where `max_iters` came first.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> info = la.low_rank_plus_diagonal(torch.ones(9, 9) + torch.eye(9), 1).info
    >>> info.converged, round(info.norm**2, 9), info.error < 1e-5  # 72·1² + 9·2²
    (True, 108.0, True)
    """

    error: float
    norm: float
    off_diagonal: float
    decompositions: int
    products: int
    converged: bool


class _DiagonalFields(NamedTuple):
    left: Any
    right: Any
    diagonal: Any


class DiagonalResult(_DiagonalFields):
    """A ≈ left @ right, plus `diagonal` on the diagonal.

    Attributes
    ----------
    left : array, shape (m, rank)
        Orthogonal columns, the longest one first; the largest entry of each is real and positive.
    right : array, shape (rank, n)
        Orthogonal rows of the same lengths.
    diagonal : array, shape (min(m, n),)
    info : DiagonalInfo
        Not part of the tuple.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> result = la.low_rank_plus_diagonal(torch.ones(9, 9) + torch.eye(9), 1)
    >>> left, right, diagonal = result
    >>> torch.allclose(left @ right, torch.ones(9, 9)), torch.allclose(diagonal, torch.ones(9))
    (True, True)
    """

    info: DiagonalInfo

    def __new__(cls, left: Any, right: Any, diagonal: Any, info: DiagonalInfo) -> "DiagonalResult":
        self = super().__new__(cls, left, right, diagonal)
        self.info = info
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (*self, self.info)


@as_written
def low_rank_plus_diagonal(
    A: Any, rank: int, *, tol: float = 1e-6, max_iters: int = 300
) -> DiagonalResult:
    """Find a matrix of low rank and a diagonal one whose sum is near to A in the Frobenius norm.

    Parameters
    ----------
    A : array or Tensor, shape (m, n)
        Real or complex, square or not; the diagonal of a rectangular matrix is that of its leading
        square. float16 and bfloat16, as all types, are computed in double precision, integers are
        promoted to the default float type. Never written to.
    rank : int
        Between 1 and min(m, n).
    tol : float
        Until the diagonal of A − left·right, from which the best diagonal is to be taken, changes
        by at most tol·error; between 0 and 1. The error is then within some tol² of that of a
        stationary point, relatively.
    max_iters : int
        The most singular value decompositions for the rank itself; those on the way to it, 30 at
        most for each of their ranks, come on top.

    Returns
    -------
    DiagonalResult
        ``left`` (m, rank), ``right`` (rank, n) and ``diagonal`` (min(m, n),) of the kind, dtype and
        device of A, and ``info``.

    Raises
    ------
    ValueError
        `rank`, `tol` or `max_iters` out of range, an A that is no matrix, an entry that is not
        finite (its index is named).
    TypeError
        Sparse, or of another type.

    Warns
    -----
    ConvergenceWarning
        `max_iters` came before `tol` was met: ``info.converged`` is False. So it may be where there
        is no nearest sum, only ever nearer ones of growing entries.

    See Also
    --------
    robust_pca : low rank plus sparse, where nobody knows which entries.
    complete : other entries that do not count.

    Notes
    -----
    The diagonal takes up any error on the diagonal, so that A's does not matter: M is A with a
    diagonal x of unknowns, and least is to be f(x) = ‖M − L‖² for L its truncated SVD. Half the
    gradient is −g for g the diagonal of L − M. To replace x by x + g is what alternation of the two
    exact steps does, the best diagonal for L and the best L for the diagonal; it takes hundreds of
    SVDs for large ranks. Here g is multiplied by the inverse second derivative of f, which follows
    from that of a truncated SVD in closed form, by conjugate gradients in a trust region; a step as
    short as that of alternation is replaced by it, since it never fails: f falls by ‖g‖² or more.

    The problem is not convex. Small ranks first, each starting at the diagonal of the one before,
    lead to the generic sum of any rank that determines it (up to near n − √n for n × n), and the
    start is never worse than the truncated SVD of A with the diagonal of what is left. f never
    rises. That the result is a global minimum is not certified.

    Each SVD takes some 20·m·n·min(m, n) flops, each product with a second derivative 8·min(m,
    n)²·rank. Some 5 to 15 decompositions for the rank and 2 to 4 for each of log(rank)/log(1.4)
    smaller ones. All in double precision, scaled by a power of two. The error is measured, 2·m·n·
    rank flops. Not differentiable. Sources: for alternation, the principal factor method of factor
    analysis (Harman, Jones, "Factor analysis by minimizing residuals (minres)", Psychometrika 31,
    1966); T. Steihaug, "The conjugate gradient method and trust regions in large scale
    optimization", SIAM J. Numer. Anal. 20 (1983).

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> A = torch.arange(16.0).view(4, 4) + torch.diag(torch.tensor([9.0, -5.0, 7.0, 1.0]))
    >>> left, right, diagonal = result = la.low_rank_plus_diagonal(A, 2)
    >>> left.shape, right.shape, diagonal.shape, result.info.converged
    (torch.Size([4, 2]), torch.Size([2, 4]), torch.Size([4]), True)
    >>> bool(torch.dist(left @ right + torch.diag(diagonal), A) < 1e-5 * A.norm())
    True
    """
    adapted = adapt(A, _CALLER, complex_=True)
    given = adapted.tensor.detach()
    m, n = given.shape
    # The one column of an empty matrix is empty, too.
    limit = max(1, min(m, n))
    k = as_integer(rank, _CALLER, "rank")
    if not 1 <= k <= limit:
        raise ValueError(f"{_CALLER}: rank must be between 1 and min(m, n) = {limit}, got {k}")
    tol = as_tolerance(tol, _CALLER)
    most = at_least(max_iters, 1, _CALLER, "max_iters")
    check_finite(given, _CALLER, "A")
    wide = given.to(torch.complex128 if given.is_complex() else torch.float64)
    hollow = wide.clone()
    hollow.diagonal().zero_()
    power = power_of_two(hollow).squeeze()
    own = wide.diagonal()
    search = FreeDiagonal(hollow / power)
    found, converged = search.search(k, own / power, tol, most)
    root = power.sqrt()
    # Restoring narrows no complex type.
    narrow = given.dtype if given.is_complex() else wide.dtype
    left, right = (adapted.restore((factor * root).to(narrow)) for factor in found.factors())
    L = _double(left, wide) @ _double(right, wide)
    diagonal = adapted.restore((own - L.diagonal()).to(narrow))
    rest = own - L.diagonal() - _double(diagonal, wide)
    L.diagonal().zero_()
    off_diagonal = _norm(hollow)
    info = DiagonalInfo(
        error=math.hypot(_norm(hollow - L), _norm(rest[None])),
        norm=math.hypot(off_diagonal, _norm(own[None])),
        off_diagonal=off_diagonal,
        decompositions=search.decompositions,
        products=search.products,
        converged=converged,
    )
    if not converged:
        warn(
            f"{_CALLER}: tol = {tol:g} not met by {most} decompositions; the relative error is "
            f"{info.error / info.norm:.3g}",
            ConvergenceWarning,
        )
    return DiagonalResult(left, right, diagonal, info)


def _double(array: Any, like: Tensor) -> Tensor:
    return torch.as_tensor(array).to(like)


def _norm(A: Tensor) -> float:
    """‖A‖_F, whose squares may be out of range."""
    power = power_of_two(A)
    return norm(A / power) * float(power)
