"""Robust principal components: a matrix as the sum of one of low rank and a sparse one."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastlr.linalg._arguments import (
    Seed,
    as_integer,
    as_real,
    as_seed,
    as_tolerance,
    at_least,
    not_negative,
)
from fastlr.linalg._arrays import adapt, as_mask
from fastlr.linalg._autocast import as_written
from fastlr.linalg._warnings import warn
from fastlr.linalg.random import random_matrix
from fastlr.linalg.results import ConvergenceWarning
from fastlr.linalg.svd import randomized_svd

_CALLER = "robust_pca"

# The step τ begins at this multiple of ‖A‖₂ and falls by a constant factor an iteration, so that
# the large components are found first, to a multiple of the mean of |A|: counts of iterations on
# planted and real matrices differ little within a factor of three of each of them.
_FIRST_STEP = 0.8
_FALL = 1.2
_LAST_STEP = 0.3
# From then on steps are relaxed by this factor; any below 2 converges.
_RELAXATION = 1.6
# Later, τ changes by 2 where one side of the iteration moves this many times as far as the other,
# after ever longer times: the first number of iterations, then half as many more than before. It
# stays within a factor of 32, since the rounding of the dual variables is that of L over τ.
_BALANCE = 3.0
_WAIT = 10
_REACH = 32.0
# Directions that are followed beyond those above the threshold: they show what comes next, and
# the error of those that are kept falls faster. With 10, some matrices took 30 % more iterations
# than with exact thresholds; with 20, as many.
_AHEAD = 20
# A partial decomposition of more than this share of all directions takes longer than a full one.
_SHARE = 1 / 3
# Below this share of the largest singular value, squares are known to 1e-8 of themselves, at most.
_SQUARES = 1e-4


@dataclass(frozen=True)
class RobustPCAInfo:
    """How a decomposition into low rank and sparse was obtained, and how near to the optimum it is.

    Attributes
    ----------
    rank : int
        Of the low-rank part.
    nonzeros : int
        Of the sparse part.
    sparsity : float
        λ, as it was used.
    iterations : int
    objective : float
        ‖L‖_* + λ·‖A − L‖₁ over the entries that are observed, and the total variation where it has
        a weight, of the low-rank part L that is returned and what it leaves.
    gap : float
        (objective − bound) / objective, where no L has an objective below bound: that of a dual
        point, computed anew from what is returned, and feasible to rounding.
    residual : float
        ‖A − L − S‖_F / ‖A‖_F over the entries that are observed.
    converged : bool
        Whether `gap` and `residual` are at most `tol`.
    history : tuple of (float, float, int)
        The residual, the gap before the dual point is made feasible (so that it may be negative),
        and the rank, for each iteration.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> A = torch.ones(30, 20, dtype=torch.float64)
    >>> A[3, 4] = 9
    >>> info = la.robust_pca(A, seed=0).info
    >>> info.rank, info.nonzeros, info.converged, info.gap <= 1e-7
    (1, 1, True, True)
    """

    rank: int
    nonzeros: int
    sparsity: float
    iterations: int
    objective: float
    gap: float
    residual: float
    converged: bool
    history: tuple[tuple[float, float, int], ...]


class _RobustPCAFields(NamedTuple):
    U: Any
    S: Any
    Vh: Any
    sparse: Any


class RobustPCAResult(_RobustPCAFields):
    """A ≈ U @ diag(S) @ Vh + sparse.

    Attributes
    ----------
    U : array, shape (m, rank)
        Orthonormal columns; the largest entry of each is real and positive.
    S : array, shape (rank,)
        Singular values of the low-rank part, descending, real.
    Vh : array, shape (rank, n)
        Orthonormal rows.
    sparse : array, shape (m, n)
        A dense array with exact zeros.
    low_rank : array, shape (m, n)
        U @ diag(S) @ Vh, computed when it is asked for. Not part of the tuple.
    info : RobustPCAInfo
        Not part of the tuple.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> A = torch.ones(30, 20, dtype=torch.float64)
    >>> A[3, 4] = 9
    >>> U, S, Vh, sparse = result = la.robust_pca(A, seed=0)
    >>> sparse.nonzero().tolist(), round(sparse[3, 4].item(), 4)
    ([[3, 4]], 8.0)
    >>> torch.allclose(result.low_rank, torch.ones(30, 20, dtype=torch.float64), atol=1e-6)
    True
    """

    info: RobustPCAInfo

    def __new__(
        cls, U: Any, S: Any, Vh: Any, sparse: Any, info: RobustPCAInfo
    ) -> "RobustPCAResult":
        self = super().__new__(cls, U, S, Vh, sparse)
        self.info = info
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (*self, self.info)

    @property
    @as_written
    def low_rank(self) -> Any:
        return (self.U * self.S) @ self.Vh


@as_written
def robust_pca(
    A: Any,
    *,
    sparsity: float | None = None,
    mask: Any = None,
    total_variation: float | tuple[float, float] | None = None,
    grid: Sequence[int] | None = None,
    axes: Sequence[int] | None = None,
    tol: float | None = None,
    max_iters: int = 2000,
    seed: Seed = None,
) -> RobustPCAResult:
    """Split a matrix into one of low rank and a sparse one: robust principal components.

    Minimise ‖L‖_* + λ·‖S‖₁ over all L + S = A: the sum of the singular values of L, and of the
    magnitudes of the entries of S. Entries of any size may be wrong, if they are few.

    Parameters
    ----------
    A : array or Tensor, shape (m, n)
        Real or complex. Never written to.
    sparsity : float, optional
        λ, positive: the larger, the fewer entries S has. 1/√(p·max(m, n)) if None, p being the
        share of entries that are observed. For λ ≥ 1, S = 0; for λ ≤ 1/√(m·n), L = 0.
    mask : array or Tensor of bool, shape (m, n), optional
        Where A is observed; elsewhere its entries count for nothing (and may be NaN), L fills them
        in, and S is zero. Everywhere if None.
    total_variation : float or (float, float), optional
        Add weight·TV(L), or w_L·TV(L) + w_S·TV(S): the sum of the magnitudes of all differences
        between neighbours on the grid along `axes` (the anisotropic total variation). It keeps L,
        or S, nearly constant in regions. A weight should be well below λ.
    grid : sequence of int, optional
        How the entries of A are laid out, in the order of ``A.reshape(grid)``: (height, width,
        frames) where a column is a frame of height·width pixels. (m, n) if None.
    axes : sequence of int, optional
        Those of the grid along which neighbours are compared: (0, 1) for the pixels of each frame.
        All if None.
    tol : float, optional
        Until the relative duality gap and the relative residual ‖A − L − S‖_F / ‖A‖_F are both at
        most this, for 0 < tol < 1. 1e-7 if None, 1e-5 with `total_variation`; no less than 16·u for
        the unit roundoff u of A, 9.5e-7 in float32.
    max_iters : int
        Iterations at most.
    seed : int, torch.Generator or None
        Of the directions in which singular vectors are looked for. It changes L and S by less than
        `tol` does.

    Returns
    -------
    RobustPCAResult
        ``U`` (m, rank), ``S`` (rank,), ``Vh`` (rank, n), ``sparse`` (m, n), of the kind, dtype and
        device of A (the S of singular values is real), ``low_rank`` and ``info``. A zero matrix has
        rank 0.

    Raises
    ------
    ValueError
        A that is not a matrix (batches are not taken) or has an observed entry that is not finite
        (its index is named); a number out of range; a mask of another shape, a grid of another
        size, axes that it does not have, `grid` or `axes` without `total_variation`.
    TypeError
        A sparse matrix, a mask that is not boolean, a number of the wrong type.

    Warns
    -----
    ConvergenceWarning
        `tol` was not met within `max_iters`; ``info.converged`` is False.

    See Also
    --------
    pca : where no entry is wrong by much.

    Notes
    -----
    If L has rank r and singular vectors that are spread over all rows and columns, and the wrong
    entries are at random places, the minimum is exactly that L and S with high probability, for r
    up to a constant times min(m, n)/log²max(m, n) and a constant share of wrong entries.

    Douglas–Rachford splitting: an iteration is one soft threshold of the singular values of a
    matrix and one of the entries of another. With total variation, its generalization, the
    primal-dual iteration of Chambolle and Pock. The step falls from ‖A‖₂ to the size of an entry,
    as in inexact augmented Lagrangians; unlike there it does not go on to fall, which may end at a
    point that is no minimum, but balances both sides from then on. The end is certain whatever the
    way to it: Σ⟨A, Y⟩ is a lower bound of the objective for every Y with ‖Y‖₂ ≤ 1 and entries of
    at most λ, and the iteration has such Y, but for ‖Y‖₂, which a dense SVD measures at the end.

    Singular vectors come from one step of subspace iteration from those of the iteration before,
    with twenty more directions: 4·m·n·k flops for k of them. Where k > min(m, n)/3, and when the
    certificate fails, from a full decomposition, 2·m·n² + 9·n³ for n ≤ m. All else is some fifteen
    passes over m·n numbers. Some 50 to 150 iterations where the recovery is exact, several
    hundred where it is not. In double precision whatever the dtype of A: the error of Y would be
    u·‖A‖₂ divided by the step, 1e-4 in float32. Memory is some ten arrays of that. Not
    differentiable.

    Sources: Candès, Li, Ma, Wright, "Robust principal component analysis?", J. ACM 58 (2011); Lin,
    Chen, Ma, "The augmented Lagrange multiplier method for exact recovery of corrupted low-rank
    matrices", arXiv:1009.5055 (2010), for steps that fall; Eckstein, Bertsekas, Math. Program. 55
    (1992); Chambolle, Pock, "A first-order primal-dual algorithm for convex problems with
    applications to imaging", J. Math. Imaging Vision 40 (2011); Condat, J. Optim. Theory Appl. 158
    (2013), for its relaxation; Tan, Qing, Xu, "Robust depth linear error decomposition with double
    total variation and nuclear norm for dynamic MRI reconstruction", arXiv:2310.14934, for total
    variation of both parts.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> left = la.random_matrix(200, 4, seed=0, dtype=torch.float64)
    >>> L = left @ la.random_matrix(4, 100, seed=1, dtype=torch.float64)
    >>> wrong = la.random_matrix(200, 100, seed=2) > 1.5  # 7 % of the entries
    >>> result = la.robust_pca(torch.where(wrong, 30.0, L), seed=0)
    >>> len(result.S), torch.equal(result.sparse != 0, wrong)
    (4, True)
    >>> bool(torch.dist(result.low_rank, L) < 1e-6 * L.norm()), result.info.gap < 1e-7
    (True, True)
    """
    adapted = adapt(A, _CALLER, complex_=True)
    observed = None if mask is None else as_mask(mask, adapted.tensor, _CALLER, "A")
    known, power = _scaled(adapted.tensor.detach(), observed)
    # The second side is the shorter one.
    transposed = known.shape[0] < known.shape[1]
    if transposed:
        known, observed = known.mT.contiguous(), None if observed is None else observed.mT
    variations = _variations(total_variation, grid, axes, tuple(adapted.tensor.shape), transposed)
    weight = _sparsity(sparsity, known, observed)
    tol = _tolerance(tol, adapted.dtype, total_variation is not None)
    max_iters = at_least(max_iters, 1, _CALLER, "max_iters")
    problem = _Problem(known, observed, weight, variations)
    point = _minimize(problem, tol, max_iters, as_seed(seed, _CALLER))
    U, Vh, sparse = point.U, point.Vh, point.sparse
    if transposed:
        U, Vh, sparse = Vh.mT, U.mT, sparse.mT.contiguous()
    U, Vh = _polished(U, Vh)
    dtype = adapted.tensor.dtype
    U, Vh, sparse = (adapted.restore(part.to(dtype)) for part in (U, Vh, power * sparse))
    # Counted after rounding, as what is below the range of the dtype is zero then.
    info = _info(point, int((sparse != 0).sum()), weight, power, tol)
    if not info.converged:
        warn(
            f"{_CALLER}: tol={tol:g} not met by {info.iterations} iterations; the relative gap is "
            f"{info.gap:.3g}, the residual {info.residual:.3g}",
            ConvergenceWarning,
        )
    return RobustPCAResult(U, adapted.restore(power * point.S), Vh, sparse, info)


# Arguments


def _tolerance(tol: Any, dtype: torch.dtype, variation: bool) -> float:
    if tol is None:
        # The rounding of A is dense, and a sparse part that fits it takes many iterations.
        return max(1e-5 if variation else 1e-7, 8 * torch.finfo(dtype).eps)
    return as_tolerance(tol, _CALLER)


def _sparsity(sparsity: Any, A: Tensor, observed: Tensor | None) -> float:
    if sparsity is None:
        share = 1.0 if observed is None else float(observed.double().mean())
        # Where nothing is observed, no weight changes anything.
        return 1 / math.sqrt(share * max(A.shape) or 1.0)
    weight = as_real(sparsity, _CALLER, "sparsity")
    if not 0 < weight < math.inf:
        raise ValueError(f"{_CALLER}: sparsity must be positive and finite, got {weight:g}")
    return weight


def _scaled(A: Tensor, observed: Tensor | None) -> tuple[Tensor, float]:
    """The observed entries in double precision, zeros elsewhere, over a power of two near them."""
    known = A.to(torch.complex128 if A.is_complex() else torch.float64)
    if observed is not None:
        known = torch.where(observed, known, 0)
    finite = known.isfinite()
    if not bool(finite.all()):
        i, j = finite.logical_not().nonzero()[0].tolist()
        raise ValueError(
            f"{_CALLER}: A must be finite where it is observed, got {known[i, j].item()} at index "
            f"({i}, {j})"
        )
    parts = torch.view_as_real(known.resolve_conj()) if known.is_complex() else known
    largest = float(parts.abs().max()) if parts.numel() else 0.0
    power = math.ldexp(1.0, math.frexp(largest)[1] - 1) if largest else 1.0
    return known / power, power


@dataclass(frozen=True)
class _Variation:
    """Differences between neighbours along an axis of the grid that the matrix is laid out on."""

    grid: tuple[int, ...]
    axis: int
    transposed: bool  # the matrix that is computed with
    weights: tuple[float, float]  # of the low-rank part, of the sparse part

    def differences(self, X: Tensor) -> Tensor:
        return torch.diff((X.mT if self.transposed else X).reshape(self.grid), dim=self.axis)

    def adjoint(self, Y: Tensor, shape: torch.Size) -> Tensor:
        X = Y.new_zeros(self.grid)
        differences = self.grid[self.axis] - 1
        X.narrow(self.axis, 1, differences).add_(Y)
        X.narrow(self.axis, 0, differences).sub_(Y)
        return X.reshape(shape[::-1]).mT if self.transposed else X.reshape(shape)


def _variations(
    weights: Any, grid: Any, axes: Any, shape: tuple[int, ...], transposed: bool
) -> list[_Variation]:
    if weights is None:
        for value, name in ((grid, "grid"), (axes, "axes")):
            if value is not None:
                raise ValueError(
                    f"{_CALLER}: {name} goes with total_variation, got {value!r} alone"
                )
        return []
    pair = weights if isinstance(weights, tuple) else (weights, 0.0)
    if len(pair) != 2:
        raise ValueError(
            f"{_CALLER}: total_variation must be a weight or a pair of them, got {weights!r}"
        )
    low, sparse = (not_negative(value, _CALLER, "total_variation") for value in pair)
    sizes = shape if grid is None else _integers(grid, "grid")
    if min(sizes, default=0) < 0 or math.prod(sizes) != math.prod(shape):
        raise ValueError(
            f"{_CALLER}: grid must have as many points as A has entries, {math.prod(shape)}, got "
            f"{sizes}"
        )
    chosen = range(len(sizes)) if axes is None else _integers(axes, "axes")
    for axis in chosen:
        if not -len(sizes) <= axis < len(sizes):
            raise ValueError(
                f"{_CALLER}: axes must be among the {len(sizes)} of the grid, got {axis}"
            )
    distinct = dict.fromkeys(axis % len(sizes) for axis in chosen)
    return [
        _Variation(sizes, axis, transposed, (low, sparse)) for axis in distinct if sizes[axis] > 1
    ]


def _integers(values: Any, name: str) -> tuple[int, ...]:
    try:
        return tuple(as_integer(value, _CALLER, name) for value in values)
    except TypeError:
        raise TypeError(f"{_CALLER}: {name} must be integers, got {values!r}") from None


# The problem and its dual


@dataclass(frozen=True)
class _Term:
    """radius·‖forward(L) − data‖₁; the entries of its dual variable are at most radius.

    The dual variable moves by steps of step/τ, where τ is that of L: Σ step·‖forward‖² ≤ 1.
    """

    forward: Callable[[Tensor], Tensor]
    adjoint: Callable[[Tensor], Tensor]
    data: Tensor
    radius: float
    step: float

    def value(self, L: Tensor) -> float:
        return self.radius * _norm(self.forward(L) - self.data, 1)

    def project(self, y: Tensor, out: Tensor) -> None:
        if y.is_complex():
            torch.div(y, (y.abs() / self.radius).clamp(min=1), out=out)
        else:
            torch.clamp(y, -self.radius, self.radius, out=out)


class _Problem:
    """Minimise ‖L‖_* + the sum of the terms, the first of which is λ·‖A − L‖₁."""

    def __init__(
        self, A: Tensor, observed: Tensor | None, weight: float, variations: list[_Variation]
    ) -> None:
        self.A, self._observed = A, observed
        weights = [w for each in variations for w in each.weights if w > 0]
        self.terms = [_Term(self.known, lambda y: y, A, weight, 0.5 if weights else 1.0)]
        for each in variations:
            # A difference of two neighbours has a norm of √2, all along an axis of 2 at most.
            self._add(each, 0.5 / (4 * len(weights) or 1))

    def _add(self, variation: _Variation, step: float) -> None:
        low, sparse = variation.weights
        shape = self.A.shape
        differences = variation.differences(self.A)
        if low > 0:
            self.terms.append(
                _Term(
                    variation.differences,
                    lambda y: variation.adjoint(y, shape),
                    torch.zeros_like(differences),
                    low,
                    step,
                )
            )
        if sparse > 0:
            self.terms.append(
                _Term(
                    lambda X: variation.differences(self.known(X)),
                    lambda y: self.known(variation.adjoint(y, shape)),
                    differences,
                    sparse,
                    step,
                )
            )

    def known(self, X: Tensor) -> Tensor:
        """X where A is observed, zeros elsewhere."""
        return X if self._observed is None else X * self._observed

    def mean(self) -> float:
        """Of the magnitudes of the observed entries."""
        count = self.A.numel() if self._observed is None else int(self._observed.sum())
        return _norm(self.A, 1) / count

    def value(self, L: Tensor, nuclear_norm: float) -> float:
        return nuclear_norm + sum(term.value(L) for term in self.terms)

    def adjoint(self, duals: list[Tensor]) -> Tensor:
        """What has to be −1 times a subgradient of ‖L‖_* at the minimum."""
        total = self.terms[0].adjoint(duals[0])
        for term, y in zip(self.terms[1:], duals[1:], strict=True):
            total = total + term.adjoint(y)
        return total

    def dual_value(self, duals: list[Tensor]) -> float:
        """A lower bound of all values if ‖adjoint(duals)‖₂ ≤ 1."""
        return -sum(
            float(torch.vdot(term.data.flatten(), y.flatten()).real)
            for term, y in zip(self.terms, duals, strict=True)
        )

    def bound(self, duals: list[Tensor]) -> float:
        """A lower bound of all values: that of the duals, made feasible by a factor."""
        norm = float(torch.linalg.matrix_norm(self.adjoint(duals), 2))
        return max(0.0, self.dual_value(duals) / max(1.0, norm))


def _norm(X: Tensor, order: int = 2) -> float:
    return float(torch.linalg.vector_norm(X, order))


# Soft thresholds of singular values


class _Shrinkage:
    """W ↦ U·diag(S − τ)·Vh over the S > τ, from the singular vectors of the call before.

    The result is left @ right with orthonormal rows on the right, and its singular values. The
    second side of W is the shorter one.
    """

    def __init__(self, start: Tensor, key: int) -> None:
        self._key, self._drawn = key, 0
        self._basis = start
        self._exactly = False

    def exactly(self) -> None:
        """Trust nothing from before in the next call."""
        self._exactly = True

    def __call__(self, W: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
        while self._basis.shape[1] < _SHARE * W.shape[1] and not self._exactly:
            Q = torch.linalg.qr(W @ self._basis).Q
            U, S, Vh = torch.linalg.svd(Q.mH @ W, full_matrices=False)
            count = _above(S, threshold)
            if count + _AHEAD // 2 <= len(S):
                self._follow(Vh, count + _AHEAD)
                excess = S[:count] - threshold
                return Q @ (U[:, :count] * excess), Vh[:count], excess
            # All but a few are above: there may be more.
            self._follow(Vh, 2 * count + _AHEAD)
        self._exactly = False
        S, Vh = _right_vectors(W, threshold)
        count = _above(S, threshold)
        self._follow(Vh, count + _AHEAD)
        excess = S[:count] - threshold
        return W @ (Vh[:count].mH * (excess / S[:count])), Vh[:count], excess

    def _follow(self, Vh: Tensor, width: int) -> None:
        """Begin the next call with these vectors and, where they are too few, random ones."""
        vectors, missing = Vh[:width].mH, width - len(Vh)
        if missing > 0:
            new = random_matrix(
                len(vectors),
                missing,
                seed=self._key,
                column_offset=self._drawn,
                dtype=torch.float64,
                device=vectors.device,
            )
            self._drawn += missing
            vectors = torch.cat([vectors, new.to(vectors.dtype)], 1)
        self._basis = vectors


def _above(S: Tensor, threshold: float) -> int:
    return int((S - threshold > 0).sum())


def _right_vectors(W: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """All singular values, descending, and right vectors, accurate above the threshold."""
    squares, vectors = torch.linalg.eigh(W.mH @ W)
    S = squares.clamp(min=0).sqrt().flip(0)
    if threshold < _SQUARES * float(S[0]):
        _, S, Vh = torch.linalg.svd(W, full_matrices=False)
        return S, Vh
    return S, vectors.flip(1).mH


# The iteration


@dataclass(frozen=True)
class _Point:
    """Where the iteration ended."""

    U: Tensor
    S: Tensor
    Vh: Tensor
    sparse: Tensor
    objective: float
    bound: float
    history: list[tuple[float, float, int]]


class _Dual:
    """The variable of a term, and what a step computes of it."""

    def __init__(self, data: Tensor) -> None:
        self.y = torch.zeros_like(data)
        self.target, self.projected, self.move = (torch.empty_like(data) for _ in range(3))


class _Iteration:
    """The relaxed primal-dual iteration; Douglas–Rachford splitting where there is one term.

    All of the size of A is allocated once: fresh memory would take twice the time of a pass.
    """

    def __init__(self, problem: _Problem, key: int) -> None:
        self._problem = problem
        self._size = _norm(problem.A)
        start = randomized_svd(problem.A, min(_AHEAD, problem.A.shape[1]), power_iters=1, seed=key)
        self._shrinkage = _Shrinkage(start.Vh.mH, key)
        self._tau = _FIRST_STEP * float(start.S[0])
        self._last_tau = _LAST_STEP * problem.mean()
        self._next_change, self._wait = 0, _WAIT  # of τ
        self._L = torch.zeros_like(problem.A)
        self._V, self._change, self._buffer = (torch.empty_like(problem.A) for _ in range(3))
        self._duals = [_Dual(term.data) for term in problem.terms]
        self.history: list[tuple[float, float, int]] = []
        self.dual_change = math.inf

    def step(self) -> None:
        problem, tau, V, change = self._problem, self._tau, self._V, self._change
        adjoint = problem.adjoint([dual.y for dual in self._duals])
        torch.sub(self._L, adjoint, alpha=tau, out=self._buffer)
        self._left, self._right, S = self._shrinkage(self._buffer, tau)
        torch.matmul(self._left, self._right, out=V)
        torch.sub(V, self._L, out=change)
        ahead = torch.add(V, change, out=self._buffer)
        value = float(S.sum())
        for term, dual in zip(problem.terms, self._duals, strict=True):
            torch.sub(term.forward(V), term.data, out=dual.move)
            value += term.radius * _norm(dual.move, 1)
            torch.sub(term.forward(ahead), term.data, out=dual.move)
            torch.add(dual.y, dual.move, alpha=term.step / tau, out=dual.target)
            term.project(dual.target, out=dual.projected)
            torch.sub(dual.projected, dual.y, out=dual.move)
        self._scale = tau / problem.terms[0].step
        torch.sub(problem.known(change), self._duals[0].move, alpha=self._scale, out=self._buffer)
        gap = 1 - problem.dual_value(self._feasible()) / value
        self.history.append((_norm(self._buffer) / self._size, gap, len(S)))
        self.dual_change = _norm(change) / tau
        self._move()

    def _feasible(self) -> list[Tensor]:
        """Dual variables that are feasible but for the spectral norm of their adjoint."""
        return [dual.projected for dual in self._duals]

    def _move(self) -> None:
        falling = self._tau > self._last_tau and not self._next_change
        factor = 1.0 if falling else _RELAXATION
        self._L.add_(self._change, alpha=factor)
        for dual in self._duals:
            dual.y.add_(dual.move, alpha=factor)
        count = len(self.history)
        if falling:
            self._tau = max(self._last_tau, self._tau / _FALL)
        elif not self._next_change:
            self._next_change = count + self._wait
        elif count >= self._next_change:
            self._balance()
            self._wait += self._wait // 2
            self._next_change = count + self._wait

    def _balance(self) -> None:
        """Let the primal and the dual variables move as far as each other, in their metric."""
        primal = _norm(self._change)
        squares = (
            _norm(dual.move) ** 2 / term.step
            for term, dual in zip(self._problem.terms, self._duals, strict=True)
        )
        dual = self._tau * math.sqrt(sum(squares))
        if primal > _BALANCE * dual:
            self._tau = min(2 * self._tau, _REACH * self._last_tau)
        elif dual > _BALANCE * primal:
            self._tau = max(self._tau / 2, self._last_tau / _REACH)

    def distrust(self) -> None:
        """Find singular vectors anew: the duals show that some may have been missed."""
        self._shrinkage.exactly()

    def point(self) -> _Point:
        """Exact factors, and the certificate from them."""
        Q, R = torch.linalg.qr(self._left)
        U, S, Vh = torch.linalg.svd(R)
        U, Vh = Q @ U, Vh @ self._right
        objective = self._problem.value((U * S) @ Vh, float(S.sum()))
        bound = self._problem.bound(self._feasible())
        # By Moreau's identity; zero where the projection moved nothing.
        sparse = self._scale * (self._duals[0].projected - self._duals[0].target)
        return _Point(U, S, Vh, sparse, objective, bound, self.history)


def _minimize(problem: _Problem, tol: float, max_iters: int, key: int) -> _Point:
    m, n = problem.A.shape
    if not bool(problem.A.any()):
        empty = problem.A.new_zeros
        values = empty(0).real
        return _Point(empty(m, 0), values, empty(0, n), problem.A, 0.0, 0.0, [])
    iteration = _Iteration(problem, key)
    # A check costs a dense SVD. ‖adjoint(duals)‖₂ − 1 is at most the change of the primal variable
    # over τ, whose spectral norm is 1/√n of its Frobenius norm or more.
    most_change = tol * math.sqrt(n)
    for count in range(1, max_iters + 1):
        iteration.step()
        residual, gap, _ = iteration.history[-1]
        done = residual <= tol and abs(gap) <= tol and iteration.dual_change <= most_change
        if done or count == max_iters:
            point = iteration.point()
            if point.objective - point.bound <= tol * point.objective or count == max_iters:
                break
            excess = (point.objective - point.bound) / (tol * point.objective)
            most_change = iteration.dual_change / min(excess, 10)
            iteration.distrust()
    return point


def _info(point: _Point, nonzeros: int, weight: float, power: float, tol: float) -> RobustPCAInfo:
    residual = point.history[-1][0] if point.history else 0.0
    gap = (point.objective - point.bound) / point.objective if point.history else 0.0
    return RobustPCAInfo(
        rank=len(point.S),
        nonzeros=nonzeros,
        sparsity=weight,
        iterations=len(point.history),
        objective=power * point.objective,
        gap=gap,
        residual=residual,
        converged=gap <= tol and residual <= tol,
        history=tuple(point.history),
    )


def _polished(U: Tensor, Vh: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal to rounding, the largest entry of each column of U real and positive."""
    if not U.numel():
        return U, Vh
    U, Vh = _orthonormal(U), _orthonormal(Vh.mH).mH
    largest = U.gather(0, U.abs().argmax(0, keepdim=True))
    phase = largest / largest.abs()
    return U * phase.conj(), phase.mT * Vh


def _orthonormal(Q: Tensor) -> Tensor:
    """Newton's step to the nearest orthonormal columns, for a product of some such matrices."""
    return 1.5 * Q - 0.5 * (Q @ (Q.mH @ Q))
