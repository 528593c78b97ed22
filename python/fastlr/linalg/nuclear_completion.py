"""Completion with the nuclear norm as its penalty, over a path of penalties."""

import math
import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastlr import _core
from fastlr.linalg._arguments import Seed, as_seed, at_least, not_negative
from fastlr.linalg._autocast import as_written
from fastlr.linalg._observed import Observed, ObservedRows, open_observed
from fastlr.linalg._warnings import warn
from fastlr.linalg.completion import Completion, completion_of, open_validation
from fastlr.linalg.norms import estimate_norm
from fastlr.linalg.results import ConvergenceWarning
from fastlr.linalg.svd import randomized_svd

_CALLER = "soft_impute"

# Of a default path: from the penalty above which all is zero to this part of it.
_PENALTIES = 20
_LAST = 1e-2
_MOST_RANK = 100
# Directions that are looked for at a time, and sweeps that are made with them.
_ADDED = 8
_SWEEPS = 10
# Singular values below this part of the largest are dropped: those of zero ones fall geometrically.
_DROPPED = 1e-7


@dataclass(frozen=True)
class SoftImputeInfo:
    """How a path was obtained; tuples have an entry for each penalty.

    Attributes
    ----------
    ranks : tuple of int
    objectives : tuple of float
        ½·Σ w·(value − entry)² + λ·‖X‖_*.
    gaps : tuple of float
        The duality gap, relative to the objective: how far that is above its minimum at most, but
        for rounding and the error of a spectral norm (`estimate_norm` with rtol = 1e-3, of which
        `value` is taken; it is far closer than that).
    sweeps : tuple of int
    converged : tuple of bool
        False where the gap is above `tol`: after `max_sweeps`, or with `max_rank`.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> A = torch.arange(1.0, 9)[:, None] * torch.arange(1.0, 7)
    >>> path = la.soft_impute(A, mask=A % 5 > 0, penalties=[20, 2], seed=0)
    >>> path.info.ranks, max(path.info.gaps) < 1e-4, path.info.converged
    ((1, 1), True, (True, True))
    """

    ranks: tuple[int, ...]
    objectives: tuple[float, ...]
    gaps: tuple[float, ...]
    sweeps: tuple[int, ...]
    converged: tuple[bool, ...]


class _PathFields(NamedTuple):
    penalties: tuple[float, ...]
    completions: tuple[Completion, ...]


class SoftImputePath(_PathFields):
    """Completions for penalties, the largest first.

    Attributes
    ----------
    penalties : tuple of float
    completions : tuple of Completion
    info : SoftImputeInfo
        Not part of the tuple.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> A = torch.arange(1.0, 9)[:, None] * torch.arange(1.0, 7)
    >>> penalties, completions = la.soft_impute(A, mask=A % 5 > 0, penalties=[2, 20], seed=0)
    >>> penalties, [completion.rank for completion in completions]
    ((20.0, 2.0), [1, 1])
    """

    info: SoftImputeInfo

    def __new__(
        cls,
        penalties: tuple[float, ...],
        completions: tuple[Completion, ...],
        info: SoftImputeInfo,
    ) -> "SoftImputePath":
        self = super().__new__(cls, penalties, completions)
        self.info = info
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (*self, self.info)

    @property
    def best(self) -> Completion:
        """The completion with the smallest error on the entries of `validation`."""
        errors = [completion.history.validation_error for completion in self.completions]
        if not all(errors):
            raise ValueError("SoftImputePath.best: it needs validation=, which was not given")
        return self.completions[int(np.argmin([error[-1] for error in errors]))]


