"""Low-rank matrices from linear measurements, by descent on two thin factors."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastlr.linalg._arguments import Seed, as_real, as_seed, as_tolerance, at_least
from fastlr.linalg._arrays import adapt
from fastlr.linalg._autocast import as_written
from fastlr.linalg._sources import Matrix, open_block
from fastlr.linalg._warnings import warn
from fastlr.linalg.norms import estimate_norm
from fastlr.linalg.operators import LinearOperator
from fastlr.linalg.random import random_matrix
from fastlr.linalg.results import ConvergenceWarning
from fastlr.linalg.svd import randomized_svd

_CALLER = "matrix_sensing"
_METHODS = ("scaled_gd", "gd")
_PARAMETERIZATIONS = ("asymmetric", "symmetric")

# The damping of the preconditioners, in units of ‖X − truth‖_F as the residual shows it.
_DAMPING = 0.01
# Of the random start of plain descent, relative to √‖X‖₂.
_INIT_SCALE = 0.1
# The second factor of a random start is that much smaller: descent keeps the difference of the two
# Gram matrices, and by it alone do superfluous directions vanish at a linear rate.
_IMBALANCE = 1 / 3
# Columns of the spectral start are at least that long, relative to the first: zeros stay zeros.
_LEAST_START = 1e-3
# Where the factors are balanced anew, relative to ‖y‖.
_REBALANCE = 0.1
# A residual of so many u·‖y‖ is rounding; one that changes by so many u of itself stands still.
_ROUNDING, _STILL = 16, 8
# In one iteration; after them what a step could still change is rounding.
_MOST_HALVINGS = 50


@dataclass(frozen=True)
class SensingInfo:
    """How a matrix was recovered.

    Attributes
    ----------
    method : {"scaled_gd", "gd"}
    parameterization : {"asymmetric", "symmetric"}
    iterations : int
        Steps taken.
    converged : bool
        Whether `tol` was met; without `tol`, whether descent went on until the data were fitted to
        rounding or no step lowered the residual any more.
    relative_residual : float
        ‖A(X) − y‖ / ‖y‖ of the factors before they are rounded to the dtype of the result; 0 for
        y = 0.
    history : tuple of float
        The relative residuals from the start to the end, ``iterations + 1`` of them.
    step : float
        The last one taken: in units of 1/(‖A‖²·‖X‖₂) for "gd"; of 1/c² for "scaled_gd", with c as
        in the notes of `matrix_sensing`. 0 where none was.
    passes : int
        Products with the operator or its transpose.
    rebalanced : int or None
        The iteration before which the factors were rebalanced, if they were.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> A = la.random_matrix(60, 64, seed=0, dtype=torch.float64)
    >>> info = la.matrix_sensing(A, A.sum(1), (8, 8), 1).info
    >>> info.converged, info.relative_residual < 1e-14, info.rebalanced
    (True, True, None)
    """

    method: str
    parameterization: str
    iterations: int
    converged: bool
    relative_residual: float
    history: tuple[float, ...]
    step: float
    passes: int
    rebalanced: int | None


class _SensingFields(NamedTuple):
    U: Any
    V: Any


class SensingResult(_SensingFields):
    """The factors of X = U @ V.T.

    Attributes
    ----------
    U : array, shape (m, rank)
    V : array, shape (n, rank)
        U itself for the symmetric parameterization.
    info : SensingInfo
        Not part of the tuple.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> A = la.random_matrix(60, 64, seed=0, dtype=torch.float64)
    >>> U, V = la.matrix_sensing(A, A.sum(1), (8, 8), 1)
    >>> bool((U @ V.T - 1).abs().max() < 1e-13)
    True
    """

    info: SensingInfo

    def __new__(cls, U: Any, V: Any, info: SensingInfo) -> "SensingResult":
        self = super().__new__(cls, U, V)
        self.info = info
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (*self, self.info)


@as_written
def matrix_sensing(
    operator: Any,
    y: Any,
    shape: tuple[int, int],
    rank: int,
    *,
    method: Literal["scaled_gd", "gd"] = "scaled_gd",
    parameterization: Literal["asymmetric", "symmetric"] = "asymmetric",
    init_scale: float | None = None,
    rebalance: bool = False,
    tol: float | None = None,
    max_iters: int = 2000,
    seed: Seed = None,
) -> SensingResult:
    """Recover a matrix of low rank from linear measurements y = A(X) of it.

    X = U·Vᵀ is sought by descent on ½‖A(U·Vᵀ) − y‖² over the factors.

    Parameters
    ----------
    operator : array, Tensor, sparse matrix or operator, shape (p, m, n) or (p, m·n)
        A: a dense stack of p matrices, whose inner products with X are the measurements, or a
        matrix that is applied to the rows of X one behind the other (row-major vec(X)): dense,
        SciPy or torch sparse, a `LinearOperator` of fastlr or SciPy. Real. float16 and bfloat16
        are computed in float32. Never written to.
    y : array or Tensor, shape (p,)
        The measurements, of the kind and on the device of the operator (a `LinearOperator` of
        fastlr is torch, SciPy's is NumPy); computed in the dtype of the operator.
    shape : (int, int)
        m and n.
    rank : int
        k, between 1 and min(m, n): of the truth, or above it.
    method : {"scaled_gd", "gd"}
        "scaled_gd": gradients with preconditioners, exact line search. The number of iterations
        hardly depends on the condition number of X. "gd": plain gradients with a constant step,
        for comparison and for theory.
    parameterization : {"asymmetric", "symmetric"}
        "symmetric": X = U·Uᵀ, positive semidefinite, m = n.
    init_scale : float, optional
        α > 0: start from random factors, of singular values near α·√‖X‖₂ (V a third of it), where
        ‖X‖₂ is estimated. None is a spectral start for "scaled_gd", and α = 0.1 for "gd".
    rebalance : bool
        For "gd", asymmetric. Once the relative residual is below 0.1, replace U by orthogonal
        columns of length √‖X‖₂, and V so that the product stays. A rank above the truth's then
        costs no more than the right one, whatever α. Noise above 0.1 leaves it out
        (``info.rebalanced`` is None).
    tol : float, optional
        Stop at ‖A(X) − y‖ ≤ tol·‖y‖, 0 < tol < 1. If None, go on until the residual is 16·u·‖y‖ or
        no step lowers it: the way to go with noise.
    max_iters : int
        The most iterations.
    seed : int, torch.Generator or None
        Of random starts and of the randomized SVD. The same seed gives the same factors; None draws
        one from torch's default generator.

    Returns
    -------
    SensingResult
        ``U`` (m, k), ``V`` (n, k) and ``info``, with X = U @ V.T. The kind, dtype and device are
        those of the operator.

    Raises
    ------
    ValueError
        Sizes that do not match, a shape that is not square for "symmetric", `rank`, `tol`,
        `init_scale` or `max_iters` out of range, an unknown method or parameterization, `rebalance`
        where it has no meaning, an entry that is not finite (its index is named).
    TypeError
        Complex numbers, NumPy and torch mixed, a number of the wrong type.

    Warns
    -----
    ConvergenceWarning
        `tol` was not met; without `tol`, `max_iters` was. ``info.converged`` is False.

    Notes
    -----
    A small residual is not a recovery. With p below the (m + n − k)·k degrees of freedom
    (n·k − k·(k − 1)/2 for the symmetric) other matrices fit as well, and one of them is returned;
    from Gaussian measurements some two to three times as many are needed. A rank above the truth's
    has more degrees of freedom, all of which count.

    "scaled_gd": the directions are −G·V·(VᵀV + εI)⁻¹ and −Gᵀ·U·(UᵀU + εI)⁻¹, with the gradient
    G = Aᵀ(A(X) − y) and ε 1 % of ‖A(X) − y‖/c, where c is ‖A(X₀)‖/‖X₀‖_F at the spectral
    start. It vanishes with the residual, and keeps superfluous columns from being blown up. Along
    the directions ‖A(X) − y‖² is a polynomial of degree 4 in the step; its first minimum is taken,
    and the residual never rises. Three passes an iteration: the gradient, both new coefficients of
    the polynomial, and the residual afresh, so that no rounding adds up.

    "gd": steps of 1/(2·‖A‖²·‖X‖₂), with an ‖A‖ that is at most 5 % above the operator's norm. Two
    passes an iteration. A step that would raise the residual is halved for good. With the right
    rank, and with any above it after `rebalance`, the error falls linearly. With a rank above the
    truth's it falls as 1/T (no faster) for the symmetric parameterization, and linearly but at a
    rate of α² for the asymmetric one.

    Each pass is 2·p·m·n flops for a dense operator (twice that for the polynomial); besides it
    there are 8·m·n·k flops an iteration. The start takes four passes and the leading singular
    vectors (all eigenvectors, for the symmetric) of an m × n matrix. The operator and y are scaled
    by powers of two. Not differentiable.

    Sources: Tong, Ma, Chi, "Accelerating ill-conditioned low-rank matrix estimation via scaled
    gradient descent", JMLR 22 (2021); Zhang, Fattahi, Zhang, "Preconditioned gradient descent for
    over-parameterized nonconvex matrix factorization", NeurIPS 2021, for an ε that follows the
    residual; Xu, Shen, Chi, Ma, "The power of preconditioning in overparameterized low-rank matrix
    sensing", ICML 2023; Xiong, Ding, Du, "How over-parameterization slows down gradient descent in
    matrix sensing: the curses of symmetry and initialization", ICLR 2024, for "gd" and `rebalance`.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> X = torch.outer(torch.arange(1.0, 11.0), torch.arange(1.0, 9.0)).double()
    >>> A = la.random_matrix(60, 80, seed=0, dtype=torch.float64)
    >>> U, V = la.matrix_sensing(A, A @ X.ravel(), X.shape, 1)
    >>> bool((U @ V.T - X).abs().max() < 1e-12 * X.max())
    True
    """
    problem = _checked(operator, y, shape, rank, method, parameterization)
    scale = _checked_scale(init_scale)
    if rebalance and (method, parameterization) != ("gd", "asymmetric"):
        raise ValueError(
            f'{_CALLER}: rebalance takes method="gd" with parameterization="asymmetric", got '
            f"{method!r} with {parameterization!r}"
        )
    target = None if tol is None else as_tolerance(tol, _CALLER)
    most = at_least(max_iters, 0, _CALLER, "max_iters")
    run = _Run(problem, as_seed(seed, _CALLER))
    run.descend(method, scale, bool(rebalance), target, most)
    if not run.converged:
        _warn(run, tol, most)
    U, V = problem.in_units(run.U, run.V)
    return SensingResult(
        U,
        V,
        SensingInfo(
            method,
            parameterization,
            len(run.history) - 1,
            run.converged,
            run.history[-1],
            tuple(run.history),
            run.step,
            problem.passes,
            run.rebalanced,
        ),
    )


class _Problem:
    """The measurements, with a power of two taken out of the operator and of y."""

    def __init__(
        self, matrix: Matrix, y: Tensor, shape: tuple[int, int], rank: int, symmetric: bool
    ) -> None:
        self.matrix = matrix
        self.shape = shape
        self.rank = rank
        self.symmetric = symmetric
        self.passes = 0
        data = matrix.data
        self._A = data if isinstance(data, LinearOperator) else _operator_of(data)
        probe = random_matrix(self._A.shape[1], 1, seed=0, dtype=y.dtype, device=y.device)
        self.passes += 1
        operator_exponent = _exponent(self._A.matmat(probe))
        y_exponent = _exponent(y)
        # Half of the difference goes to each factor.
        y_exponent += (y_exponent - operator_exponent) % 2
        self._half = (y_exponent - operator_exponent) // 2
        self._inverse_unit = 2.0**-operator_exponent
        self.y = y * 2.0**-y_exponent
        self.y_norm = _norm(self.y)

    def measure(self, *matrices: Tensor) -> tuple[Tensor, ...]:
        """A of each matrix, in one pass."""
        self.passes += 1
        columns = torch.stack([X.reshape(-1) for X in matrices], 1)
        return tuple((self._A.matmat(columns) * self._inverse_unit).unbind(1))

    def adjoint(self, residual: Tensor) -> Tensor:
        """Aᵀ of a residual; where X is symmetric, its symmetric part."""
        self.passes += 1
        G = (self._A.rmatmat(residual[:, None]) * self._inverse_unit).reshape(self.shape)
        return (G + G.mT) / 2 if self.symmetric else G

    def norm(self, seed: int) -> float:
        """An upper bound of the spectral norm, at most 5 % above it."""
        scaled = LinearOperator(
            self._A.shape,
            lambda X: self._A.matmat(X) * self._inverse_unit,
            lambda Y: self._A.rmatmat(Y) * self._inverse_unit,
            dtype=self._A.dtype,
            device=self._A.device,
        )
        estimate = estimate_norm(scaled, seed=seed)
        self.passes += estimate.info.passes
        return estimate.upper

    def residual(self, U: Tensor, V: Tensor) -> Tensor:
        return self.measure(U @ V.mT)[0] - self.y

    def in_units(self, U: Tensor, V: Tensor) -> tuple[Any, Any]:
        """The factors as the caller gets them."""
        left = self.matrix.restore(U * 2.0**self._half)
        return left, left if self.symmetric else self.matrix.restore(V * 2.0**self._half)


def _operator_of(A: Tensor) -> LinearOperator:
    # The transpose of CSR is CSC, whose products are slow or missing.
    transposed = A.mT if A.layout == torch.strided else A.mT.to_sparse_csr()
    return LinearOperator(
        (A.shape[0], A.shape[1]),
        lambda X: A @ X,
        lambda Y: transposed @ Y,
        dtype=A.dtype,
        device=A.device,
    )


class _Start(NamedTuple):
    U: Tensor
    V: Tensor
    size: float  # ‖X‖₂
    gain: float  # ‖A(X)‖/‖X‖_F


class _Run:
    """A descent and what is told of it afterwards."""

    def __init__(self, problem: _Problem, seed: int) -> None:
        self.problem = problem
        self.seed = seed
        self.U = problem.y.new_zeros(problem.shape[0], problem.rank)
        self.V = (
            self.U if problem.symmetric else problem.y.new_zeros(problem.shape[1], problem.rank)
        )
        self.history: list[float] = []
        self.step = 0.0
        self.converged = False
        self.rebalanced: int | None = None

    def descend(
        self, method: str, scale: float | None, rebalance: bool, tol: float | None, most: int
    ) -> None:
        """Take steps until one of the criteria is met."""
        start = _spectral_start(self.problem, self.seed)
        if start is None:
            # X = 0 minimises the residual.
            self.history.append(1.0 if self.problem.y_norm else 0.0)
            self.converged = tol is None or self.history[-1] <= tol
            return
        if method == "gd" or scale is not None:
            self.U, self.V = _random_start(self.problem, start, scale or _INIT_SCALE, self.seed)
        else:
            self.U, self.V = start.U, start.V
        r = self.problem.residual(self.U, self.V)
        self.history.append(self._relative(r))
        steps = self._plain(r, start, rebalance) if method == "gd" else self._scaled(r, start)
        target = _ROUNDING * _eps(r) / 2 if tol is None else tol
        while self.history[-1] > target:
            if len(self.history) > most:
                return
            r_new = next(steps, None)
            if r_new is None:
                self.converged = tol is None
                return
            self.history.append(self._relative(r_new))
        self.converged = True

    def _relative(self, r: Tensor) -> float:
        return _norm(r) / self.problem.y_norm

    def _scaled(self, r: Tensor, start: _Start) -> Iterator[Tensor]:
        """Residuals after preconditioned steps, each to the minimum along its direction."""
        problem = self.problem
        while True:
            damping = _DAMPING * _norm(r) / start.gain
            G = problem.adjoint(r)
            dU = -G @ _preconditioned(self.V, damping)
            dV = dU if problem.symmetric else -G.mT @ _preconditioned(self.U, damping)
            half = dU @ self.V.mT
            other = half.mT if problem.symmetric else self.U @ dV.mT
            step = _exact_step(r, *problem.measure(half + other, dU @ dV.mT))
            U = self.U + step * dU
            V = U if problem.symmetric else self.V + step * dV
            r_new = problem.residual(U, V)
            if not _norm(r_new) < (1 - _STILL * _eps(r) / 2) * _norm(r):
                return
            self.step = step * start.gain**2
            self.U, self.V, r = U, V, r_new
            yield r

    def _plain(self, r: Tensor, start: _Start, rebalance: bool) -> Iterator[Tensor]:
        """Residuals after gradient steps of constant size."""
        problem = self.problem
        norm = problem.norm(self.seed)
        unit = 1 / (norm**2 * start.size)
        step = unit / 2
        while True:
            if rebalance and self.rebalanced is None and self._relative(r) <= _REBALANCE:
                self.U, self.V = _rebalanced(self.U, self.V)
                self.rebalanced = len(self.history)
            G = problem.adjoint(r)
            dU = -G @ self.V
            dV = dU if problem.symmetric else -G.mT @ self.U
            # A gradient that is the rounding of the product Aᵀr, or one that the factors swallow.
            noise = _eps(r) * norm * _norm(r)
            still = all(
                _norm(d) <= max(noise * _norm(other), _eps(r) * _norm(F) / step)
                for d, F, other in ((dU, self.U, self.V), (dV, self.V, self.U))
            )
            if still:
                return
            for _ in range(_MOST_HALVINGS):
                U = self.U + step * dU
                V = U if problem.symmetric else self.V + step * dV
                r_new = problem.residual(U, V)
                # From tiny factors the residual stands still while they grow, and in noise while
                # the gradient falls from √u to u: what rounding adds is no rise.
                if _norm(r_new) <= _norm(r) + _ROUNDING * _eps(r) / 2 * problem.y_norm:
                    break
                step /= 2
            else:
                return
            self.step = step / unit
            self.U, self.V, r = U, V, r_new
            yield r


def _spectral_start(problem: _Problem, seed: int) -> _Start | None:
    """The leading part of Aᵀ(y), multiplied by what fits y best; None where it is zero."""
    D = problem.adjoint(problem.y)
    if problem.symmetric:
        values, vectors = torch.linalg.eigh(D)
        left = right = vectors[:, -problem.rank :].flip(1)
        S = values[-problem.rank :].flip(0)
    else:
        left, S, Vh = randomized_svd(D, problem.rank, seed=seed)
        right = Vh.mT
    # Without a positive eigenvalue 0 is the best positive semidefinite matrix: the misfit is convex
    # in X, and its gradient there, −D, is positive semidefinite.
    if not float(S[0]) > 0:
        return None
    # What is negative does not count in the fit: ⟨A(X), y⟩ = ⟨X, D⟩ is positive but for rounding.
    S = (S / S[0]).clamp(min=0)
    (measured,) = problem.measure((left * S) @ right.mT)
    fitted = float(measured.double() @ problem.y.double())
    if not fitted > 0:
        return None
    norm = _norm(measured)
    factor = fitted / norm**2
    roots = (factor * S.clamp(min=_LEAST_START)).sqrt()
    U = left * roots
    return _Start(U, U if problem.symmetric else right * roots, factor, norm / _norm(S))


def _random_start(
    problem: _Problem, start: _Start, scale: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Gaussian factors with singular values near scale·√‖X‖₂, the second of a third of it."""

    def factor(rows: int, size: float, offset: int) -> Tensor:
        draw: Tensor = random_matrix(
            rows,
            problem.rank,
            seed=seed,
            row_offset=offset,
            dtype=problem.y.dtype,
            device=problem.y.device,
        )
        return draw.mul_(size * math.sqrt(start.size / rows))

    m, n = problem.shape
    U = factor(m, scale, 0)
    return U, U if problem.symmetric else factor(n, scale * _IMBALANCE, m)


def _preconditioned(V: Tensor, damping: float) -> Tensor:
    """V·(VᵀV + εI)⁻¹, whatever the rank of V."""
    values, vectors = torch.linalg.eigh(V.mT @ V)
    least = len(values) * _eps(V) * values[-1]
    # From the left, since the inverse itself is rounded in units of 1/ε.
    result: Tensor = (V @ vectors) / (values.clamp(min=0) + damping + least) @ vectors.mT
    return result


def _exact_step(r: Tensor, a: Tensor, b: Tensor) -> float:
    """The first η > 0 where ‖r + η·a + η²·b‖ has a minimum; 0 if it does not fall from η = 0."""
    r, a, b = r.double(), a.double(), b.double()
    slope = float(r @ a)
    if not slope < 0:
        return 0.0
    # The derivative by η, with 1/η as the unknown: the leading coefficient does not vanish, and the
    # first minimum is the largest root, which is accurate where the others are rounding.
    inverses = np.roots([slope, float(a @ a + 2 * r @ b), 3 * float(a @ b), 2 * float(b @ b)])
    return 1 / float(max(inverses[inverses.imag == 0].real))


def _rebalanced(U: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
    """The same product, with a first factor of orthogonal columns of length √‖X‖₂."""
    P, S, Qh = torch.linalg.svd(U, full_matrices=False)
    W = V @ (Qh.mT * S)
    length = math.sqrt(float(torch.linalg.matrix_norm(W, 2)))
    return P * length, W / length


def _norm(A: Tensor) -> float:
    return float(torch.linalg.vector_norm(A, dtype=torch.float64))


def _eps(A: Tensor) -> float:
    return torch.finfo(A.dtype).eps


def _exponent(A: Tensor) -> int:
    """Of the power of two next to the largest entry, and of one with an inverse; 0 for zeros."""
    largest = float(A.abs().amax()) if A.numel() else 0.0
    limit = math.frexp(torch.finfo(A.dtype).max)[1] - 2
    return max(-limit, min(math.frexp(largest)[1], limit))


def _warn(run: _Run, tol: float | None, most: int) -> None:
    iterations = len(run.history) - 1
    wanted = "still falls" if tol is None else f"is more than tol = {tol:g}"
    limit = " = max_iters" if iterations == most else ""
    warn(
        f"{_CALLER}: after {iterations}{limit} iterations the relative residual of "
        f"{run.history[-1]:.3g} {wanted}",
        ConvergenceWarning,
    )


def _checked_scale(init_scale: float | None) -> float | None:
    if init_scale is None:
        return None
    scale = as_real(init_scale, _CALLER, "init_scale")
    if not 0 < scale < math.inf:
        raise ValueError(f"{_CALLER}: init_scale must be positive and finite, got {scale:g}")
    return scale


def _checked(
    operator: Any, y: Any, shape: Any, rank: Any, method: str, parameterization: str
) -> _Problem:
    """The problem; whatever is wrong with it is said."""
    for value, known, name in (
        (method, _METHODS, "method"),
        (parameterization, _PARAMETERIZATIONS, "parameterization"),
    ):
        if value not in known:
            raise ValueError(f"{_CALLER}: {name} must be one of {', '.join(known)}, got {value!r}")
    m, n = _checked_shape(shape, parameterization)
    k = at_least(rank, 1, _CALLER, "rank")
    if k > min(m, n):
        raise ValueError(f"{_CALLER}: rank must be between 1 and min(m, n) = {min(m, n)}, got {k}")
    matrix = _opened(operator, m, n)
    measurements = _measurements(y, matrix)
    if tuple(matrix.data.shape) != (len(measurements), m * n):
        raise ValueError(
            f"{_CALLER}: operator must have shape {(len(measurements), m, n)} or "
            f"{(len(measurements), m * n)} for y of length {len(measurements)} and shape {(m, n)}, "
            f"got {tuple(matrix.data.shape)}"
        )
    return _Problem(matrix, measurements, (m, n), k, parameterization == "symmetric")


def _checked_shape(shape: Any, parameterization: str) -> tuple[int, int]:
    if not isinstance(shape, tuple | list | torch.Size) or len(shape) != 2:
        raise TypeError(f"{_CALLER}: shape must be a pair (m, n), got {shape!r}")
    m, n = (at_least(size, 1, _CALLER, "shape") for size in shape)
    if parameterization == "symmetric" and m != n:
        raise ValueError(
            f'{_CALLER}: shape must be square for parameterization="symmetric", got {(m, n)}'
        )
    return m, n


def _opened(operator: Any, m: int, n: int) -> Matrix:
    """The operator as a dense or CSR tensor (p, m·n), or by its products."""
    if getattr(operator, "ndim", 2) not in (2, 3):
        raise ValueError(
            f"{_CALLER}: operator must have 2 or 3 dimensions, got shape {tuple(operator.shape)}"
        )
    if isinstance(operator, LinearOperator):
        matrix = Matrix(operator, False, operator.dtype)
    elif hasattr(operator, "matmat") and hasattr(operator, "rmatmat"):
        wrapped = LinearOperator.from_scipy(operator)
        matrix = Matrix(wrapped, True, wrapped.dtype)
    elif getattr(operator, "ndim", 2) == 3 and getattr(operator, "layout", None) in (
        None,
        torch.strided,
    ):
        adapted = adapt(operator, _CALLER, "operator", batched=True, complex_=True)
        if adapted.tensor.shape[1:] != (m, n):
            raise ValueError(
                f"{_CALLER}: operator must have shape (p, {m}, {n}), got "
                f"{tuple(adapted.tensor.shape)}"
            )
        stack = adapted.tensor.detach()
        _check_finite(stack, "operator")
        matrix = Matrix(stack.reshape(len(stack), m * n), adapted.numpy, adapted.dtype)
    else:
        matrix = open_block(operator, _CALLER, "operator", axis=0)
        _check_finite(matrix.data, "operator")
    if matrix.dtype.is_complex:
        raise TypeError(f"{_CALLER}: operator must be real, got {matrix.dtype}")
    return matrix


def _measurements(y: Any, matrix: Matrix) -> Tensor:
    """y as a vector of the operator's dtype."""
    if isinstance(y, Tensor) is matrix.numpy:
        raise TypeError(f"{_CALLER}: operator and y must both be of NumPy or both of torch")
    array = y if isinstance(y, Tensor) else np.asarray(y)
    if array.ndim != 1:
        raise ValueError(f"{_CALLER}: y must have one dimension, got shape {tuple(array.shape)}")
    tensor = adapt(array[None], _CALLER, "y").tensor[0].detach()
    if tensor.device != matrix.data.device:
        raise ValueError(
            f"{_CALLER}: y must be on the device of operator, {matrix.data.device}, got "
            f"{tensor.device}"
        )
    tensor = tensor.to(matrix.data.dtype)
    _check_finite(tensor, "y")
    return tensor


def _check_finite(tensor: Tensor, name: str) -> None:
    values = tensor if tensor.layout == torch.strided else tensor.values()
    finite = torch.isfinite(values)
    if bool(finite.all()):
        return
    first = finite.logical_not().nonzero()[0]
    bad = values[tuple(first)].item()
    if tensor.layout == torch.strided:
        index = tuple(first.tolist())
    else:
        row = torch.searchsorted(tensor.crow_indices(), first[0], right=True) - 1
        index = (int(row), int(tensor.col_indices()[first[0]]))
    raise ValueError(f"{_CALLER}: {name} must be finite, got {bad} at index {index}")
