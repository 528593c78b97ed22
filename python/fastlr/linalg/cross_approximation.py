"""Adaptive cross approximation: a matrix from a few of its rows and columns."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastlr.linalg._arguments import Seed, as_integer, as_real, as_seed, at_least
from fastlr.linalg._arrays import Adapted, adapt
from fastlr.linalg._autocast import as_written
from fastlr.linalg._warnings import warn
from fastlr.linalg.random import random_matrix
from fastlr.linalg.results import ConvergenceWarning

_CALLER = "cross"

Entry = Callable[[Tensor, Tensor], Any]

_PIVOTING = ("partial", "rook", "full")
# Entries are sampled by blocks of 4 × 4, whose diagonals are the independent ones: a sixteenth of
# the calls that single entries need would cost sixteen times the entries, a quarter four times.
_BLOCK = 4
# Where in the random matrix of the seed the positions stand: beyond the columns that a matrix made
# from the same seed has, and beside the draws of row samples.
_DRAWS = (1 << 31) + 1
# A sampled estimate has to be below tol by this factor. It is a fifth too small in smooth kernels,
# five times in singular ones, at worst; errors were below tol in 325 runs of 25 seeds.
_MARGIN = 2
# A pivot below this multiple of (crosses + 1)·eps·(largest entry) is rounding.
_ROUNDING = 4


@dataclass(frozen=True)
class CrossInfo:
    """How a cross approximation was obtained and how far it may be from A.

    Attributes
    ----------
    pivoting : {"partial", "rook", "full"}
    row_evaluations, col_evaluations : int
        Whole rows and columns that were asked for; 0 where A was evaluated as a whole.
    entries : int
        Entries of A that were evaluated, the samples' included.
    calls : int
        Of `entry`.
    relative_error : float
        Estimate of ‖A − C @ coefficients‖_F / ‖A‖_F from a sample that led to no pivot; of all
        entries where A was evaluated as a whole. No bound: what no sampled entry shows is not in
        it, and rounding in the rows and columns of the crosses is not either.
    converged : bool
        False where `tol` was not met.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> A = torch.arange(60000.0).reshape(300, 200)  # of rank 2
    >>> info = la.cross(lambda rows, cols: A[rows][:, cols], (300, 200), tol=1e-4, seed=0).info
    >>> info.row_evaluations, info.col_evaluations, info.converged
    (2, 2, True)
    """

    pivoting: str
    row_evaluations: int
    col_evaluations: int
    entries: int
    calls: int
    relative_error: float
    converged: bool


class _CrossFields(NamedTuple):
    C: Any
    coefficients: Any
    rows: Any
    cols: Any


class CrossResult(_CrossFields):
    """A ≈ C @ coefficients: columns of A, and what rows of A say that the others are in them.

    Attributes
    ----------
    C : array, shape (m, k)
        A[:, cols], as `entry` returned it.
    coefficients : array, shape (k, n)
        A[rows][:, cols]⁻¹ @ A[rows], the identity at `cols`.
    rows, cols : array of int64, shape (k,)
        Unique, in the order in which they were chosen.
    info : CrossInfo
        Not part of the tuple.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> A = torch.arange(60000.0).reshape(300, 200)
    >>> result = la.cross(lambda rows, cols: A[rows][:, cols], (300, 200), rank=2, seed=0)
    >>> C, coefficients, rows, cols = result
    >>> torch.equal(C, A[:, cols]), result.info.converged
    (True, True)
    """

    info: CrossInfo

    def __new__(
        cls, C: Any, coefficients: Any, rows: Any, cols: Any, info: CrossInfo
    ) -> "CrossResult":
        self = super().__new__(cls, C, coefficients, rows, cols)
        self.info = info
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (*self, self.info)


@as_written
def cross(
    entry: Entry,
    shape: tuple[int, int],
    *,
    rank: int | None = None,
    tol: float | None = None,
    pivoting: str = "partial",
    samples: int = 700,
    seed: Seed = None,
) -> CrossResult:
    """Approximate a matrix that is known by its entries, from a few of its rows and columns.

    Parameters
    ----------
    entry : callable
        ``entry(rows, cols)`` returns the block A[rows][:, cols], shape (len(rows), len(cols)), for
        two int64 Tensors on the CPU, in which indices may repeat. A Tensor on any device or a NumPy
        array, of one dtype: real or complex; float16 and bfloat16 are computed in float32. NumPy
        takes an index Tensor of one element for a number: index its arrays by ``rows.numpy()``.
    shape : (int, int)
        m and n.
    rank : int, optional
        The most crosses, between 1 and min(m, n). Fewer are taken where A has no more to
        rounding. min(m, n) if None.
    tol : float, optional
        Until the last cross and the sampled residual are both at most tol·‖A‖_F. At least one of
        `rank` and `tol` is needed.
    pivoting : {"partial", "rook", "full"}
        The next pivot is the largest residual entry of one row; of its row and of its column; or of
        all, which evaluates the whole matrix (m·n entries in memory): for small ones.
    samples : int
        Independent positions, uniform with replacement, in each of the samples at which the
        residual is watched. Rounded up to a multiple of 4.
    seed : int, torch.Generator or None
        Of these positions.

    Returns
    -------
    CrossResult
        ``C`` = A[:, cols] (m × k), ``coefficients`` (k × n), ``rows`` and ``cols``, unique, of the
        kind, dtype and device of what `entry` returns, and ``info``. A matrix whose sampled entries
        are all zero gives k = 0.

    Raises
    ------
    ValueError
        `rank` or `tol` out of range or both None, an unknown pivoting; an `entry` that returns
        another shape than it should, another dtype, kind or device than at first, or an entry that
        is not finite (the message has its row and column). What `entry` raises is passed on.
    TypeError
        An `entry` that cannot be called or returns no numbers.

    Warns
    -----
    ConvergenceWarning
        `tol` was not met by `rank` crosses, or not before the residual was rounding.

    See Also
    --------
    interpolative : for matrices that are at hand.

    Notes
    -----
    Gaussian elimination on the residual: row i and column j of it are computed from those of A and
    the crosses so far, and E − E[:, j]·E[i]/E[i, j] is the next residual. With k crosses the
    approximation is C·G⁻¹·R for C = A[:, cols], R = A[rows] and G = A[rows][:, cols]. G⁻¹ is not
    returned: it has entries of size 1/tol, whose rounding alone would leave an error of u/tol in
    C @ G⁻¹ @ R. `coefficients` are small, and C @ coefficients is exact to some k·u times the
    largest of them.

    A first sample guides: the next row is that of its largest residual, so that parts of A that no
    pivot would lead to are found. When the last cross and the guide's estimate of ‖A − C @
    coefficients‖_F are at most tol·‖A‖_F/2, a fresh sample has to say so, too; if it does not, it
    joins the guide. The fresh one has led to no pivot, and the square of its estimate is unbiased.
    A set of entries that are p of all those outside of the crosses is missed by a sample of s
    positions with probability (1 − p)^s at most: 1 % of the entries by both samples with 1e-6, by
    one with 9e-4, for the default. What is missed, be it the rest of a block that was hit, is
    neither approximated nor in ``info.relative_error``; no method that sees few entries can do
    without such a probability.

    About (m + n)·k + 8·s entries, in 2·k + s/2 calls; all entries in one call where m·n ≤ 8·s. Rook
    pivoting takes some rows and columns more. O((m + n + s)·k²) flops.

    Sources: M. Bebendorf, "Approximation of boundary element matrices", Numer. Math. 86 (2000); M.
    Bebendorf, S. Rjasanow, "Adaptive low-rank approximation of collocation matrices", Computing 70
    (2003); E. Tyrtyshnikov, "Incomplete cross approximation in the mosaic-skeleton method",
    Computing 64 (2000). Not differentiable.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> x = torch.linspace(0, 1, 2000, dtype=torch.float64)
    >>> y = torch.linspace(2, 3, 3000, dtype=torch.float64)
    >>> kernel = lambda rows, cols: 1 / (x[rows, None] - y[cols]).abs()
    >>> C, coefficients, rows, cols = result = la.cross(kernel, (2000, 3000), tol=1e-10, seed=0)
    >>> len(cols) < 12, result.info.entries < 0.01 * 2000 * 3000
    (True, True)
    >>> A = 1 / (x[:, None] - y).abs()
    >>> bool(torch.dist(C @ coefficients, A) < 1e-10 * A.norm())
    True
    """
    m, n = _shape(shape)
    limit, tol = _limits(rank, tol, m, n)
    if not callable(entry):
        raise TypeError(f"{_CALLER}: entry must be a function, got {entry!r}")
    if pivoting not in _PIVOTING:
        raise ValueError(f"{_CALLER}: pivoting must be one of {_PIVOTING}, got {pivoting!r}")
    size = _BLOCK * math.ceil(at_least(samples, 1, _CALLER, "samples") / _BLOCK)
    entries = _Entries(entry, m, n)
    approximation = _Approximation(entries, pivoting, size, as_seed(seed, _CALLER))
    # No residual is below a tolerance of −1.
    error = approximation.extend(limit, -1.0 if tol is None else tol)
    converged = tol is None or error <= tol
    info = CrossInfo(
        pivoting,
        entries.row_evaluations,
        entries.col_evaluations,
        entries.count,
        entries.calls,
        error,
        converged,
    )
    if not converged:
        warn(
            f"{_CALLER}: tol={tol:g} not met by {len(approximation.rows)} crosses; the estimated "
            f"relative error is {error:.3g}",
            ConvergenceWarning,
        )
    C, coefficients, rows, cols = map(entries.restore, approximation.factors())
    return CrossResult(C, coefficients, rows, cols, info)


def _shape(shape: Any) -> tuple[int, int]:
    try:
        m, n = shape
    except (TypeError, ValueError):
        raise ValueError(f"{_CALLER}: shape must be two integers, got {shape!r}") from None
    return at_least(m, 0, _CALLER, "shape[0]"), at_least(n, 0, _CALLER, "shape[1]")


def _limits(rank: Any, tol: Any, m: int, n: int) -> tuple[int, float | None]:
    if rank is None and tol is None:
        raise ValueError(f"{_CALLER}: rank or tol must be given, got neither")
    if tol is not None:
        tol = as_real(tol, _CALLER, "tol")
        if not tol > 0:
            raise ValueError(f"{_CALLER}: tol must be positive, got {tol}")
    if rank is None:
        return min(m, n), tol
    limit = as_integer(rank, _CALLER, "rank")
    if not 1 <= limit <= min(m, n):
        raise ValueError(
            f"{_CALLER}: rank must be between 1 and min(m, n) = {min(m, n)}, got {limit}"
        )
    return limit, tol


class _Entries:
    """The user's function: checked, counted, and kept where it has returned the whole matrix."""

    def __init__(self, entry: Entry, m: int, n: int) -> None:
        self.shape = (m, n)
        self.calls = self.count = self.row_evaluations = self.col_evaluations = 0
        self._entry = entry
        self._first: Adapted | None = None
        self._all: Tensor | None = None

    def block(self, rows: Tensor, cols: Tensor) -> Tensor:
        """A[rows][:, cols]."""
        self.calls += 1
        self.count += len(rows) * len(cols)
        # Clones, as the function may write to what it gets.
        block = self._adapted(self._entry(rows.clone(), cols.clone()), (len(rows), len(cols)))
        finite = torch.isfinite(block)
        if not bool(finite.all()):
            i, j = finite.logical_not().nonzero()[0].tolist()
            raise ValueError(
                f"{_CALLER}: entry must return finite numbers, got {block[i, j].item()} "
                f"at row {int(rows[i])}, column {int(cols[j])}"
            )
        return block

    def _adapted(self, returned: Any, shape: tuple[int, int]) -> Tensor:
        if np.shape(returned) != shape:
            raise ValueError(
                f"{_CALLER}: entry must return shape {shape} for {shape[0]} rows and {shape[1]} "
                f"columns, got {tuple(np.shape(returned))}"
            )
        adapted = adapt(returned, _CALLER, "what entry returns", complex_=True)
        if self._first is None:
            self._first = adapted
        if _kind(adapted) != _kind(self._first):
            raise ValueError(
                f"{_CALLER}: entry must always return one kind, dtype and device, got "
                f"{_kind(adapted)} after {_kind(self._first)}"
            )
        return adapted.tensor.detach()

    def whole(self) -> Tensor:
        m, n = self.shape
        self._all = self.block(torch.arange(m), torch.arange(n))
        return self._all

    def row(self, i: int) -> Tensor:
        if self._all is not None:
            return self._all[i]
        self.row_evaluations += 1
        return self.block(torch.tensor([i]), torch.arange(self.shape[1]))[0]

    def column(self, j: int) -> Tensor:
        if self._all is not None:
            return self._all[:, j]
        self.col_evaluations += 1
        return self.block(torch.arange(self.shape[0]), torch.tensor([j]))[:, 0]

    # What all blocks have is known from the first one.

    @property
    def dtype(self) -> torch.dtype:
        return self._known().tensor.dtype

    @property
    def device(self) -> torch.device:
        return self._known().tensor.device

    def restore(self, result: Tensor) -> Any:
        return self._known().restore(result)

    def _known(self) -> Adapted:
        assert self._first is not None
        return self._first