@as_written
def soft_impute(
    rows: Any,
    cols: Any = None,
    values: Any = None,
    shape: tuple[int, int] | None = None,
    *,
    penalties: Any = None,
    max_rank: int | None = None,
    mask: Any = None,
    weights: Any = None,
    tol: float = 1e-4,
    max_sweeps: int = 1000,
    validation: Any = None,
    seed: Seed = None,
) -> SoftImputePath:
    """Complete a matrix with the nuclear norm as its penalty: the rank follows from the penalty.

    For each penalty λ the minimum of ½·Σ w·(value − entry)² + λ·‖X‖_*, which is the only one: the
    problem is convex. Each begins at the result of the next larger λ.

    Parameters
    ----------
    rows, cols, values, shape, mask, weights
        As for `complete`: triplets, or a matrix, sparse or dense.
    penalties : number or array of numbers, optional
        λ > 0, of the unit of the values. If None, 20 of them, from the largest singular value of
        the observed entries, zeros elsewhere, down to a hundredth of it; X is zero for any larger.
    max_rank : int, optional
        The largest rank that is tried, min(m, n, 100) if None.
    tol : float
        The duality gap at which a penalty is done, relative to the objective.
    max_sweeps : int
        For each penalty.
    validation : (rows, cols, values) or sparse matrix, optional
        Entries that are not fitted, for `SoftImputePath.best`.
    seed : int, torch.Generator or None
        Of the singular vectors.

    Returns
    -------
    SoftImputePath
        ``penalties``, ``completions``, ``info`` and ``best``.

    Raises
    ------
    TypeError, ValueError
        As for `complete`, and for penalties that are not positive and finite.

    Warns
    -----
    ConvergenceWarning
        A gap stayed above `tol`.

    Notes
    -----
    λ·‖X‖_* is the smallest λ·(‖U‖² + ‖V‖²)/2 over all X = U Vᵀ with enough columns, and these are
    found by alternating least squares with the ridge λ: no SVD of a filled matrix is needed. X is
    the minimum where no singular value of w·(value − entry) is above λ; those that are come
    to U and V as columns. Each round costs 10 sweeps of `complete`, an SVD of 8 triplets of the
    sparse matrix of what is left, and at the end an estimate of its norm.

    Sources: Mazumder, Hastie, Tibshirani, "Spectral regularization algorithms for learning large
    incomplete matrices", JMLR 11 (2010); Hastie, Mazumder, Lee, Zadeh, "Matrix completion and
    low-rank SVD via fast alternating least squares", JMLR 16 (2015). Not differentiable.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> A = la.random_matrix(60, 2, seed=0) @ la.random_matrix(2, 50, seed=1)
    >>> A += 0.1 * la.random_matrix(60, 50, seed=2)
    >>> known = la.random_matrix(60, 50, seed=3) > 0
    >>> left_out = torch.nonzero(~known, as_tuple=True)
    >>> path = la.soft_impute(A, mask=known, validation=(*left_out, A[left_out]), seed=0)
    >>> path.best.history.validation_error[-1] < 0.3
    True
    """
    observed = open_observed(rows, cols, values, shape, _CALLER, mask=mask, weights=weights)
    most = min(*observed.shape, _MOST_RANK)
    if max_rank is not None:
        most = min(at_least(max_rank, 1, _CALLER, "max_rank"), *observed.shape)
    problem = _Problem(
        observed,
        open_validation(validation, observed, _CALLER),
        most,
        not_negative(tol, _CALLER, "tol"),
        at_least(max_sweeps, 1, _CALLER, "max_sweeps"),
        as_seed(seed, _CALLER),
    )
    path = problem.default_path() if penalties is None else _descending(penalties)
    solutions: list[_Solution] = []
    for penalty in path:
        solutions.append(problem.solve(penalty, solutions[-1] if solutions else None))
    gaps = tuple(solution.gap for solution in solutions)
    converged = tuple(gap <= problem.tol for gap in gaps)
    if not all(converged):
        worst = int(np.argmax(gaps))
        warn(
            f"{_CALLER}: the gap of penalty {path[worst]:.3g} is {gaps[worst]:.2g}, above tol = "
            f"{problem.tol:g}, with rank {solutions[worst].rank} after "
            f"{solutions[worst].sweeps} sweeps",
            ConvergenceWarning,
        )
    info = SoftImputeInfo(
        tuple(solution.rank for solution in solutions),
        tuple(solution.objective for solution in solutions),
        gaps,
        tuple(solution.sweeps for solution in solutions),
        converged,
    )
    return SoftImputePath(path, tuple(problem.completion(solution) for solution in solutions), info)


