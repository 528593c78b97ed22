"""Completion of a matrix from some of its entries."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastlr import _core
from fastlr.linalg._arguments import Seed, as_integer, as_seed, at_least, not_negative
from fastlr.linalg._arrays import restored
from fastlr.linalg._autocast import as_written
from fastlr.linalg._observed import (
    Observed,
    ObservedRows,
    as_indices,
    check_rank,
    has_enough,
    open_observed,
)
from fastlr.linalg._state import State
from fastlr.linalg._warnings import warn
from fastlr.linalg.results import ConvergenceWarning

_CALLER = "complete"

Method = Literal["altmin", "als"]
Solver = Literal["auto", "cholesky", "cg"]

_METHODS = ("altmin", "als")
_SOLVERS = ("auto", "cholesky", "cg")

# Gram matrices of more rows and columns cost more than steps of conjugate gradients do
# (docs/theory/completion.md).
_LARGEST_GRAM = 64
_MOST_SWEEPS = {"altmin": 200, "als": 50}
# Of the objective, a sweep. altmin stops by what is left, at a multiple of rounding.
_ALS_TOL = 1e-4
# Entries that are predicted at a time.
_BLOCK = 1 << 18


@dataclass(frozen=True)
class CompletionInfo:
    """How a completion was obtained.

    Attributes
    ----------
    method : {"altmin", "als", "soft_impute"}
    solver : {"cholesky", "cg"}
        What solved the least-squares problems of the rows.
    sweeps : int
        A sweep finds both factors once.
    relative_residual : float
        Of the observed entries, ‖values − fit‖ / ‖values‖, with the weights. It says nothing of the
        others: `validation` does.
    determined : bool
        False where there are fewer observations than rank·(m + n − rank), or fewer than `rank` in
        some row or column: then other matrices of this rank fit as well.
    converged : bool
        False where `max_sweeps` were not enough.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> A = torch.arange(1.0, 9)[:, None] * torch.arange(1.0, 7)
    >>> mask = (torch.arange(8)[:, None] + torch.arange(6)) % 3 > 0
    >>> info = la.complete(A, rank=1, mask=mask, seed=0).info
    >>> info.method, info.solver, info.determined, info.converged
    ('altmin', 'cholesky', True, True)
    """

    method: str
    solver: str
    sweeps: int
    relative_residual: float
    determined: bool
    converged: bool


@dataclass(frozen=True)
class CompletionHistory:
    """What every sweep left; a tuple has an entry for each.

    Attributes
    ----------
    objective : tuple of float
        The weighted squares of what is left of the observed entries, and for "als" the ridge.
    training_error : tuple of float
        The root of the weighted mean of squares over the observed entries.
    validation_error : tuple of float
        The same over the entries of `validation`; empty without any.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> A = torch.arange(1.0, 9)[:, None] * torch.arange(1.0, 7)
    >>> mask = (torch.arange(8)[:, None] + torch.arange(6)) % 3 > 0
    >>> history = la.complete(A, rank=1, mask=mask, seed=0).history
    >>> history.training_error[-1] < 1e-3 < history.training_error[0], history.validation_error
    (True, ())
    """

    objective: tuple[float, ...]
    training_error: tuple[float, ...]
    validation_error: tuple[float, ...]


class TopK(NamedTuple):
    """The largest entries of a row.

    Attributes
    ----------
    indices : array of int64, shape (k,)
        Columns, the one with the largest entry first.
    values : array, shape (k,)

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> nan = float("nan")
    >>> A = torch.tensor([[1.0, 2, 3, nan], [2, 4, nan, 8], [nan, 6, 9, 12]])
    >>> la.complete(A, rank=1, seed=0).top_k(0, 2, exclude_seen=False).indices
    tensor([3, 2])
    """

    indices: Any
    values: Any


class Completion(State):
    """A matrix of low rank that was found from some of its entries; made by `complete` and `load`.

    Entry (i, j) is ``mean + row_biases[i] + col_biases[j] + U[i] @ V[j]``; without biases, the
    product alone.

    Raises
    ------
    TypeError
        It was called, instead of `complete` or `load`.

    Notes
    -----
    It is saved with the indices of the observed entries, which `top_k` leaves out.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> nan = float("nan")
    >>> A = torch.tensor([[1.0, 2, 3, nan], [2, 4, nan, 8], [nan, 6, 9, 12]])
    >>> completion = la.complete(A, rank=1, seed=0)
    >>> completion.shape, completion.dense().round().tolist()[0]
    ((3, 4), [1.0, 2.0, 3.0, 4.0])
    >>> completion.predict([0, 1], [3, 2]).round()
    tensor([4., 6.])
    >>> completion.fold_in(torch.tensor([[5.0, nan, nan, nan]])).dense().round()
    tensor([[ 5., 10., 15., 20.]])
    """

    _FIELDS: ClassVar[tuple[str, ...]] = (
        "U",
        "V",
        "biases",
        "mean",
        "ridge",
        "bias_ridge",
        "weighted",
        "seen",
        "sweeps",
        "outcome",
        "numpy",
        "dtype",
    )

    _U: Tensor
    _V: Tensor
    _biases: tuple[Tensor, Tensor] | None
    _mean: float
    _ridge: float
    _bias_ridge: float
    _weighted: bool
    _seen: tuple[Tensor, Tensor]  # offsets and columns of the observed entries
    _sweeps: list[tuple[float, float, float]]
    _outcome: tuple[str, str, float, bool, bool]
    _numpy: bool
    _dtype: str

    def __init__(self) -> None:
        raise TypeError("Completion: call complete() or Completion.load()")

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrix, (m, n)."""
        return len(self._U), len(self._V)

    @property
    def rank(self) -> int:
        """Of the product of the factors."""
        return self._U.shape[1]

    @property
    def U(self) -> Any:
        """The factor of the rows, shape (m, rank)."""
        return self._given(self._U)

    @property
    def V(self) -> Any:
        """The factor of the columns, shape (n, rank)."""
        return self._given(self._V)

    @property
    def mean(self) -> float:
        """Of the observed values, where there are biases; otherwise 0."""
        return self._mean

    @property
    def row_biases(self) -> Any:
        """What is added to the entries of each row, shape (m,), or None."""
        return None if self._biases is None else self._given(self._biases[0])

    @property
    def col_biases(self) -> Any:
        """What is added to the entries of each column, shape (n,), or None."""
        return None if self._biases is None else self._given(self._biases[1])

    @property
    def info(self) -> CompletionInfo:
        """How it was obtained; of folded-in rows, how what they were folded into was."""
        method, solver, residual, determined, converged = self._outcome
        return CompletionInfo(method, solver, len(self._sweeps), residual, determined, converged)

    @property
    def history(self) -> CompletionHistory:
        """What every sweep left."""
        objective, training, validation = (
            tuple(sweep[part] for sweep in self._sweeps) for part in range(3)
        )
        known = tuple(error for error in validation if not math.isnan(error))
        return CompletionHistory(objective, training, known)

    @as_written
    def predict(self, rows: Any, cols: Any) -> Any:
        """Return entries of the matrix.

        Parameters
        ----------
        rows, cols : array of integers
            Of shapes that broadcast.

        Returns
        -------
        array, of the shape that these broadcast to

        Raises
        ------
        TypeError
            Indices that are no integers.
        ValueError
            Indices outside the matrix, or shapes that do not broadcast.
        """
        caller = "Completion.predict"
        index = [
            as_indices(values, limit, caller, name).to(self._U.device)
            for values, limit, name in zip((rows, cols), self.shape, ("rows", "cols"), strict=True)
        ]
        shapes = [tuple(values.shape) for values in index]
        try:
            shape = np.broadcast_shapes(*shapes)
        except ValueError:
            raise ValueError(
                f"{caller}: rows and cols must have shapes that broadcast, got {shapes[0]} and "
                f"{shapes[1]}"
            ) from None
        row, col = (values.expand(shape).reshape(-1) for values in index)
        parts = [slice(first, first + _BLOCK) for first in range(0, max(len(row), 1), _BLOCK)]
        entries = torch.cat([self._entries(row[part], col[part]) for part in parts])
        return self._given(entries.reshape(shape))

    @as_written
    def dense(self) -> Any:
        """Return the whole matrix, shape (m, n)."""
        product = self._U @ self._V.T
        if self._biases is not None:
            product += self._mean + self._biases[0][:, None] + self._biases[1]
        return self._given(product)

    @as_written
    def top_k(self, row: int, k: int, exclude_seen: bool = True) -> TopK:
        """Return the columns with the largest entries of a row.

        Parameters
        ----------
        row : int
        k : int
            At least 1. Fewer are returned where there are no more.
        exclude_seen : bool
            Leave out the columns that were observed in this row.

        Returns
        -------
        TopK
            ``indices`` and ``values``, largest first.

        Raises
        ------
        TypeError, ValueError
            A row outside the matrix, or k < 1.
        """
        caller = "Completion.top_k"
        index = as_integer(row, caller, "row")
        if not 0 <= index < len(self._U):
            raise ValueError(f"{caller}: row must be from 0 to {len(self._U) - 1}, got {index}")
        most = at_least(k, 1, caller, "k")
        values = self._V @ self._U[index]
        if self._biases is not None:
            values = values + self._mean + self._biases[0][index] + self._biases[1]
        left = torch.ones(len(values), dtype=torch.bool, device=values.device)
        if exclude_seen:
            offsets, cols = self._seen
            left[cols[offsets[index] : offsets[index + 1]]] = False
        candidates = torch.nonzero(left)[:, 0]
        best = torch.topk(values[candidates], min(most, len(candidates)))
        indices = candidates[best.indices]
        return TopK(indices.cpu().numpy() if self._numpy else indices, self._given(best.values))

    @as_written
    def fold_in(
        self,
        rows: Any,
        cols: Any = None,
        values: Any = None,
        *,
        mask: Any = None,
        weights: Any = None,
    ) -> "Completion":
        """Find further rows for the columns as they are.

        Parameters
        ----------
        rows, cols, values, mask, weights
            Observed entries of the new rows, as for `complete`: the number of columns is that of
            this matrix. A vector with NaN is one row.

        Returns
        -------
        Completion
            Of the new rows alone: row i of it is what a sweep of `complete` makes of such a row,
            with the same ridge.

        Raises
        ------
        TypeError, ValueError
            As for `complete`.
        """
        caller = "Completion.fold_in"
        n = len(self._V)
        vector = cols is None and getattr(rows, "ndim", 2) == 1
        matrix = rows[None] if vector else rows
        shape = None if cols is None else (_count(rows, caller), n)
        known = mask[None] if vector and mask is not None else mask
        weight = weights[None] if vector and weights is not None else weights
        new = open_observed(matrix, cols, values, shape, caller, mask=known, weights=weight)
        if new.shape[1] != n:
            raise ValueError(f"{caller}: new rows must have {n} columns, got {new.shape[1]}")
        dtype = self._V.dtype
        observed = new.by_rows()
        offsets, columns, entries, weighing, _ = observed
        centred = (entries - self._mean).to(dtype=dtype, device=self._V.device)
        weighing = None if weighing is None else weighing.to(dtype)
        column_biases = None if self._biases is None else self._biases[1]
        factor, biases = _core.solve_rows(
            (offsets, columns, centred, weighing, n),
            (self._V, column_biases),
            self._ridge,
            self._bias_ridge,
            self._weighted,
        )
        folded = Completion.__new__(Completion)
        for name in self._FIELDS:
            setattr(folded, "_" + name, getattr(self, "_" + name))
        folded._U = factor
        folded._biases = None
        if biases is not None and column_biases is not None:
            folded._biases = biases, column_biases
        folded._seen = (offsets, columns)
        return folded

    def _entries(self, rows: Tensor, cols: Tensor) -> Tensor:
        entries = (self._U[rows] * self._V[cols]).sum(1)
        if self._biases is not None:
            entries += self._mean + self._biases[0][rows] + self._biases[1][cols]
        return entries

    def _given(self, result: Tensor) -> Any:
        return restored(result, getattr(torch, self._dtype), numpy=self._numpy)