def _kind(adapted: Adapted) -> str:
    library = "NumPy" if adapted.numpy else "torch"
    return f"{library} {adapted.dtype} on {adapted.tensor.device}"


class _Sample:
    """The residual in blocks of the matrix, groups × a × b, from which that of all is estimated."""

    def __init__(self, rows: Tensor, cols: Tensor, blocks: Tensor) -> None:
        self._rows, self._cols = rows, cols  # groups × a, groups × b
        self._residual = blocks
        self._open = torch.ones_like(blocks, dtype=torch.bool)  # in no row or column of a cross

    def scale(self, factor: float) -> None:
        self._residual = self._residual * factor

    def subtract(self, u: Tensor, v: Tensor, rows: list[int], cols: list[int]) -> None:
        """Take away the crosses u[k]·v[k]ᵀ of these rows and columns, in which nothing is left."""
        self._residual = self._residual - torch.einsum(
            "kga,kgb->gab", u[:, self._rows], v[:, self._cols]
        )
        taken_rows, taken_cols = (
            torch.isin(positions, torch.tensor(taken, dtype=torch.int64, device=u.device))
            for positions, taken in ((self._rows, rows), (self._cols, cols))
        )
        taken = taken_rows[:, :, None] | taken_cols[:, None, :]
        self._residual.masked_fill_(taken, 0)
        self._open.masked_fill_(taken, False)

    def join(self, other: "_Sample") -> None:
        self._rows = torch.cat([self._rows, other._rows])
        self._cols = torch.cat([self._cols, other._cols])
        self._residual = torch.cat([self._residual, other._residual])
        self._open = torch.cat([self._open, other._open])

    def norm(self, open_entries: int) -> float:
        """Estimate of the norm of the residual of which so many entries are in no cross."""
        weight = open_entries / max(int(self._open.sum()), 1)
        return math.sqrt(weight) * float(torch.linalg.vector_norm(self._residual))

    def worst(self) -> tuple[int, float]:
        """The row of the largest entry, and its size."""
        if self._residual.numel() == 0:
            return 0, 0.0
        _, a, b = self._residual.shape
        at, size = _largest(self._residual.flatten())
        return int(self._rows[at // (a * b), at // b % a]), size


def _whole(entries: _Entries) -> _Sample:
    matrix = entries.whole()
    rows, cols = (torch.arange(size, device=matrix.device)[None] for size in matrix.shape)
    return _Sample(rows, cols, matrix[None])


def _sampled(entries: _Entries, positions: Tensor, taken: tuple[list[int], list[int]]) -> _Sample:
    """Blocks at `positions`, numbers on (0, 1], among the rows and columns that are in no cross."""
    rows, cols = (
        _without(size, numbers)[(u * (size - len(numbers))).ceil().long() - 1].reshape(-1, _BLOCK)
        for size, numbers, u in zip(entries.shape, taken, positions.T, strict=True)
    )
    blocks = torch.stack([entries.block(*at) for at in zip(rows, cols, strict=True)])
    return _Sample(rows.to(blocks.device), cols.to(blocks.device), blocks)


def _without(size: int, taken: list[int]) -> Tensor:
    kept = torch.ones(size, dtype=torch.bool)
    kept[taken] = False
    return kept.nonzero()[:, 0]


class _Cross(NamedTuple):
    i: int
    j: int
    row: Tensor  # of the residual
    column: Tensor
    entries: Tensor  # of column j of A


class _Approximation:
    """A ≈ Σ u·vᵀ, where the residual's column over the pivot is u, and its row v."""

    def __init__(self, entries: _Entries, pivoting: str, samples: int, seed: int) -> None:
        self.rows: list[int] = []
        self.cols: list[int] = []
        self._entries, self._rook = entries, pivoting == "rook"
        self._samples, self._seed, self._drawn = samples, seed, 0
        m, n = entries.shape
        # Of small matrices the samples would have all entries.
        self._exact = pivoting == "full" or m * n <= 2 * samples * _BLOCK
        # The guide shows where the residual is large.
        self._guide = _whole(entries) if self._exact else self._draw()
        largest = self._guide.worst()[1]
        # By a power of two: squares neither overflow nor vanish.
        power = math.ldexp(1.0, math.frexp(largest)[1]) if largest else 1.0
        self._scale = 1 / max(power, torch.finfo(entries.dtype).tiny)
        self._guide.scale(self._scale)
        self._largest = largest * self._scale
        self._u, self._v, self._columns = (
            torch.empty(1, size, dtype=entries.dtype, device=entries.device) for size in (m, n, m)
        )
        self._square = 0.0  # of the norm of the sum
        self._norm = self._guide.norm(m * n) if self._exact else None

    def extend(self, limit: int, tol: float) -> float:
        """Add crosses up to a number or a tolerance; return the estimated relative error."""
        aim = tol if self._exact else tol / _MARGIN
        while True:
            before = len(self.rows)
            self._follow_guide(limit, aim)
            if self._exact or len(self.rows) == min(self._entries.shape):
                return self._relative(self._guide)
            check = self._check()
            error = self._relative(check)
            # An `entry` that is not the same in every call may lead to no pivot.
            stuck = len(self.rows) == before
            if len(self.rows) == limit or stuck or error <= aim:
                return error
            if check.worst()[1] <= self._rounding():
                return error
            self._guide.join(check)

    def _follow_guide(self, limit: int, aim: float) -> None:
        """Add crosses until the last one and what the guide shows are small enough."""
        while len(self.rows) < limit:
            found = self._find()
            if found is None:
                return
            step = self._add(found)
            if self._relative(self._guide, step) <= aim:
                return

    def _check(self) -> _Sample:
        """A sample that has led to no pivot; pivots make the guide's residual smaller than A's."""
        check = self._draw()
        check.scale(self._scale)
        k = len(self.rows)
        check.subtract(self._u[:k], self._v[:k], self.rows, self.cols)
        return check

    def _draw(self) -> _Sample:
        positions = random_matrix(
            self._samples,
            2,
            kind="uniform",
            seed=self._seed,
            row_offset=self._drawn,
            column_offset=_DRAWS,
            dtype=torch.float64,
        )
        self._drawn += self._samples
        return _sampled(self._entries, positions, (self.rows, self.cols))

    def _relative(self, sample: _Sample, step: float = 0.0) -> float:
        """The residual, or a cross that is larger, by the norm of A."""
        m, n = self._entries.shape
        k = len(self.rows)
        residual = sample.norm((m - k) * (n - k))
        # Of what is approximated, and of what the sample shows is not.
        norm = self._norm or math.hypot(math.sqrt(max(self._square, 0.0)), residual)
        return max(step, residual) / norm if norm else 0.0

    def factors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """C, coefficients, rows, cols."""
        k, device = len(self.rows), self._u.device
        rows, cols = (
            torch.tensor(indices, dtype=torch.int64, device=device)
            for indices in (self.rows, self.cols)
        )
        v = self._v[:k]
        # Zero below the diagonal, as later rows are where earlier pivots were.
        coefficients = torch.linalg.solve_triangular(v[:, cols], v, upper=True)
        return self._columns[:k].mT.contiguous(), coefficients, rows, cols

    def _find(self) -> _Cross | None:
        """The next cross; None where all that the guide shows is rounding."""
        row, size = self._guide.worst()
        return self._from_row(row) if size > self._rounding() else None

    def _from_row(self, i: int) -> _Cross | None:
        row = self._residual_row(i)
        j, size = _largest(row)
        if size <= self._rounding():
            return None
        column, entries = self._residual_column(j)
        # `size` grows with every move, so that this ends.
        while self._rook:
            best, found = _largest(column)
            if found <= size:
                break
            i, size, row = best, found, self._residual_row(best)
            best, found = _largest(row)
            if found <= size:
                break
            j, size = best, found
            column, entries = self._residual_column(best)
        return _Cross(i, j, row, column, entries)

    def _residual_row(self, i: int) -> Tensor:
        k = len(self.rows)
        row = self._seen(self._entries.row(i)) - self._u[:k, i] @ self._v[:k]
        row[self.cols] = 0
        return row

    def _residual_column(self, j: int) -> tuple[Tensor, Tensor]:
        k = len(self.rows)
        entries = self._entries.column(j)
        column = self._seen(entries) - self._v[:k, j] @ self._u[:k]
        column[self.rows] = 0
        return column, entries

    def _seen(self, entries: Tensor) -> Tensor:
        scaled = entries * self._scale
        self._largest = max(self._largest, _largest(scaled)[1])
        return scaled

    def _rounding(self) -> float:
        eps = torch.finfo(self._u.dtype).eps
        return _ROUNDING * (len(self.rows) + 1) * eps * self._largest

    def _add(self, cross: _Cross) -> float:
        """Take a cross away from the residual; return its norm."""
        k, u, v = len(self.rows), cross.column / cross.row[cross.j], cross.row
        # ‖S + uvᵀ‖² by the inner products of the crosses.
        inner = (self._u[:k].conj() @ u) @ (self._v[:k].conj() @ v)
        step = float(torch.linalg.vector_norm(u)) * float(torch.linalg.vector_norm(v))
        self._square += 2 * float(inner.real) + step**2
        self._u, self._v, self._columns = (
            _with_row(buffer, k, row)
            for buffer, row in ((self._u, u), (self._v, v), (self._columns, cross.entries))
        )
        self.rows.append(cross.i)
        self.cols.append(cross.j)
        self._guide.subtract(u[None], v[None], [cross.i], [cross.j])
        return step


def _largest(vector: Tensor) -> tuple[int, float]:
    """The index of the entry of largest magnitude, and that."""
    size, index = vector.abs().max(0)
    return int(index), float(size)


def _with_row(buffer: Tensor, k: int, row: Tensor) -> Tensor:
    """The buffer with row k written, doubled where it was full."""
    if k == len(buffer):
        buffer = torch.cat([buffer, torch.empty_like(buffer)])
    buffer[k] = row
    return buffer