def _descending(penalties: Any) -> tuple[float, ...]:
    array = np.atleast_1d(np.asarray(penalties, dtype=object)).ravel()
    numbers = [not_negative(value, _CALLER, "penalties") for value in array]
    if not numbers or min(numbers) == 0:
        raise ValueError(f"{_CALLER}: penalties must be positive, got {penalties!r}")
    return tuple(sorted(numbers, reverse=True))


@dataclass(frozen=True)
class _Solution:
    """Of one penalty, for the scaled values."""

    U: Tensor
    V: Tensor
    penalty: float
    objective: float
    gap: float
    sweeps: int
    history: list[tuple[float, float, float]]

    @property
    def rank(self) -> int:
        return self.U.shape[1]


class _Problem:
    """The entries, scaled by a power of four so that nothing overflows, and how far to go."""

    def __init__(
        self,
        observed: Observed,
        validation: ObservedRows | None,
        most_rank: int,
        tol: float,
        most_sweeps: int,
        seed: int,
    ) -> None:
        self.observed, self.most_rank, self.tol = observed, most_rank, tol
        self.most_sweeps, self.seed = most_sweeps, seed
        largest = float(observed.values.abs().max()) if len(observed.values) else 0.0
        self.half = math.frexp(largest)[1] // 2
        self.unit = 4.0**self.half
        offsets, cols, values, weights, n = observed.by_rows()
        self.rows = offsets, cols, values / self.unit, weights, n
        self.validation = validation
        if validation is not None:
            self.validation = *validation[:2], validation[2] / self.unit, *validation[3:]

    def sparse(self, values: Tensor) -> Tensor:
        """Return a matrix with values where entries were observed."""
        offsets, cols = self.rows[:2]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state")
            return torch.sparse_csr_tensor(
                offsets, cols, values, size=self.observed.shape, check_invariants=False
            )

    def squared_unit(self, objective: float) -> float:
        """Return an objective in the caller's units; infinite where it is beyond float64."""
        with np.errstate(over="ignore"):
            return float(np.ldexp(objective, 4 * self.half))

    def norm(self, values: Tensor) -> float:
        return float(estimate_norm(self.sparse(values), rtol=1e-3, seed=self.seed).value)

    def weighted(self, values: Tensor) -> Tensor:
        weights = self.rows[3]
        return values if weights is None else weights * values

    def default_path(self) -> tuple[float, ...]:
        largest = self.norm(self.weighted(self.rows[2])) * self.unit
        if largest == 0:
            return (1.0,)
        return tuple(float(x) for x in np.geomspace(largest, _LAST * largest, _PENALTIES))

    def solve(self, penalty: float, before: _Solution | None) -> _Solution:
        """Alternate, and add what is left above the penalty, until the gap is small."""
        m, n = self.observed.shape
        values, weight = self.rows[2], penalty / self.unit
        U = values.new_zeros(m, 0) if before is None else before.U
        V = values.new_zeros(n, 0) if before is None else before.V
        history: list[tuple[float, float, float]] = []
        while True:
            rest = self.weighted(values - _core.entry_products(self.rows, U, V))
            left = self.sparse(rest)
            found = randomized_svd(left, min(_ADDED, m, n), power_iters=2, seed=self.seed)
            objective, gap = self.objective_and_gap(U, V, rest, weight, float(found.S[0]))
            if gap <= self.tol:  # the norm is at least that of the SVD
                objective, gap = self.objective_and_gap(U, V, rest, weight, self.norm(rest))
            if gap <= self.tol or len(history) >= self.most_sweeps:
                break
            U, V = self.with_columns(U, V, found, weight)
            if U.shape[1] == 0:
                break
            (U, _), (V, _), _, _, _, sweeps, _ = _core.als(
                self.rows, self.validation, U.shape[1], _SWEEPS, self.tol / 10, self.seed, weight,
                False, None, "cholesky", U,
            )  # fmt: skip
            history += sweeps
            U, V = _balanced(U, V)
        if not history:
            history = [self.measured(U, V, objective)]
        return _Solution(U, V, penalty, self.squared_unit(objective), gap, len(history), history)

    def objective_and_gap(
        self, U: Tensor, V: Tensor, rest: Tensor, penalty: float, norm: float
    ) -> tuple[float, float]:
        """Return the objective and the relative gap to that of the dual problem.

        Its point is `rest`, shrunk to the spectral norm λ.
        """
        values, weights = self.rows[2].double(), self.rows[3]
        Z = rest.double()
        used = torch.ones_like(Z) if weights is None else weights.double()
        squares = float((Z.square() / used)[used > 0].sum())
        shrunk = min(1.0, penalty / norm) if norm > 0 else 1.0
        nuclear = (float(U.double().square().sum()) + float(V.double().square().sum())) / 2
        objective = squares / 2 + penalty * nuclear
        dual = shrunk * float(Z @ values) - shrunk**2 * squares / 2
        return objective, (objective - dual) / objective if objective > 0 else 0.0

    def with_columns(
        self, U: Tensor, V: Tensor, found: Any, penalty: float
    ) -> tuple[Tensor, Tensor]:
        """Add the directions in which the objective falls, as far as that, as ranks are left.

        Along one alone it falls up to a step of (σ − λ) / ‖its observed entries‖², which are some.
        """
        new = min(int((penalty < found.S).sum()), self.most_rank - U.shape[1])
        size = (found.S[:new] - penalty).sqrt().to(U.dtype)
        U = torch.cat([U, found.U[:, :new] * size], 1)
        return U, torch.cat([V, found.Vh[:new].T * size], 1)

    def measured(self, U: Tensor, V: Tensor, objective: float) -> tuple[float, float, float]:
        """Return what `als` records of a sweep."""
        error = math.nan if self.validation is None else _error(self.validation, U, V)
        return 2 * objective, _error(self.rows, U, V), error

    def completion(self, solution: _Solution) -> Completion:
        """Return a solution in the caller's units."""
        size = 2.0**self.half
        sweeps = [
            (self.squared_unit(objective), self.unit * training, self.unit * validation)
            for objective, training, validation in solution.history
        ]
        result = (
            (solution.U * size, None),
            (solution.V * size, None),
            0.0,
            solution.penalty,
            0.0,
            sweeps,
            solution.gap <= self.tol,
        )
        return completion_of(result, self.observed, self.rows, "soft_impute", "cholesky", False)


def _error(rows: ObservedRows, U: Tensor, V: Tensor) -> float:
    """Return the root of the weighted mean of squares of what is left."""
    rest = (rows[2] - _core.entry_products(rows, U, V)).double()
    weights = torch.ones_like(rest) if rows[3] is None else rows[3].double()
    return math.sqrt(float(weights @ rest.square()) / max(float(weights.sum()), 1e-300))


def _balanced(U: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
    """Return factors of the same product with equal columns, as long as its singular values."""
    left, right = torch.linalg.qr(U), torch.linalg.qr(V)
    core = torch.linalg.svd(left.R @ right.R.mT, full_matrices=False)
    kept = _DROPPED * core.S[0] < core.S
    root = core.S[kept].sqrt()
    return (left.Q @ core.U[:, kept] * root), (right.Q @ core.Vh.mT[:, kept] * root)
