"""Robust principal components: a matrix as the sum of one of low rank and a sparse one."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastlr.linalg._arguments import Seed, as_integer, as_real, as_seed, at_least, not_negative
from fastlr.linalg._arrays import Adapted, adapt, as_tensor
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
# each time after half as many iterations more than the time before.
_BALANCE = 2.0
_WAIT = 10
# Directions that are followed beyond those above the threshold: they show what comes next.
_AHEAD = 10
# Squares of singular values below 1e-8 of the largest have an error of 1e-8, relative to them.
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
        (objective − bound) / objective, for a bound below which no L has its objective: that of a
        dual point, which is feasible to rounding. Computed in double precision.
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

    def __new__(cls, U: Any, S: Any, Vh: Any, sparse: Any, info: RobustPCAInfo) -> "RobustPCAResult":
        self = super().__new__(cls, U, S, Vh, sparse)
        self.info = info
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (*self, self.info)

    @property
    def low_rank(self) -> Any:
        return (self.U * self.S) @ self.Vh


def robust_pca(
    A: Any,
    *,
    sparsity: float | None = None,
    mask: Any = None,
    total_variation: float | tuple[float, float] | None = None,
    grid: Sequence[int] | None = None,
    axes: Sequence[int] | None = None,
    tol: float | None = None,
    max_iters: int = 1000,
    seed: Seed = None,
) -> RobustPCAResult:
    """TODO"""
    adapted = adapt(A, _CALLER, complex_=True)
    observed = _mask(mask, adapted.tensor)
    data, scale = _scaled(adapted.tensor.detach(), observed)
    tol = _tolerance(tol, data.dtype)
    weight = _sparsity(sparsity, data, observed)
    variations = _variations(total_variation, grid, axes, tuple(data.shape))
    max_iters = at_least(max_iters, 1, _CALLER, "max_iters")
    problem = _Problem(data, observed, weight, variations)
    key = as_seed(seed, _CALLER)
    if bool(data.any()):
        point, history = _Iteration(problem, key).run(tol, max_iters)
    else:
        point, history = problem.nothing(), []
    return _result(adapted, problem, point, history, scale, tol)


def _tolerance(tol: Any, dtype: torch.dtype) -> float:
    if tol is None:
        return 1e-7 if dtype.to_real() == torch.float64 else 1e-5
    tol = as_real(tol, _CALLER, "tol")
    if not 0 < tol < 1:
        raise ValueError(f"{_CALLER}: tol must be between 0 and 1, got {tol:g}")
    return tol


def _sparsity(sparsity: Any, A: Tensor, observed: Tensor | None) -> float:
    if sparsity is None:
        share = 1.0 if observed is None else float(observed.double().mean())
        return 1 / math.sqrt(max(share * max(A.shape), 1))
    weight = not_negative(sparsity, _CALLER, "sparsity")
    if weight == 0:
        raise ValueError(f"{_CALLER}: sparsity must be positive, got 0")
    return weight


def _mask(mask: Any, A: Tensor) -> Tensor | None:
    if mask is None:
        return None
    observed = mask if isinstance(mask, Tensor) else as_tensor(np.asarray(mask))
    if observed.dtype != torch.bool:
        raise TypeError(f"{_CALLER}: mask must be boolean, got {observed.dtype}")
    if observed.shape != A.shape:
        raise ValueError(
            f"{_CALLER}: mask must have the shape of A, {tuple(A.shape)}, got "
            f"{tuple(observed.shape)}"
        )
    return observed.to(A.device)


def _scaled(A: Tensor, observed: Tensor | None) -> tuple[Tensor, float]:
    """A by a power of two, entries below 1, zero where it is not observed; and that power."""
    known = A.clone() if observed is None else torch.where(observed, A, 0)
    finite = known.isfinite()
    if not bool(finite.all()):
        i, j = finite.logical_not().nonzero()[0].tolist()
        raise ValueError(
            f"{_CALLER}: A must have finite entries, got {known[i, j].item()} at index ({i}, {j})"
            + (" (mask says that it is observed)" if observed is not None else "")
        )
    parts = torch.view_as_real(known.resolve_conj()) if known.is_complex() else known
    largest = float(parts.abs().max()) if parts.numel() else 0.0
    power = math.ldexp(1.0, math.frexp(largest)[1]-1) if largest else 1.0
    return known / power, power


@dataclass(frozen=True)
class _Variation:
    """Differences between neighbours along an axis of the grid that the matrix is laid out on."""

    grid: tuple[int, ...]
    axis: int
    weights: tuple[float, float]  # of the low-rank part, of the sparse part

    def differences(self, X: Tensor) -> Tensor:
        return torch.diff(X.reshape(self.grid), dim=self.axis)

    def adjoint(self, Y: Tensor, shape: torch.Size) -> Tensor:
        X = Y.new_zeros(self.grid)
        last = self.grid[self.axis] - 1
        X.narrow(self.axis, 1, last).add_(Y)
        X.narrow(self.axis, 0, last).sub_(Y)
        return X.reshape(shape)


def _variations(
    weights: Any, grid: Any, axes: Any, shape: tuple[int, ...]
) -> list[_Variation]:
    if weights is None:
        for value, name in ((grid, "grid"), (axes, "axes")):
            if value is not None:
                raise ValueError(f"{_CALLER}: {name} goes with total_variation, got {value!r}")
        return []
    pair = weights if isinstance(weights, tuple) else (weights, 0.0)
    if len(pair) != 2:
        raise ValueError(
            f"{_CALLER}: total_variation must be a weight or a pair of them, got {weights!r}"
        )
    low, sparse = (not_negative(value, _CALLER, "total_variation") for value in pair)
    sizes = shape if grid is None else tuple(at_least(n, 0, _CALLER, "grid") for n in grid)
    if math.prod(sizes) != math.prod(shape):
        raise ValueError(
            f"{_CALLER}: grid must have as many points as A has entries, {math.prod(shape)}, got "
            f"{sizes}"
        )
    chosen = range(len(sizes)) if axes is None else [as_integer(a, _CALLER, "axes") for a in axes]
    for axis in chosen:
        if not -len(sizes) <= axis < len(sizes):
            raise ValueError(
                f"{_CALLER}: axes must be those of the grid, {len(sizes)} in number, got {axis}"
            )
    distinct = dict.fromkeys(axis % len(sizes) for axis in chosen)
    # A weight of zero and an axis of one point have no differences that count.
    return [
        _Variation(sizes, axis, (low, sparse)) for axis in distinct if sizes[axis] > 1 and low+sparse>0
    ]


@dataclass
class _Term:
    """radius·‖forward(L) − data‖₁, and the variable of its dual, whose entries are at most radius.

    ‖forward‖² is at most share·bound of what the steps allow: σ = step/τ.
    """

    forward: Callable[[Tensor], Tensor]
    adjoint: Callable[[Tensor], Tensor]
    data: Tensor
    radius: float
    step: float

    def distance(self, L: Tensor) -> float:
        """The term itself."""
        return self.radius * float(torch.linalg.vector_norm(self.forward(L) - self.data, 1))


class _Problem:
    """Minimise ‖L‖_* + the sum of the terms; the first one is λ·‖A − L‖₁."""

    def __init__(
        self, A: Tensor, observed: Tensor | None, weight: float, variations: list[_Variation]
    ) -> None:
        self.A, self.observed = A, observed
        shape = A.shape
        entries, others = (0.5, 0.5) if variations else (1.0, 0.0)
        self.terms = [_Term(self.known, lambda y: y, A, weight, entries)]
        count = sum(weight > 0 for each in variations for weight in each.weights)
        for each in variations:
            # Differences have a norm of 2 at most.
            step = others / (4 * count)
            low, sparse = each.weights
            if low > 0:
                self.terms.append(
                    _Term(
                        each.differences,
                        partial(each.adjoint, shape=shape),
                        torch.zeros_like(each.differences(A)),
                        low,
                        step,
                    )
                )
            if sparse > 0:
                self.terms.append(
                    _Term(
                        lambda X, each=each: each.differences(self.known(X)),
                        lambda y, each=each: self.known(each.adjoint(y, shape)),
                        each.differences(A),
                        sparse,
                        step,
                    )
                )

    def known(self, X: Tensor) -> Tensor:
        """X where A is observed, zero elsewhere."""
        return X if self.observed is None else X * self.observed

    def adjoint(self, duals: Sequence[Tensor]) -> Tensor:
        return sum(t.adjoint(y) for t, y in zip(self.terms, duals))

    def bound(self, duals: list[Tensor]) -> float:
        """The objective of a dual point, its spectral norm aside."""
        return -sum(float(torch.vdot(t.data.flatten(), y.flatten()).real) for t, y in zip(self.terms, duals))


class _Shrinkage:
    def __init__(self, start: Tensor, key: int) -> None:
        self.basis, self.key, self.drawn = start, key, 0
        self.full=0; self.part=0

    def __call__(self, W: Tensor, threshold: float):
        n = W.shape[1]
        while 3 * self.basis.shape[1] < n:
            self.part+=1
            Q = torch.linalg.qr(W @ self.basis).Q
            U, S, Vh = torch.linalg.svd(Q.mH @ W, full_matrices=False)
            count = int((S > threshold).sum())
            if count + _AHEAD // 2 <= len(S):
                self._follow(Vh[: count + _AHEAD].mH, count)
                S = S[:count] - threshold
                return Q @ (U[:, :count] * S), Vh[:count], S
            self._follow(Vh.mH, 2 * count)
        self.full+=1
        left, Vh, S, count = _all_above(W, threshold)
        self._follow(Vh[: count + _AHEAD].mH, count)
        return left, Vh[:count], S[:count] - threshold

    def _follow(self, vectors: Tensor, count: int) -> None:
        missing = count + _AHEAD - vectors.shape[1]
        if missing > 0:
            new = random_matrix(len(vectors), missing, seed=self.key, column_offset=self.drawn, dtype=vectors.dtype.to_real(), device=vectors.device)
            self.drawn += missing
            vectors = torch.cat([vectors, new.to(vectors.dtype)], 1)
        self.basis = vectors


def _all_above(W, threshold):
    wide = W.to(torch.complex128 if W.is_complex() else torch.float64)
    squares, Q = torch.linalg.eigh(wide.mH @ wide)
    S, Q = squares.clamp(min=0).sqrt().flip(0), Q.flip(1)
    count = int((S > threshold).sum())
    if threshold < _SQUARES * float(S[0]):
        U, S, Vh = torch.linalg.svd(W, full_matrices=False)
        count = int((S > threshold).sum())
        return U[:, :count] * (S[:count] - threshold), Vh, S, count
    S, Q = S.to(W.dtype.to_real()), Q.to(W.dtype)
    return W @ (Q[:, :count] * (1 - threshold / S[:count])), Q.mH, S, count


def clip(y: Tensor, radius: float) -> Tensor:
    if y.is_complex():
        return y / (y.abs() / radius).clamp(min=1)
    return y.clamp(-radius, radius)


def certificate(problem, left, right, duals):
    wide = torch.complex128 if left.is_complex() else torch.float64
    Q, R = torch.linalg.qr(left.to(wide))
    U, S, Vh = torch.linalg.svd(R)
    U, Vh = Q @ U, Vh @ right.to(wide)
    L = (U * S) @ Vh
    objective = float(S.sum()) + sum(t.distance(L) for t in problem.terms)
    duals = [y.to(wide) for y in duals]
    norm = float(torch.linalg.matrix_norm(problem.adjoint(duals), 2))
    return U, S, Vh, objective, max(0.0, problem.bound(duals) / max(1.0, norm))


def solve(problem, key, tol, max_iters, verbose=0):
    A, terms = problem.A, problem.terms
    norm, size = float(torch.linalg.vector_norm(A)), min(A.shape)
    first = randomized_svd(A, min(_AHEAD, size), power_iters=1, seed=key)
    shrink = _Shrinkage(first.Vh.mH, key)
    tau = _FIRST_STEP * float(first.S[0])
    last = _LAST_STEP * float(A.abs().sum()) / (A.numel() if problem.observed is None else int(problem.observed.sum()))
    L, duals = torch.zeros_like(A), [torch.zeros_like(t.data) for t in terms]
    history = []; limit = tol * math.sqrt(size); falling = True; wait = _WAIT; turn = 0; checks = 0
    for k in range(1, max_iters + 1):
        left, right, S = shrink(L - tau * problem.adjoint(duals), tau)
        V = left @ right
        change = V - L
        ahead = V + change
        moved, new, dist2 = [], [], 0.0
        for t, y in zip(terms, duals):
            sigma = t.step / tau
            q = y + sigma * (t.forward(ahead) - t.data)
            z = clip(q, t.radius)
            if t is terms[0]:
                sparse = (z - q) / sigma
            d = z - y
            moved.append(d); new.append(z)
            dist2 += float(torch.linalg.vector_norm(d)) ** 2 * tau / sigma
        residual = float(torch.linalg.vector_norm(problem.known(change) - moved[0] * (tau / terms[0].step))) / norm
        objective = float(S.sum()) + sum(t.distance(V) for t in terms)
        gap = 1 - problem.bound(new) / objective
        dx, dy = float(torch.linalg.vector_norm(change)), math.sqrt(dist2)
        history.append((residual, gap, len(S)))
        if verbose and k % verbose == 0: print(k, "res %.1e gap %.1e rank %d tau %.2e dx/dy %.2f"%(residual,gap,len(S),tau,dx/max(dy,1e-300)))
        done = residual <= tol and abs(gap) <= tol and dx <= limit * tau
        if done or k == max_iters:
            checks += 1
            U, S, Vh, objective, bound = certificate(problem, left, right, new)
            true = (objective - bound) / objective
            if true <= tol or k == max_iters: break
            limit = dx / tau * max(0.1, tol / true)
        a = 1.0 if falling else _RELAXATION
        L = L + a * change
        duals = [y + a * d for y, d in zip(duals, moved)]
        if falling:
            tau = max(last, tau / _FALL)
            if tau == last: falling = False; turn = k + wait
        elif k >= turn:
            if dx > _BALANCE * dy: tau *= 2
            elif dy > _BALANCE * dx: tau /= 2
            wait += wait // 2; turn = k + wait
    return dict(U=U, S=S, Vh=Vh, sparse=sparse, objective=objective, gap=true, k=k, history=history, checks=checks, full=shrink.full, part=shrink.part)