@as_written
def complete(
    rows: Any,
    cols: Any = None,
    values: Any = None,
    shape: tuple[int, int] | None = None,
    rank: int | None = None,
    *,
    method: Method = "altmin",
    ridge: float = 0.0,
    ridge_by: Literal["row", "entry"] = "row",
    biases: bool = False,
    bias_ridge: float | None = None,
    mask: Any = None,
    weights: Any = None,
    solver: Solver = "auto",
    tol: float | None = None,
    max_sweeps: int | None = None,
    validation: Any = None,
    seed: Seed = None,
) -> Completion:
    """Find a matrix of low rank from some of its entries.

    Parameters
    ----------
    rows, cols : array of integers, shape (p,)
        Where entries were observed, in any order. An entry that comes twice counts as two
        observations.
    values : array or Tensor, shape (p,)
        What was observed, real. float16 and bfloat16 are computed in float32. Never written to.
    shape : (int, int), optional
        (m, n). If None, as large as the indices make it.
    rank : int
        At most min(m, n). 0 with biases finds these alone.

        Instead of rows, cols and values, a matrix may be given alone: a sparse one of SciPy or
        torch, of which the stored entries were observed, zeros among them (duplicates are added up,
        as everywhere), or a dense one with `mask`, or with NaN where an entry is missing.
    method : {"altmin", "als"}
        "altmin": alternating minimization for entries that a matrix of this rank fits, exactly or
        up to noise. "als": alternating least squares with a ridge, for ratings.
    ridge : float
        For "als": ρ in Σ w·(value − entry)² + ρ·(‖U‖² + ‖V‖²). "altmin" finds its own.
    ridge_by : {"row", "entry"}
        For "als": "entry" multiplies the ridges of a row of U or V, and of its bias, by the weight
        of its observations (weighted-λ regularization).
    biases : bool
        For "als": entries are ``mean + row_bias + col_bias + U @ V.T``.
    bias_ridge : float, optional
        The same for the squares of the biases; `ridge` if None. Ratings want some 2 to 3, and a
        larger ridge for the factors.
    mask : array of bool, shape (m, n), optional
        Of a dense matrix: True where an entry was observed.
    weights : array, shape of the values, optional
        Non-negative. A weight of 2 counts as two observations, one of 0 as none.
    solver : {"auto", "cholesky", "cg"}
        Of the least-squares problem of each row: a Cholesky factorization of its normal equations,
        or conjugate gradients, which begin at the last sweep's row and are as accurate as the sweep
        needs. "auto" is "cholesky" up to rank 64.
    tol : float, optional
        For "altmin" ‖values − fit‖ / ‖values‖ at which it ends, u^(3/4) if None, u the unit
        roundoff: 1e-12 for float64, 4e-6 for float32. It also ends where sweeps change that no
        more, which is the noise. For "als" the relative decrease of the objective by a sweep,
        1e-4 if None; 0 makes all sweeps.
    max_sweeps : int, optional
        200 for "altmin" and 50 for "als" if None.
    validation : (rows, cols, values) or sparse matrix, optional
        Entries that are not fitted; `history` has the error on them. They stop nothing.
    seed : int, torch.Generator or None
        Of the start.

    Returns
    -------
    Completion
        With ``U`` (m, rank), ``V`` (n, rank), ``history``, ``info`` and methods.

    Raises
    ------
    TypeError
        Complex values, indices that are no integers.
    ValueError
        Indices outside the shape, values that are not finite, negative weights, a rank above
        min(m, n), a ridge or biases for "altmin"; the message names the argument.

    Warns
    -----
    ConvergenceWarning
        `max_sweeps` were not enough.

    Notes
    -----
    A sweep costs 2·p·k² + (m + n)·k³/3 flops by Cholesky, k = rank, or 8·p·k a step of conjugate
    gradients, and 2·p·k for the errors; "altmin" also 4 products of the sparse matrix with k + 10
    vectors at the start, and 12·(m + n)·k² flops a sweep. Memory: the entries twice, sorted by
    rows and by columns, and the factors.

    A row without observations is zero (its bias too). Where a row has fewer observations than
    `rank` and no ridge holds it, the shortest solution is taken.

    Sources: "altmin": Gu, Song, Yin, Zhang, "Low rank matrix completion via robust alternating
    minimization in nearly linear time" (2023), with a ridge of the size of what is left and
    Anderson acceleration. "als": Zhou, Wilkinson, Schreiber, Pan, "Large-scale parallel
    collaborative filtering for the Netflix prize" (2008). Not differentiable.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> A = la.random_matrix(200, 3, seed=0) @ la.random_matrix(3, 150, seed=1)
    >>> rows, cols = torch.nonzero(la.random_matrix(200, 150, seed=2) > 0.8, as_tuple=True)
    >>> completion = la.complete(rows, cols, A[rows, cols], (200, 150), 3, seed=0)
    >>> bool((completion.dense() - A).norm() / A.norm() < 1e-4)
    True

    Ratings, and what a user who is not among them would like best:

    >>> ratings = torch.tensor([[5.0, 4, 1, 0], [4, 0, 1, 2], [1, 1, 5, 0], [0, 1, 4, 5]])
    >>> completion = la.complete(
    ...     ratings, rank=1, mask=ratings > 0, method="als", ridge=1, biases=True, seed=0
    ... )
    >>> user = completion.fold_in(torch.tensor([5.0, float("nan"), 1.0, float("nan")]))
    >>> user.top_k(0, 1).indices
    tensor([1])
    """
    _check_choice(method, _METHODS, "method")
    _check_choice(solver, _SOLVERS, "solver")
    _check_choice(ridge_by, ("row", "entry"), "ridge_by")
    observed = open_observed(rows, cols, values, shape, _CALLER, mask=mask, weights=weights)
    if rank is None:
        raise TypeError(f"{_CALLER}: rank must be given")
    k = check_rank(rank, 0 if biases else 1, observed.shape, _CALLER)
    limit = _MOST_SWEEPS[method] if max_sweeps is None else max_sweeps
    most = at_least(limit, 1, _CALLER, "max_sweeps")
    stop = None if tol is None else not_negative(tol, _CALLER, "tol")
    left_out = open_validation(validation, observed, _CALLER)
    solved = solver if solver != "auto" else "cholesky" if k <= _LARGEST_GRAM else "cg"
    key = as_seed(seed, _CALLER)
    penalty = not_negative(ridge, _CALLER, "ridge")
    of_biases = _bias_ridge(bias_ridge, penalty, bool(biases))
    by_rows = observed.by_rows()
    if method == "als":
        stop = _ALS_TOL if stop is None else stop
        result = _core.als(
            by_rows,
            left_out,
            k,
            most,
            stop if stop > 0 else None,
            key,
            penalty,
            ridge_by == "entry",
            of_biases,
            solved,
            None,
        )
    else:
        if penalty > 0 or biases or ridge_by != "row":
            name = "biases" if biases else "ridge" if penalty > 0 else "ridge_by"
            raise ValueError(f'{_CALLER}: method "altmin" takes no {name}: take method="als"')
        stop = torch.finfo(observed.values.dtype).eps ** 0.75 if stop is None else stop
        result = _core.altmin(by_rows, left_out, k, most, stop, key, solved)
    completion = completion_of(result, observed, by_rows, method, solved, ridge_by == "entry")
    if not completion.info.converged and stop > 0:
        warn(
            f"{_CALLER}: {most} sweeps were not enough: they left "
            f"{completion.info.relative_residual:.2g} of the values",
            ConvergenceWarning,
        )
    return completion


