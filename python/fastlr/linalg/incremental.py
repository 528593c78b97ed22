"""A truncated SVD that follows a matrix while rows and columns come, go and change."""

import cmath
import math
import sys
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fastlr import _core
from fastlr.linalg._arguments import as_real, as_tolerance, at_least
from fastlr.linalg._arrays import restored
from fastlr.linalg._autocast import as_written
from fastlr.linalg._sources import open_block
from fastlr.linalg._state import State
from fastlr.linalg._warnings import warn
from fastlr.linalg.results import ConvergenceWarning, SVDInfo, SVDResult

_OPS = torch.ops.fastlr

# Shorter buffers cost more in calls than in arithmetic.
_SHORTEST_BUFFER = 32
_NO_LIMIT = sys.maxsize


@dataclass(frozen=True)
class _Factors:
    """A ≈ left·core·rightᴴ and the error of that; a step makes new ones.

    `left` and `right` are chains: a block of rows, and then, again and again, a small matrix that
    multiplies all rows before it from the right, and further rows below. Multiplied out, both have
    orthonormal columns, the one that rows are not appended to but nearly.
    """

    left: list[Tensor]
    core: Tensor  # in double precision
    right: list[Tensor]
    # ‖A − left·core·rightᴴ‖_F ≤ settled + running + rounding. The errors in `running` are
    # orthogonal to `left` for axis 0, to `right` for axis 1: squares of further ones add up.
    settled: float = 0.0
    running: float = 0.0
    rounding: float = 0.0
    axis: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        m, n = (sum(len(block) for block in chain[::2]) for chain in (self.left, self.right))
        return m, n

    def adjoint(self) -> "_Factors":
        return replace(
            self,
            left=self.right,
            core=self.core.mH.resolve_conj(),
            right=self.left,
            axis=1 - self.axis,
        )

    def settle(self) -> "_Factors":
        """What follows may have errors in any direction."""
        return replace(self, settled=self.settled + self.running, running=0.0)

    def facing(self, axis: int) -> "_Factors":
        """What follows has errors that are orthogonal to the factor of this axis."""
        return self if self.axis == axis else replace(self.settle(), axis=axis)

    def scaled(self, factor: float) -> "_Factors":
        return replace(
            self,
            core=self.core * factor,
            settled=self.settled * factor,
            running=self.running * factor,
            rounding=self.rounding * factor,
        )

    def with_rows(self, rows: list[Tensor], most: int, tol: float) -> "_Factors":
        before = self.facing(0)
        lines = torch.cat([_composed(before.right).mH, *rows])
        rotation, core, right, error = _OPS.incremental_append(
            before.core, lines, most, tol, before._error()
        )
        old = len(before.core)
        blocks = [rotation[:old], rotation[old:].to(right.dtype)]
        return _Factors([*before.left, *blocks], core, [right], *error.tolist())

    def compressed(self, most: int, tol: float) -> "_Factors":
        """The same for a left and a right that are not orthonormal."""
        U, S, Vh, error = self.svd(0, most, tol)
        settled, running, rounding, _ = error.tolist()
        core = torch.diag(S).to(self.core.dtype)
        return _Factors([U], core, [Vh.mH.resolve_conj().contiguous()], settled, running, rounding)

    def svd(self, least: int, most: int, tol: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        factors: tuple[Tensor, Tensor, Tensor, Tensor] = _OPS.incremental_compress(
            _composed(self.left), self.core, _composed(self.right), least, most, tol, self._error()
        )
        return factors

    def _error(self) -> list[float]:
        return [self.settled, self.running, self.rounding]


class IncrementalSVD(State):
    """Follow the truncated SVD of a matrix that grows, shrinks and changes, and bound its error.

    Parameters
    ----------
    rank : int, optional
        Triplets that `result` returns, at least 1 (fewer where the matrix is smaller). With `tol`,
        the most that are returned.
    tol : float, optional
        Keep what ‖A − U·diag(S)·Vh‖_F ≤ tol·‖A‖_F needs, for 0 < tol < 1. Without `rank`,
        directions are kept as long as dropping them would break that.
    oversample : int
        Directions that are kept beyond `rank`: with none, a direction that grows slowly behind
        larger ones may be dropped again and again, and never found.
    buffer : int, optional
        Rows or columns that are collected before they are worked in, which any call that needs the
        factors does too. None: 2·(rank + oversample), at least 32 (64 without `rank`).
    decay : float
        What every appended row or column multiplies all before it by, 0 < decay ≤ 1: row i of m has
        the weight decay^(m − 1 − i).

    Raises
    ------
    ValueError
        Neither `rank` nor `tol`, or an argument out of range.
    TypeError
        A number of the wrong kind.

    Notes
    -----
    The kind (NumPy or torch), dtype and device of the first block are those of the results; further
    blocks have that dtype. float16 and bfloat16 are computed in float32; integers are promoted.
    Inputs are copied, never written to. A call that fails leaves everything as it was.

    With l = rank + oversample, an appended row costs some 2·n·(l + buffer)·(2·l + buffer)/buffer
    flops on average, 12·n·l for a buffer of 2·l, and a share of the eigenvalues of a matrix of
    order l + buffer; one pass. Rows are worked in when `buffer` of them are there, in whatever
    blocks they came: splits of the same rows give the same bits. Where the spectrum of what is kept
    spans more than 1e4, or little is dropped, rows are projected instead, at up to twice the cost.

    The left factor is kept as blocks of rows and the small rotations that came after each, m·l and
    m·l²/buffer numbers, and multiplied out by what needs it: `result`, columns after rows,
    removals, rank-one updates and merges, O((m + n)·l²) each. Columns are appended as the rows of
    Aᴴ.

    What rows drop is orthogonal to what rows dropped before: the squares add up, and are the whole
    error but for rounding. Where rows, columns and other changes take turns, bounds are added.
    ``info.error`` is that bound, with what `result` drops and an allowance for rounding
    (10·√(l + buffer)·u·‖A‖_F a step, added in squares); every singular value is that near to one
    of A.

    Sources: Brand, "Fast low-rank modifications of the thin singular value decomposition", Linear
    Algebra Appl. 415 (2006); Zha, Simon, "On updating problems in latent semantic indexing", SISC
    21 (1999). Not differentiable.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> A = la.random_matrix(500, 3, seed=0) @ la.random_matrix(3, 80, seed=1)
    >>> state = la.IncrementalSVD(3)
    >>> for row in A:
    ...     state.append_rows(row)
    >>> U, S, Vh = result = state.result()
    >>> bool(torch.linalg.matrix_norm(A - U * S @ Vh) <= result.info.error)
    True
    >>> state.shape, result.info.error < 1e-4 * S[0]
    ((500, 80), tensor(True))
    """

    _core: Tensor

    _FACTORS: ClassVar[tuple[str, ...]] = tuple(_Factors.__dataclass_fields__)
    _FIELDS = (
        *("rank", "tol", "oversample", "buffer", "decay", "dtype", "numpy"),
        *_FACTORS,
        *("shape", "waiting", "waiting_count", "waiting_axis"),
    )

    def __init__(
        self,
        rank: int | None = None,
        *,
        tol: float | None = None,
        oversample: int = 10,
        buffer: int | None = None,
        decay: float = 1.0,
    ) -> None:
        caller = "IncrementalSVD"
        if rank is None and tol is None:
            raise ValueError(f"{caller}: rank or tol must be given, got neither")
        self._rank = None if rank is None else at_least(rank, 1, caller, "rank")
        self._tol = None if tol is None else as_tolerance(tol, caller)
        self._oversample = at_least(oversample, 0, caller, "oversample")
        if buffer is not None:
            self._buffer = at_least(buffer, 1, caller, "buffer")
        elif self._rank is None:
            self._buffer = 2 * _SHORTEST_BUFFER
        else:
            self._buffer = max(2 * (self._rank + self._oversample), _SHORTEST_BUFFER)
        self._decay = as_real(decay, caller, "decay")
        if not 0 < self._decay <= 1:
            raise ValueError(f"{caller}: decay must be above 0 and at most 1, got {self._decay}")
        self._dtype: torch.dtype | None = None  # of the first block: None before it
        self._numpy = False
        nothing = torch.empty(0, 0, dtype=torch.float64)
        self._factors = _Factors([nothing], nothing, [nothing])
        self._shape = (0, 0)
        self._waiting: list[Tensor] = []  # rows that are not worked in, or rows of the adjoint
        self._waiting_count = 0
        self._waiting_axis = 0

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix so far: (0, 0) before the first block."""
        return self._shape

    @property
    def error_bound(self) -> float:
        """Bound of ‖A − U·diag(S)·Vh‖_F for what `result` returns, at the cost of that."""
        return self._truncated("IncrementalSVD.error_bound").info.error

    @as_written
    def append_rows(self, rows: Any) -> None:
        """Add rows below.

        Parameters
        ----------
        rows : array, Tensor or sparse matrix, shape (c, n) or (n,)
            Of any height, none included. SciPy's and torch's sparse matrices (COO, CSR, CSC) become
            dense a buffer at a time. Blocks on another device are moved.

        Raises
        ------
        ValueError
            Another number of columns than before, or an entry that is not finite: its index in the
            whole matrix is named.
        TypeError
            Another dtype than before, or none of the kinds above.
        """
        self._append(rows, 0, "IncrementalSVD.append_rows", "rows")

    @as_written
    def append_cols(self, cols: Any) -> None:
        """Add columns to the right.

        Parameters
        ----------
        cols : array, Tensor or sparse matrix, shape (m, c) or (m,)
            As in `append_rows`.

        Raises
        ------
        ValueError
            Another number of rows than before, or an entry that is not finite.
        TypeError
            As in `append_rows`.
        """
        self._append(cols, 1, "IncrementalSVD.append_cols", "cols")

    @as_written
    def remove_rows(self, indices: Any) -> None:
        """Delete rows, as ``numpy.delete(A, indices, axis=0)`` does.

        The bound of the error stays: without some of its rows the error is no larger.

        Parameters
        ----------
        indices : int or sequence of int
            Negative ones count from the end; one that is repeated is deleted once.

        Raises
        ------
        ValueError
            An index out of range.
        TypeError
            Indices that are not integers.
        """
        self._remove(indices, 0, "IncrementalSVD.remove_rows")

    @as_written
    def remove_cols(self, indices: Any) -> None:
        """Delete columns, as ``numpy.delete(A, indices, axis=1)`` does.

        Parameters
        ----------
        indices : int or sequence of int
            As in `remove_rows`.

        Raises
        ------
        ValueError, TypeError
            As in `remove_rows`.
        """
        self._remove(indices, 1, "IncrementalSVD.remove_cols")

    @as_written
    def update_rank_one(self, a: Any, b: Any) -> None:
        """Replace A by A + a·bᴴ.

        Parameters
        ----------
        a : array or Tensor, shape (m,)
        b : array or Tensor, shape (n,)
            Of the dtype of A.

        Raises
        ------
        ValueError
            A vector of another length, or one with an entry that is not finite.
        TypeError
            Another dtype than that of A.
        """
        caller = "IncrementalSVD.update_rank_one"
        before = self._complete(caller).settle()
        m, n = before.shape
        left, left_norm = _unit(self._vector(a, m, caller, "a"))
        right, right_norm = _unit(self._vector(b, n, caller, "b"))
        core = torch.nn.functional.pad(before.core, (0, 1, 0, 1))
        core[-1, -1] = left_norm * right_norm
        bordered = replace(
            before,
            left=[torch.cat([_composed(before.left), left[:, None]], 1)],
            core=core,
            right=[torch.cat([_composed(before.right), right[:, None]], 1)],
        )
        self._replace(bordered.compressed(self._most, self._inner_tol))

    @as_written
    def merge(self, other: "IncrementalSVD") -> None:
        """Add the rows of another state below, which stays as it is.

        With `decay`, all rows of this state come before all of the other one.

        Parameters
        ----------
        other : IncrementalSVD
            Of the same rank, tol, oversample, decay and dtype, and with as many columns.

        Raises
        ------
        ValueError
            A state that differs in one of these.
        TypeError
            Something else than a state.
        """
        caller = "IncrementalSVD.merge"
        if not isinstance(other, IncrementalSVD):
            raise TypeError(
                f"{caller}: other must be an IncrementalSVD, got {type(other).__name__}"
            )
        for name in ("rank", "tol", "oversample", "decay", "dtype"):
            mine, theirs = getattr(self, "_" + name), getattr(other, "_" + name)
            if mine != theirs:
                raise ValueError(f"{caller}: other must have {name} = {mine}, got {theirs}")
        if self.shape[1] != other.shape[1]:
            raise ValueError(
                f"{caller}: other must have {self.shape[1]} columns, got {other.shape[1]}"
            )
        above = self._complete(caller).facing(0).scaled(self._decay ** other.shape[0])
        below = other._complete(caller).facing(0)
        device = above.core.device
        right = _composed(below.right)
        # What the other state is, but for its left factor: few rows.
        rows = (below.core.to(right.dtype) @ right.mH).to(device)
        # The errors of both lie in rows of their own: their squares add up.
        both = replace(
            above,
            settled=math.hypot(above.settled, below.settled),
            running=math.hypot(above.running, below.running),
            rounding=math.hypot(above.rounding, below.rounding),
        ).with_rows([rows], self._most, self._inner_tol)
        last = _composed(below.left).to(device) @ both.left[-1]
        self._replace(replace(both, left=[*both.left[:-1], last]))

    @as_written
    def result(self) -> SVDResult:
        """Return the truncated SVD of the matrix so far; the state stays as it is, to the bit.

        Returns
        -------
        SVDResult
            ``U`` (m, k), ``S`` (k,), ``Vh`` (k, n), of the kind, dtype and device of the first
            block, k = min(rank, m, n), or fewer with `tol`. U and Vh are orthonormal to
            10·√k·u whatever the rank of A; singular values that are rounding noise are exact
            zeros. ``info.error`` bounds ‖A − U·diag(S)·Vh‖_F, and ``info.spectral_error`` its
            spectral norm, without a chance of failure; ``info.converged`` says whether `tol` was
            met.

        Raises
        ------
        ValueError
            Nothing was appended yet.

        Warns
        -----
        ConvergenceWarning
            `tol` was not met.
        """
        result = self._truncated("IncrementalSVD.result")
        if not result.info.converged:
            warn(
                f"IncrementalSVD.result: the error is at most {result.info.error:.3g}, "
                f"which is above tol = {self._tol} times the norm of A",
                ConvergenceWarning,
            )
        return result

    # ---- what is kept ----

    @property
    def _factors(self) -> _Factors:
        return _Factors(*(getattr(self, "_" + name) for name in self._FACTORS))

    @_factors.setter
    def _factors(self, factors: _Factors) -> None:
        for name in self._FACTORS:
            setattr(self, "_" + name, getattr(factors, name))

    @property
    def _most(self) -> int:
        return _NO_LIMIT if self._rank is None else self._rank + self._oversample

    @property
    def _inner_tol(self) -> float:
        """`result` drops what a rank does not need; without one it is dropped at once."""
        return self._tol if self._tol is not None and self._rank is None else 0.0

    # ---- growing ----

    def _append(self, block: Any, axis: int, caller: str, name: str) -> None:
        lines = self._copy_of_plain(block, axis)
        if lines is None:
            self._append_any(block, axis, caller, name)
        else:
            self._wait(lines, axis)

    def _copy_of_plain(self, block: Any, axis: int) -> Tensor | None:
        """Lines that only wait, and that need no closer look: most, and at a small cost."""
        if self._dtype is None or axis != self._waiting_axis or not self._core.is_cpu:
            return None
        room = self._buffer - 1 - self._waiting_count
        return _core.copy_of_plain_lines(block, axis, self._dtype, self._shape[1 - axis], room)

    def _wait(self, lines: Tensor, axis: int) -> None:
        height, width = lines.shape
        self._waiting = [*self._waiting, lines]
        self._waiting_count += height
        height += self._shape[axis]
        self._shape = (height, width) if axis == 0 else (width, height)

    def _append_any(self, block: Any, axis: int, caller: str, name: str) -> None:
        matrix = open_block(block, caller, name, axis=axis)
        lines = _lines(matrix.data, axis)
        opened = self._dtype is not None
        if opened:
            self._check_fit(matrix.dtype, lines, axis, caller, name)
            lines = lines.to(self._core.device)
        _check_finite(lines, self._shape[axis], axis, caller, name)
        height, width = lines.shape
        self._work_in(self._factors if opened else _empty(lines, axis), lines, axis)
        if not opened:
            self._dtype, self._numpy = matrix.dtype, matrix.numpy
        height += self._shape[axis]
        self._shape = (height, width) if axis == 0 else (width, height)

    def _check_fit(
        self, dtype: torch.dtype, lines: Tensor, axis: int, caller: str, name: str
    ) -> None:
        _check_dtype(dtype, self._dtype, caller, name)
        width = self._shape[1 - axis]
        if lines.shape[1] != width:
            kind = ("columns", "rows")[axis]
            raise ValueError(f"{caller}: {name} must have {width} {kind}, got {lines.shape[1]}")

    def _work_in(self, factors: _Factors, lines: Tensor, axis: int) -> None:
        """Append as many whole buffers as there are; what is left waits."""
        waiting, count = self._waiting, self._waiting_count
        if axis != self._waiting_axis:
            factors, waiting, count = self._worked_in(factors), [], 0
        first = 0
        while count + len(lines) - first >= self._buffer:
            stop = first + self._buffer - count
            rows = [*waiting, _dense(lines, first, stop)]
            factors, waiting, count, first = self._grown(factors, rows, axis), [], 0, stop
        self._factors = factors
        self._waiting = [*waiting, _dense(lines, first, len(lines)).clone()]
        self._waiting_count, self._waiting_axis = count + len(lines) - first, axis

    def _grown(self, factors: _Factors, rows: list[Tensor], axis: int) -> _Factors:
        if axis == 1:
            return self._grown(factors.adjoint(), rows, 0).adjoint()
        if self._decay < 1:
            block = torch.cat(rows)
            ages = torch.arange(len(block) - 1, -1, -1, dtype=torch.float64, device=block.device)
            rows = [block * (self._decay**ages).to(block.dtype.to_real())[:, None]]
            factors = factors.scaled(self._decay ** len(block))
        return factors.with_rows(rows, self._most, self._inner_tol)

    def _worked_in(self, factors: _Factors) -> _Factors:
        """What `factors` are with the rows that wait."""
        if self._waiting_count == 0:
            return factors
        return self._grown(factors, self._waiting, self._waiting_axis)

    def _complete(self, caller: str) -> _Factors:
        """The factors of the matrix so far."""
        if self._dtype is None:
            raise ValueError(f"{caller}: rows or columns must be appended first, got none")
        return self._worked_in(self._factors)

    def _replace(self, factors: _Factors) -> None:
        """Take over factors of the whole matrix."""
        self._factors, self._shape = factors, factors.shape
        self._waiting, self._waiting_count = [], 0

    def _remove(self, indices: Any, axis: int, caller: str) -> None:
        factors = self._complete(caller).settle()
        kept = _kept(indices, factors.shape[axis], caller)
        parts = {name: getattr(factors, name) for name in ("left", "right")}
        name = ("left", "right")[axis]
        parts[name] = [_composed(parts[name])[kept.to(factors.core.device)]]
        self._replace(replace(factors, **parts).compressed(self._most, self._inner_tol))

    def _vector(self, vector: Any, length: int, caller: str, name: str) -> Tensor:
        matrix = open_block(vector, caller, name, axis=0)
        _check_dtype(matrix.dtype, self._dtype, caller, name)
        if matrix.data.shape != (1, length):
            shape = tuple(np.shape(vector))
            raise ValueError(f"{caller}: {name} must have shape ({length},), got {shape}")
        _check_finite(matrix.data, 0, 0, caller, name)
        return _dense(matrix.data, 0, 1)[0].to(self._factors.core.device)

    def _truncated(self, caller: str) -> SVDResult:
        factors = self._complete(caller)
        most = _NO_LIMIT if self._rank is None else self._rank
        least = min(most, *factors.shape) if self._tol is None else 0
        U, S, Vh, error = factors.svd(least, most, self._tol or 0.0)
        settled, running, rounding, dropped = error.tolist()
        bound = settled + running + rounding
        # Nothing in `running` lies along U: A is no smaller than both together, less the rest.
        norm = math.hypot(*S.tolist(), running) - settled
        dtype = self._dtype
        assert dtype is not None
        info = SVDInfo(
            method="incremental",
            passes=1,
            error=bound,
            error_estimate=bound,
            failure_probability=0.0,
            spectral_error=settled + math.hypot(factors.running, dropped) + rounding,
            power_iters=0,
            converged=self._tol is None or bound <= self._tol * norm,
            precision=U.dtype,
        )
        U, S, Vh = (restored(part, dtype, numpy=self._numpy) for part in (U, S, Vh))
        return SVDResult(U, S, Vh, info)


def _empty(lines: Tensor, axis: int) -> _Factors:
    """A matrix without rows, as wide as `lines`."""
    nothing = torch.empty(0, 0, dtype=lines.dtype, device=lines.device)
    across = nothing.new_empty(lines.shape[1], 0)
    factors = _Factors([nothing], nothing.to(_wide(lines)), [across])
    return factors.adjoint() if axis == 1 else factors


def _composed(chain: list[Tensor]) -> Tensor:
    factor: Tensor = chain[0] if len(chain) == 1 else _OPS.incremental_compose(chain)
    return factor


def _lines(block: Tensor, axis: int) -> Tensor:
    """Rows that are to be appended: for columns, those of the adjoint."""
    if axis == 0:
        return block
    if block.layout == torch.strided:
        return block.mH
    columns = block.mT.to_sparse_csr()
    return torch.sparse_csr_tensor(
        columns.crow_indices(),
        columns.col_indices(),
        columns.values().conj_physical(),
        size=columns.shape,
        check_invariants=False,
    )


def _dense(lines: Tensor, first: int = 0, stop: int | None = None) -> Tensor:
    """Some of the rows, or all, contiguous."""
    if stop is None:
        return lines.to_dense().resolve_conj().contiguous()
    if lines.layout == torch.strided:
        return lines[first:stop].resolve_conj().contiguous()
    ends = lines.crow_indices()[first : stop + 1]
    entries = slice(int(ends[0]), int(ends[-1]))
    return torch.sparse_csr_tensor(
        ends - ends[0],
        lines.col_indices()[entries],
        lines.values()[entries],
        size=(len(ends) - 1, lines.shape[1]),
        check_invariants=False,
    ).to_dense()


def _unit(vector: Tensor) -> tuple[Tensor, float]:
    """The direction and the length of a vector, whose squares may be out of range."""
    largest = float(vector.abs().max()) if vector.numel() else 0.0
    if largest == 0:
        return vector, 0.0
    # In two steps: a power of two alone may be out of range.
    direction = vector / largest
    length = float(torch.linalg.vector_norm(direction, dtype=_wide(direction)))
    return direction / length, largest * length


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.complex128 if tensor.is_complex() else torch.float64


def _kept(indices: Any, size: int, caller: str) -> Tensor:
    """A mask of what stays."""
    chosen = np.atleast_1d(np.asarray(indices.cpu() if isinstance(indices, Tensor) else indices))
    if chosen.size and chosen.dtype.kind not in "iu":
        raise TypeError(f"{caller}: indices must be integers, got {chosen.dtype}")
    chosen = chosen.reshape(-1).astype(np.int64)
    outside = chosen[(chosen < -size) | (chosen >= size)]
    if outside.size:
        raise ValueError(
            f"{caller}: indices must be at least {-size} and below {size}, got {outside[0]}"
        )
    kept = torch.ones(size, dtype=torch.bool)
    kept[torch.from_numpy(chosen % max(size, 1))] = False
    return kept


def _check_dtype(dtype: torch.dtype, expected: torch.dtype | None, caller: str, name: str) -> None:
    if dtype != expected:
        raise TypeError(
            f"{caller}: {name} must have the dtype of what came before, {expected}, got {dtype}"
        )


def _check_finite(lines: Tensor, before: int, axis: int, caller: str, name: str) -> None:
    """Raise with the index in the whole matrix; `before`: the rows that are there already."""
    values = lines if lines.layout == torch.strided else lines.values()
    # Whatever is not finite makes the sum so: one short call for most blocks.
    if cmath.isfinite(values.sum().item()) or bool(values.isfinite().all()):
        return
    if lines.layout == torch.strided:
        places = (~lines.isfinite()).nonzero()
        values = lines[tuple(places.T)]
    else:
        entries = lines.to_sparse()
        wrong = ~entries.values().isfinite()
        places, values = entries.indices().T[wrong], entries.values()[wrong]
    places[:, 0] += before
    places = places.flip(1) if axis == 1 else places
    index, value = min(
        zip(places.tolist(), values.tolist(), strict=True), key=lambda entry: entry[0]
    )
    raise ValueError(f"{caller}: {name} must be finite, got {value} at index {tuple(index)}")
