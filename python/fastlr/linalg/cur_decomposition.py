"""CUR decompositions: a matrix from some of its own columns and rows."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from fastlr import _core
from fastlr.linalg._arguments import Seed, as_integer, as_seed, not_negative
from fastlr.linalg._arrays import check_one_matrix, restored
from fastlr.linalg._autocast import as_written
from fastlr.linalg._sources import Matrix, is_scipy_sparse, open_matrix
from fastlr.linalg._warnings import warn
from fastlr.linalg.random import random_matrix
from fastlr.linalg.results import ConvergenceWarning, ErrorInfo
from fastlr.linalg.svd import randomized_svd
from fastlr.linalg.volume_sampling import projection_dpp

_CALLER = "cur"
# The column of a seed's random matrix that picks without replacement are made of, beyond those of
# sketches and of the processes of `volume_sample`.
_OF_PICKS = 2**31 + 4
# Rows are drawn by another seed than columns: one bit differs.
_ROWS = 1 << 62
# The first rank that is tried for a tolerance.
_FIRST_RANK = 8

Select: TypeAlias = Literal["rrqr", "leverage", "deim", "volume", "uniform"]
Middle: TypeAlias = Literal["projection", "intersection"]


@dataclass(frozen=True)
class CURInfo(ErrorInfo):
    """`ErrorInfo` of a CUR decomposition.

    Attributes
    ----------
    rank : int
        Columns of C.
    kept : int
        The rank of U: below `rank` where further directions of C and R would add more rounding than
        they bring.
    converged : bool
        Whether `tol` is met.

    Of a batch, `error` and `error_estimate` are arrays of the batch's shape; `passes` is the
    largest, and `kept` the smallest.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> info = la.cur(torch.eye(50), 3, seed=0).info
    >>> info.method, info.passes, info.rank, info.kept
    ('rrqr, projection', 2, 3, 3)
    """

    rank: int
    kept: int
    converged: bool


class _CURFields(NamedTuple):
    C: Any
    U: Any
    R: Any
    rows: Any
    cols: Any


class CURResult(_CURFields):
    """A ≈ C @ U @ R with columns and rows of A itself, and `info` about how it was obtained.

    Attributes
    ----------
    C : array or sparse matrix, shape (…, m, k)
        ``A[:, cols]``.
    U : array, shape (…, k, k')
    R : array or sparse matrix, shape (…, k', n)
        ``A[rows]``; k' is k, or min(2·k, m) with ``middle="intersection"``.
    rows, cols : array of int64, shape (…, k') and (…, k)
        Distinct.
    info : CURInfo
        Not part of the tuple.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> C, U, R, rows, cols = la.cur(torch.diag(torch.tensor([1.0, 3.0, 2.0])), 2, seed=0)
    >>> sorted(rows.tolist()), sorted(cols.tolist())
    ([1, 2], [1, 2])
    """

    info: CURInfo

    def __new__(cls, C: Any, U: Any, R: Any, rows: Any, cols: Any, info: CURInfo) -> "CURResult":
        self = super().__new__(cls, C, U, R, rows, cols)
        self.info = info
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (*self, self.info)


@as_written
def cur(
    A: Any,
    rank: int | None = None,
    *,
    tol: float | None = None,
    select: Select = "rrqr",
    middle: Middle = "projection",
    seed: Seed = None,
) -> CURResult:
    """Approximate a matrix by some of its own columns and rows: A ≈ C·U·R.

    Parameters
    ----------
    A : array, Tensor, sparse matrix, operator or source of rows, shape (…, m, n)
        As for `randomized_svd`; leading dimensions are a batch. float16 and bfloat16 are computed
        in float32. Never written to.
    rank : int, optional
        Number k of columns, between 1 and min(m, n). With `tol`, the most that are returned.
    tol : float, optional
        Return a small k with ‖A − C·U·R‖_F ≤ tol·‖A‖_F: it is doubled until the upper estimate of
        the error says so, and then bisected, so that k − 1 has been tried and missed. At least 1.
    select : {"rrqr", "leverage", "deim", "volume", "uniform"}
        How columns and rows are chosen; all but the first and the last by the leading k singular
        vectors from `randomized_svd`.

        - "rrqr": columns by the strong pivots of a sketch of k + 10 rows, rows by those of C. The
          cheapest and, in general, the best.
        - "leverage": at random without replacement, one after the other with probabilities
          proportional to the leverage scores [3]_.
        - "deim": those that Gaussian elimination of the vectors takes as pivots [4]_.
        - "volume": at random, k at a time, by the square of their volume (`projection_dpp`).
        - "uniform": at random, all alike. Misses what few rows or columns have.
    middle : {"projection", "intersection"}
        "projection": U = C⁺·A·R⁺, with which no other U has a smaller error in the Frobenius norm.
        "intersection": U = A[rows, cols]⁺ [5]_, which needs nothing of A but rows and columns;
        then there are min(2·k, m) rows, those beyond the first k being the ones that they determine
        least.
    seed : int, torch.Generator or None
        Of sketches, draws and error probes.

    Returns
    -------
    CURResult
        ``C`` = ``A[:, cols]`` (m × k), ``U``, ``R`` = ``A[rows]``, ``rows`` and ``cols`` (int64,
        distinct), and ``info``. Of the kind and device of A; C and R of a sparse matrix are sparse.
        In the dtype of A, but float32 for half types, in which a U would be mostly rounding.

    Raises
    ------
    ValueError
        Neither `rank` nor `tol`, one of them out of range, an unknown `select` or `middle`, an
        entry that is not finite (its index is named where entries can be seen), a U that
        overflows (‖A‖ at the lower end of its type).
    TypeError
        An input of no such kind, a rank that is not an integer.

    Warns
    -----
    ConvergenceWarning
        `tol` was not met: within `rank`, or because rounding does not allow it.

    See Also
    --------
    interpolative : coefficients instead of U·R, or C·U: no digits are lost.
    pivoted_qr, volume_sample, leverage_scores

    Notes
    -----
    With E_C and E_R the errors of the projections on the chosen columns and rows,
    ‖A − C·U·R‖_F² ≤ ‖E_C‖_F² + ‖E_R‖_F² for "projection", and ‖A − C·U·R‖_F ≤ η·‖E_C‖_F for
    "intersection" with 1/η the smallest singular value of the rows that are chosen, of an
    orthonormal basis of C. Strong pivots of A itself have ‖E_C‖₂ ≤ √(1 + 4·k·(n − k))·σ_{k+1};
    "rrqr" takes those of a sketch. "volume" has E‖E_C‖_F² ≤ (k + 1)·‖A − A_k‖_F², and the same for
    rows, with A_k the best approximation of rank k and exact singular vectors. In practice
    ‖A − C·U·R‖_F is 1 to 5 times ‖A − A_k‖_F with "rrqr" and "deim", up to 8 times with "volume",
    with either middle [1]_ [2]_ [6]_. Draws by leverage, which may be alike, are up to 100 times
    worse than the best where singular values fall suddenly.

    What an explicit U costs: rounding it, and the products, adds some √k·u·κ·‖A‖_F for singular
    values of C that fall by κ. Singular directions of C and R, the smallest first, are left out
    where that is more than what they bring; so the error stays near the larger one of
    ‖A − C·C⁺·A·R⁺·R‖_F and √(√k·u)·‖A‖_F. ``info.error`` is measured with the C, U and R that are
    returned, in their precision, by 10 fresh random vectors.

    "rrqr": 2 passes over A ((k + 10) and k + 10 columns; 10 for "intersection"), 4·m·n·(k + 10)
    flops, and O((m + n)·k²). Other choices: those of `randomized_svd`, and two passes of k and 10
    columns. Sparse matrices, operators and sources are read twice more for C and R, by products
    with unit vectors. No power iteration: it would gain some 5 % for slowly decaying spectra and
    cost two passes. With `tol`, as much for every rank that is tried, and a pass for ‖A‖_F. Not
    differentiable.

    References
    ----------
    .. [1] S. Voronin, P.-G. Martinsson, "Efficient algorithms for CUR and interpolative matrix
       decompositions", Adv. Comput. Math. 43 (2017).
    .. [2] Y. Dong, P.-G. Martinsson, "Simpler is better: a comparative study of randomized
       pivoting algorithms for CUR and interpolative decompositions", Adv. Comput. Math. 49 (2023).
    .. [3] M. W. Mahoney, P. Drineas, "CUR matrix decompositions for improved data analysis", PNAS
       106 (2009), for leverage scores.
    .. [4] D. C. Sorensen, M. Embree, "A DEIM induced CUR factorization", SIAM J. Sci. Comput. 38
       (2016).
    .. [5] S. A. Goreinov, E. E. Tyrtyshnikov, N. L. Zamarashkin, "A theory of pseudoskeleton
       approximations", Linear Algebra Appl. 261 (1997), for the intersection.
    .. [6] A. Cortinovis, D. Kressner, "Low-rank approximation in the Frobenius norm by column and
       row subset selection", SIAM J. Matrix Anal. Appl. 41 (2020).

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> B = la.random_matrix(300, 5, seed=0, dtype=torch.float64)
    >>> A = B @ la.random_matrix(5, 200, seed=1, dtype=torch.float64)
    >>> C, U, R, rows, cols = result = la.cur(A, 5, seed=0)
    >>> torch.equal(C, A[:, cols]), torch.equal(R, A[rows]), torch.allclose(C @ U @ R, A)
    (True, True, True)
    >>> la.cur(A, tol=1e-8, seed=0).info.rank
    5
    """
    _check_choice(select, "select", ("rrqr", *_BY_VECTORS, "uniform"))
    _check_choice(middle, "middle", ("projection", "intersection"))
    if rank is None and tol is None:
        raise ValueError(f"{_CALLER}: give rank, tol, or both")
    matrix = open_matrix(A, _CALLER)
    *batch, m, n = matrix.data.shape
    most = min(m, n) if rank is None else as_integer(rank, _CALLER, "rank")
    if not 1 <= most <= min(m, n):
        raise ValueError(
            f"{_CALLER}: rank must be between 1 and min(m, n) = {min(m, n)}, got {most}"
        )
    number = as_seed(seed, _CALLER)
    if tol is not None:
        check_one_matrix(matrix.data.shape, _CALLER)
    if batch:
        return _of_batch(matrix, most, select, middle, number)
    problem = _Problem(A, matrix, select, middle, number)
    if tol is None:
        return problem.result(problem.factors(most), converged=True)
    allowed = not_negative(tol, _CALLER, "tol")
    factors, converged = _to_tolerance(problem, most, allowed)
    result = problem.result(factors, converged=converged)
    if not converged:
        warn(
            f"{_CALLER}: tol = {allowed:g} is not met by {result.info.rank} columns; the error is "
            f"{result.info.error:.3g} at most (see info)",
            ConvergenceWarning,
        )
    return result


class _Factors(NamedTuple):
    C: Tensor
    U: Tensor
    R: Tensor
    rows: Tensor
    cols: Tensor
    estimate: float
    upper: float
    failure: float
    kept: int

    @property
    def rank(self) -> int:
        return len(self.cols)


class _Problem:
    """One matrix, how its columns and rows are chosen, and the passes over it so far."""

    def __init__(self, A: Any, matrix: Matrix, select: str, middle: str, seed: int) -> None:
        self._given = A
        self._matrix = matrix
        self._select = select
        self._middle = middle
        self._seed = seed
        self._vectors: tuple[Tensor, Tensor] | None = None
        self.passes = matrix.reads

    def factors(self, rank: int) -> _Factors:
        cols, rows = self._chosen(rank)
        functions = torch.ops.fastlr if isinstance(self._matrix.data, Tensor) else _core
        C, U, R, rows, cols, numbers = functions.cur(
            self._matrix.data, rank, cols, rows, self._middle, self._seed
        )
        passes, estimate, upper, failure, kept = numbers.tolist()
        self.passes += int(passes)
        return _Factors(C, U, R, rows, cols, estimate, upper, failure, int(kept))

    def norm(self) -> float:
        """‖A‖_F, or a lower bound where only products are known."""
        _, lower, _, _, passes, _ = _core.frobenius_norm(self._operator(), 0.01, self._seed)
        self.passes += passes
        return lower

    def result(self, factors: _Factors, *, converged: bool) -> CURResult:
        data = self._matrix
        C, R = _sparse_lines(self._given, factors) or (
            restored(part, part.dtype, numpy=data.numpy) for part in (factors.C, factors.R)
        )
        U, rows, cols = (
            restored(part, part.dtype, numpy=data.numpy)
            for part in (factors.U, factors.rows, factors.cols)
        )
        info = CURInfo(
            method=f"{self._select}, {self._middle}",
            passes=self.passes,
            error=factors.upper,
            error_estimate=factors.estimate,
            failure_probability=factors.failure,
            rank=factors.rank,
            kept=factors.kept,
            converged=converged,
        )
        return CURResult(C, U, R, rows, cols, info)

    def _operator(self) -> _core.Operator:
        data = self._matrix.data
        if not isinstance(data, Tensor):
            found: _core.Operator = data
            return found
        return _core.operator_of_matrix(data.detach().resolve_conj())

    def _chosen(self, rank: int) -> tuple[Tensor | None, Tensor | None]:
        """The columns and rows; the core's own choice is None."""
        if self._select == "rrqr":
            return None, None
        others = self._seed ^ _ROWS
        if self._select == "uniform":
            m, n = self._matrix.data.shape
            device = self._matrix.data.device if isinstance(self._matrix.data, Tensor) else "cpu"
            one = torch.ones(max(m, n), dtype=torch.float64, device=device)
            return _picks(one[:n], rank, self._seed), _picks(one[:m], rank, others)
        rule = _BY_VECTORS[self._select]
        left, right = self._singular_vectors(rank)
        return rule(right, self._seed), rule(left, others)

    def _singular_vectors(self, rank: int) -> tuple[Tensor, Tensor]:
        """The leading ones; those of a larger rank before are not computed again."""
        if self._vectors is None or self._vectors[0].shape[1] < rank:
            self._operator().check_finite(_CALLER)
            data = self._matrix.data
            A = data.detach() if isinstance(data, Tensor) else self._given
            U, _, Vh = svd = randomized_svd(A, rank, seed=self._seed, out="torch")
            self.passes += 1 + svd.info.passes
            self._vectors = U, Vh.mH.resolve_conj()
        left, right = self._vectors
        return left[:, :rank], right[:, :rank]


def _to_tolerance(problem: _Problem, most: int, tol: float) -> tuple[_Factors, bool]:
    """A small rank whose error meets the tolerance, and whether it does."""
    below, found = 0, problem.factors(min(_FIRST_RANK, most))
    allowed = tol * problem.norm()
    while found.upper > allowed:
        if found.rank == most:
            return found, False
        more = problem.factors(min(2 * found.rank, most))
        if found.kept < found.rank and more.upper > found.upper / 2:
            # What is left out is left out because of rounding: further columns do not help.
            return min(found, more, key=lambda factors: factors.upper), False
        below, found = found.rank, more
    while found.rank - below > 1:
        between = problem.factors((found.rank + below) // 2)
        if between.upper <= allowed:
            found = between
        else:
            below = between.rank
    return found, True


def _of_batch(matrix: Matrix, rank: int, select: str, middle: str, seed: int) -> CURResult:
    """Matrix by matrix, with the same draws."""
    *batch, m, n = matrix.data.shape
    matrices = matrix.data.reshape(math.prod(batch), m, n)
    count = len(matrices)
    # An empty batch has the shapes of a batch of one.
    parts = [
        _Problem(one, Matrix(one, False, one.dtype), select, middle, seed)
        for one in (matrices if count else matrices.new_zeros(1, m, n))
    ]
    results = [part.result(part.factors(rank), converged=True) for part in parts]

    def stacked(values: Any) -> Any:
        whole = torch.stack(list(values))[:count]
        whole = whole.reshape(*batch, *whole.shape[1:])
        return restored(whole, whole.dtype, numpy=matrix.numpy)

    def numbers(name: str) -> Any:
        return stacked(
            torch.tensor(getattr(each.info, name), dtype=torch.float64) for each in results
        )

    info = CURInfo(
        method=f"{select}, {middle}",
        passes=max(each.info.passes for each in results),
        error=numbers("error"),
        error_estimate=numbers("error_estimate"),
        failure_probability=max(each.info.failure_probability for each in results),
        rank=rank,
        kept=min(each.info.kept for each in results),
        converged=True,
    )
    C, U, R, rows, cols = (stacked(fields) for fields in zip(*results, strict=True))
    return CURResult(C, U, R, rows, cols, info)


# ---- how columns and rows are chosen ----


def _by_leverage(V: Tensor, seed: int) -> Tensor:
    return _picks(V.abs().square().sum(1, dtype=torch.float64), V.shape[1], seed)


def _by_elimination(V: Tensor, seed: int) -> Tensor:
    """The rows that Gaussian elimination takes as pivots: DEIM's, one vector after the other."""
    _, pivots = torch.linalg.lu_factor(V)
    order = list(range(len(V)))
    for step, pivot in enumerate(pivots.tolist()):
        order[step], order[pivot - 1] = order[pivot - 1], order[step]
    return torch.tensor(order[: V.shape[1]], device=V.device)


def _by_volume(V: Tensor, seed: int) -> Tensor:
    found: Tensor = projection_dpp(V, seed=seed)
    return found


def _picks(weights: Tensor, count: int, seed: int) -> Tensor:
    """Numbers without replacement, each in proportion to its weight among those that are left.

    They are the first arrivals of clocks with these rates.
    """
    draws = random_matrix(
        len(weights), 1, kind="uniform", seed=seed, column_offset=_OF_PICKS, dtype=torch.float64
    )[:, 0].to(weights.device)
    # A weight of zero comes last, but it comes.
    arrivals = -draws.log() / weights.clamp(min=1e-300)
    return arrivals.topk(count, largest=False).indices


_BY_VECTORS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "leverage": _by_leverage,
    "deim": _by_elimination,
    "volume": _by_volume,
}


# ---- arguments and results ----


def _check_choice(value: Any, name: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        *others, last = (f'"{choice}"' for choice in choices)
        raise ValueError(f"{_CALLER}: {name} must be {', '.join(others)} or {last}, got {value!r}")


def _sparse_lines(A: Any, factors: _Factors) -> tuple[Any, Any] | None:
    """The columns and rows of a sparse matrix as sparse matrices of its kind."""
    dtype = factors.C.dtype
    if is_scipy_sparse(A):
        precision = torch.empty(0, dtype=dtype).numpy().dtype
        cols, rows = factors.cols.numpy(), factors.rows.numpy()
        return A.tocsc()[:, cols].astype(precision), A.tocsr()[rows].astype(precision)
    if isinstance(A, Tensor) and A.layout != torch.strided:
        entries = A.detach().to_sparse().coalesce().to(dtype)
        C, R = entries.index_select(1, factors.cols), entries.index_select(0, factors.rows)
        return C.coalesce().to_sparse(layout=A.layout), R.coalesce().to_sparse(layout=A.layout)
    return None