def completion_of(
    result: Any, observed: Observed, by_rows: Any, method: str, solver: str, weighted: bool
) -> Completion:
    """Make a completion of what the core returned."""
    (U, row_biases), (V, col_biases), mean, ridge, bias_ridge, sweeps, converged = result
    self = Completion.__new__(Completion)
    self._U, self._V = U, V
    self._biases = None if row_biases is None else (row_biases, col_biases)
    self._mean, self._weighted = mean, weighted
    self._ridge, self._bias_ridge = ridge, bias_ridge
    self._seen = by_rows[:2]
    self._sweeps = sweeps
    size = _root_mean_square(observed)
    residual = sweeps[-1][1] / size if sweeps and size > 0 else 0.0
    self._outcome = method, solver, residual, has_enough(by_rows, U.shape[1]), converged
    self._numpy, self._dtype = observed.numpy, str(observed.dtype).removeprefix("torch.")
    return self


def _bias_ridge(bias_ridge: Any, ridge: float, biases: bool) -> float | None:
    if bias_ridge is not None and not biases:
        raise ValueError(f"{_CALLER}: bias_ridge goes with biases=True")
    if not biases:
        return None
    return ridge if bias_ridge is None else not_negative(bias_ridge, _CALLER, "bias_ridge")


def _root_mean_square(observed: Observed) -> float:
    values = observed.values.double().abs()
    largest = float(values.max()) if len(values) else 0.0
    if largest == 0:
        return 0.0
    weights = torch.ones_like(values) if observed.weights is None else observed.weights.double()
    return largest * math.sqrt(float(weights @ (values / largest).square() / weights.sum()))


def open_validation(validation: Any, observed: Observed, whose: str) -> ObservedRows | None:
    """Adapt entries that are left out of the fit of a matrix."""
    if validation is None:
        return None
    caller = f"{whose}: validation"
    if isinstance(validation, Sequence):
        if len(validation) != 3:
            raise TypeError(
                f"{caller} must be (rows, cols, values) or a sparse matrix, "
                f"got {len(validation)} parts"
            )
        rows, cols, values = validation
        entries = open_observed(rows, cols, values, observed.shape, caller)
    else:
        entries = open_observed(validation, None, None, observed.shape, caller)
    offsets, cols, values, _, n = entries.by_rows()
    return offsets, cols, values.to(observed.values), None, n


def _count(rows: Any, caller: str) -> int:
    index = as_indices(rows, None, caller, "rows")
    return int(index.max()) + 1 if index.numel() else 0


def _check_choice(value: Any, choices: tuple[str, ...], name: str) -> None:
    if value not in choices:
        raise ValueError(f"{_CALLER}: {name} must be one of {choices}, got {value!r}")
