"""Minimization under equality constraints by inexact Newton steps and an exact merit function."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastlr import _core
from fastlr.linalg._arguments import Seed, as_real, as_seed, at_least
from fastlr.linalg._arrays import Adapted, adapt
from fastlr.linalg._autocast import as_written
from fastlr.linalg._warnings import warn
from fastlr.linalg.kkt import default_tol, solve_operators
from fastlr.linalg.results import ConvergenceWarning

_CALLER = "minimize_equality"

# What torch's stubs have no types for.
_autograd: Any = torch.autograd.functional
_LinAlgError: Any = vars(torch.linalg)["LinAlgError"]

Function = Callable[[Tensor], Any]
LagrangianHessian = Callable[[Tensor, Tensor], Any]

# Of the merit function and the accuracy, to begin with; how they change where a step is no descent.
_ETA1, _ETA2, _ACCURACY = 1.0, 0.1, 0.1
_FACTOR = 2.0
# A step is taken where the merit falls by this part of what its slope promises.
_ARMIJO = 1e-4
_MOST_HALVINGS = 50
_MET = "tol met"
# Beyond this the merit function is its penalty and nothing else.
_MOST_ETA1 = 1e12


@dataclass(frozen=True)
class EqualityInfo:
    """How a constrained minimum was found.

    Attributes
    ----------
    iterations : int
        Newton steps.
    objective : float
        f(x).
    residual : float
        ‖(∇f(x) + J(x)ᵀλ, c(x))‖.
    infeasibility : float
        ‖c(x)‖.
    evaluations : int
        Of the objective.
    modified : int
        Steps for which the Hessian was made positive definite on the null space of J.
    penalties : (float, float)
        η₁ and η₂ at the end.
    converged : bool
        Whether `residual` is at most ``tol * max(1, ‖∇f(x)‖)``.
    message : str
        Why it ended.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> info = la.minimize_equality(
    ...     lambda x: x @ x, lambda x: x.sum(0, keepdim=True) - 1, torch.zeros(4), seed=0
    ... ).info
    >>> round(info.objective, 4), info.iterations, info.converged
    (0.25, 1, True)
    """

    iterations: int
    objective: float
    residual: float
    infeasibility: float
    evaluations: int
    modified: int
    penalties: tuple[float, float]
    converged: bool
    message: str


class _MinimumFields(NamedTuple):
    x: Any
    multipliers: Any


class EqualityMinimum(_MinimumFields):
    """A minimum under equality constraints.

    Attributes
    ----------
    x : array, shape (n,)
    multipliers : array, shape (m,)
        λ, with ∇f(x) + J(x)ᵀλ = 0.
    info : EqualityInfo
        Not part of the tuple.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> x, multipliers = la.minimize_equality(
    ...     lambda x: x @ x, lambda x: x.sum(0, keepdim=True) - 1, torch.zeros(4), seed=0
    ... )
    >>> [round(entry, 4) for entry in (*x.tolist(), *multipliers.tolist())]
    [0.25, 0.25, 0.25, 0.25, -0.5]
    """

    info: EqualityInfo

    def __new__(cls, x: Any, multipliers: Any, info: EqualityInfo) -> "EqualityMinimum":
        self = super().__new__(cls, x, multipliers)
        self.info = info
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (*self, self.info)


@as_written
def minimize_equality(
    fun: Function,
    constraint: Function,
    x0: Any,
    *,
    grad: Function | None = None,
    jac: Function | None = None,
    hess: LagrangianHessian | None = None,
    multipliers: Any = None,
    tol: float | None = None,
    max_iters: int = 200,
    seed: Seed = None,
) -> EqualityMinimum:
    """Minimize f(x) subject to c(x) = 0 by Newton steps that `solve_kkt` solves inexactly.

    Parameters
    ----------
    fun : callable
        f: from a Tensor x of shape (n,) to a Tensor of one number. Twice differentiable, and by
        autograd where derivatives are not given.
    constraint : callable
        c: from x to a Tensor of shape (m,), m ≤ n. The same.
    x0 : array or Tensor, shape (n,)
        Where to begin; its dtype and device are those of all tensors that the functions get.
    grad : callable, optional
        From x to ∇f(x), shape (n,).
    jac : callable, optional
        From x to J(x), the Jacobian of c, shape (m, n).
    hess : callable, optional
        From x and λ to the Hessian of f + λᵀc by x, shape (n, n).
    multipliers : array or Tensor, shape (m,), optional
        λ to begin with. If None, those of least ‖∇f(x0) + J(x0)ᵀλ‖.
    tol : float, optional
        Until ‖(∇f(x) + J(x)ᵀλ, c(x))‖ ≤ tol·max(1, ‖∇f(x)‖). √u if None: 1.1e-8 in float64, 2.4e-4
        in float32.
    max_iters : int
        Newton steps at most.
    seed : int, torch.Generator or None
        As in `randomized_svd`.

    Returns
    -------
    EqualityMinimum
        ``x`` and ``multipliers``, of the kind, dtype and device of `x0`, and ``info``.

    Raises
    ------
    ValueError
        A function that returns another shape, dtype or device than it should, or numbers that are
        not finite at `x0`; more constraints than unknowns; `tol` or `max_iters` out of range.
    TypeError
        What cannot be called; a function that returns no Tensor; a complex `x0`.
    torch.linalg.LinAlgError
        J(x) loses rank on the way, and c(x) + J(x)·d = 0 has no solution; a `hess` that is not
        symmetric.

    Warns
    -----
    ConvergenceWarning
        `tol` was not met; ``info.message`` says why.

    Notes
    -----
    A step d solves [[B, Jᵀ], [J, 0]]·d = −(∇f + Jᵀλ, c). B is the Hessian of the Lagrangian; where
    that is not positive definite on the null space of J, eigenvalues below √u of its norm there
    change their sign, so that saddle points and maxima are left. The length of d is halved until it
    lowers

    L(x, λ) = f + λᵀc + ½·η₁·‖c‖² + ½·η₂·‖∇f + Jᵀλ‖²,

    whose minima are solutions of the problem once η₁ is large and η₂ small enough. Both, and the
    accuracy of d, change until the slope of L along d is −½·η₂·‖(∇f + Jᵀλ, c)‖² or less. The
    relative residual of d is 0.1 at first, never more than ‖(∇f + Jᵀλ, c)‖, so that the iteration
    converges quadratically near a minimum at which J has full rank and the Hessian is definite.

    An iteration costs a Hessian (n gradients by autograd), 2·n²·m flops for the null space, n³/3
    to see that B is definite (9·n³ to make it so), and `solve_kkt`: for n up to some thousands.

    Source: Hong, Na, Mahoney, Kolar, "Constrained optimization via exact augmented Lagrangian and
    randomized iterative sketching", ICML 2023. The slope is tested itself, where they take an
    accuracy that is sure to suffice, by constants of the problem.

    Examples
    --------
    The point of a circle of radius 2 nearest to (1, 1), from NumPy:

    >>> import numpy as np, fastlr.linalg as la
    >>> x, multipliers = minimum = la.minimize_equality(
    ...     lambda x: (x - 1).square().sum(),
    ...     lambda x: (x @ x - 4)[None],
    ...     np.array([2.0, 0.5]),
    ...     seed=0,
    ... )
    >>> np.round(x, 6), minimum.info.converged
    (array([1.414214, 1.414214]), True)
    """
    start = _vector(x0, "x0")
    dual = None if multipliers is None else _vector(multipliers, "multipliers").tensor
    root = math.sqrt(torch.finfo(start.tensor.dtype).eps / 2)
    limit = root if tol is None else as_real(tol, _CALLER, "tol")
    if not limit > 0:
        raise ValueError(f"{_CALLER}: tol must be positive, got {tol}")
    most = at_least(max_iters, 1, _CALLER, "max_iters")
    problem = _Problem(fun, constraint, grad, jac, hess, start.tensor)
    newton = _Newton(problem, as_seed(seed, _CALLER))
    point, iterations, message = _iterate(newton, problem.start(dual), limit, most)
    info = EqualityInfo(
        iterations,
        float(point.objective),
        point.residual,
        float(point.values.norm()),
        problem.evaluations,
        newton.modified,
        (newton.eta1, newton.eta2),
        point.meets(limit),
        message,
    )
    if not info.converged:
        warn(
            f"{_CALLER}: {message}; the residual is {point.residual:.3g}",
            ConvergenceWarning,
        )
    return EqualityMinimum(start.restore(point.x), start.restore(point.multipliers), info)


def _iterate(
    newton: "_Newton", point: "_Point", tol: float, most: int
) -> tuple["_Point", int, str]:
    """The last point, the number of steps to it, and why they ended."""
    for steps in range(most):
        if point.meets(tol):
            return point, steps, _MET
        after = newton.step(point)
        if after is None:
            return point, steps, "no step lowers the merit function"
        point = after
    return point, most, _MET if point.meets(tol) else f"tol not met in {most} iterations"


@dataclass(frozen=True)
class _Point:
    """x, λ, and what the functions say there."""

    x: Tensor
    multipliers: Tensor
    objective: Tensor
    values: Tensor  # c
    gradient: Tensor  # ∇f
    jacobian: Tensor
    slope: Tensor  # ∇f + Jᵀλ

    @property
    def residual(self) -> float:
        return float(torch.cat([self.slope, self.values]).norm())

    def meets(self, tol: float) -> bool:
        return self.residual <= tol * max(1.0, float(self.gradient.norm()))


class _Problem:
    """The user's functions, checked, and autograd for those that are not given."""

    def __init__(
        self,
        fun: Function,
        constraint: Function,
        grad: Function | None,
        jac: Function | None,
        hess: LagrangianHessian | None,
        x0: Tensor,
    ) -> None:
        required = {"fun": fun, "constraint": constraint}
        optional = {"grad": grad, "jac": jac, "hess": hess}
        for name, function in (required | optional).items():
            if not callable(function) and (name in required or function is not None):
                raise TypeError(f"{_CALLER}: {name} must be a function, got {function!r}")
        self._fun, self._constraint = fun, constraint
        self._grad, self._jac, self._hess = grad, jac, hess
        self._x0 = x0
        self._m: int | None = None  # known after the first call
        self.evaluations = 0

    def start(self, multipliers: Tensor | None) -> _Point:
        """At x0; entries that are not finite are errors here, and too long a step elsewhere."""
        x = self._x0
        objective, values = self.objective(x), self.values(x)
        gradient, jac = self.gradient(x), self.jacobian(x)
        parts = {"fun": objective, "constraint": values, "grad": gradient, "jac": jac}
        for name, part in parts.items():
            if not bool(part.isfinite().all()):
                raise ValueError(f"{_CALLER}: {name} must be finite at x0, got {part.tolist()}")
        if multipliers is None:
            multipliers = torch.linalg.pinv(jac.mT) @ -gradient
        elif multipliers.shape != values.shape:
            raise ValueError(
                f"{_CALLER}: multipliers must have shape {tuple(values.shape)}, as constraint(x0), "
                f"got {tuple(multipliers.shape)}"
            )
        multipliers = multipliers.to(x)
        slope = gradient + jac.mT @ multipliers
        return _Point(x, multipliers, objective, values, gradient, jac, slope)

    def at(self, x: Tensor, multipliers: Tensor, objective: Tensor, values: Tensor) -> _Point:
        gradient, jac = self.gradient(x), self.jacobian(x)
        slope = gradient + jac.mT @ multipliers
        return _Point(x, multipliers, objective, values, gradient, jac, slope)

    def objective(self, x: Tensor) -> Tensor:
        self.evaluations += 1
        return self._objective(x).detach()

    def values(self, x: Tensor) -> Tensor:
        return self._values(x).detach()

    def gradient(self, x: Tensor) -> Tensor:
        if self._grad is not None:
            return self._checked(self._grad(x), x.shape, "grad").detach()
        return _derivative(self._objective, x)

    def jacobian(self, x: Tensor) -> Tensor:
        if self._jac is not None:
            return self._checked(self._jac(x), (self._m, len(x)), "jac").detach()
        if self._m == 0:
            return x.new_empty((0, len(x)))  # which autograd does not make
        return _derivative(self._values, x)

    def slope(self, x: Tensor, multipliers: Tensor) -> Tensor:
        """∇f + Jᵀλ, without J where autograd has no need of it."""
        if self._jac is not None:
            return self.gradient(x) + self.jacobian(x).mT @ multipliers
        _, product = _autograd.vjp(self._values, x, multipliers)
        slope: Tensor = self.gradient(x) + product
        return slope

    def hessian(self, point: _Point) -> Tensor:
        n = len(point.x)
        H: Tensor
        if self._hess is None:
            H = _autograd.hessian(self._lagrangian(point.multipliers), point.x)
            H = (H + H.mT) / 2
        else:
            H = self._checked(self._hess(point.x, point.multipliers), (n, n), "hess").detach()
        if not bool(H.isfinite().all()):
            raise ValueError(
                f"{_CALLER}: hess must be finite where f and its gradient are, "
                f"got {H.max().item()} at x = {point.x.tolist()}"
            )
        # More than rounding may leave, less than a mistake does.
        if not float((H - H.mT).norm()) <= 1e3 * torch.finfo(H.dtype).eps * float(H.norm()):
            raise _LinAlgError(f"{_CALLER}: hess must return a symmetric matrix")
        return H

    def _lagrangian(self, multipliers: Tensor) -> Function:
        return lambda x: self._objective(x) + multipliers @ self._values(x)

    def _objective(self, x: Tensor) -> Tensor:
        value = self._fun(x)
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.reshape(())
        return self._checked(value, (), "fun")

    def _values(self, x: Tensor) -> Tensor:
        values = self._constraint(x)
        if self._m is None and isinstance(values, Tensor):
            if values.ndim != 1:
                raise ValueError(
                    f"{_CALLER}: constraint must return a vector, got shape {tuple(values.shape)}"
                )
            if len(values) > len(x):
                raise ValueError(
                    f"{_CALLER}: there must be at most as many constraints as unknowns, {len(x)}, "
                    f"got {len(values)}"
                )
            self._m = len(values)
        return self._checked(values, (self._m,), "constraint")

    def _checked(self, result: Any, shape: tuple[int | None, ...], name: str) -> Tensor:
        if not isinstance(result, Tensor):
            raise TypeError(f"{_CALLER}: {name} must return a Tensor, got {type(result).__name__}")
        if tuple(result.shape) != tuple(shape):
            raise ValueError(
                f"{_CALLER}: {name} must return shape {tuple(shape)}, got {tuple(result.shape)}"
            )
        if result.dtype != self._x0.dtype or result.device != self._x0.device:
            raise ValueError(
                f"{_CALLER}: {name} must return {self._x0.dtype} on {self._x0.device} as x0 is, "
                f"got {result.dtype} on {result.device}"
            )
        return result


def _derivative(function: Function, x: Tensor) -> Tensor:
    derivative: Tensor = _autograd.jacobian(function, x)
    return derivative


class _Newton:
    """Steps, and the parameters of the merit function that they adapt."""

    def __init__(self, problem: _Problem, seed: int) -> None:
        self.eta1, self.eta2, self.accuracy = _ETA1, _ETA2, _ACCURACY
        self.modified = 0
        self._problem, self._seed = problem, seed

    def step(self, point: _Point) -> _Point | None:
        """The next point; None where none is found that lowers the merit function."""
        H = self._problem.hessian(point)
        B = positive_on_null_space(H, point.jacobian)
        self.modified += B is not H
        found = self._direction(point, H, B)
        return None if found is None else self._search(point, *found)

    def _direction(
        self, point: _Point, H: Tensor, B: Tensor
    ) -> tuple[Tensor, Tensor, float] | None:
        """A direction of descent (dx, dλ), with the slope of the merit function along it."""
        operators = _core.operator_of_matrix(B), _core.operator_of_matrix(point.jacobian)
        least = default_tol(B.dtype)
        while self.eta1 <= _MOST_ETA1:
            tol = max(least, min(self.accuracy, point.residual))
            try:
                dx, dual, _ = solve_operators(
                    *operators,
                    -point.slope,
                    -point.values,
                    tol=tol,
                    max_iters=1000,
                    seed=self._seed,
                    entries=B.numel(),
                )
            except _LinAlgError as error:
                raise _LinAlgError(
                    f"{_CALLER}: the Jacobian of the constraints has lost rank, and their "
                    f"linearization has no solution, at residual {point.residual:.3g}"
                ) from error
            along = self._along(point, H, dx, dual)
            if along <= -0.5 * self.eta2 * point.residual**2:
                return dx, dual, along
            self.eta1 *= _FACTOR**2
            self.eta2 /= _FACTOR
            self.accuracy /= _FACTOR**4
        return None

    def _along(self, point: _Point, H: Tensor, dx: Tensor, dual: Tensor) -> float:
        """The derivative of the merit function along (dx, dλ)."""
        J, c, slope = point.jacobian, point.values, point.slope
        by_x = slope + self.eta1 * J.mT @ c + self.eta2 * H @ slope
        by_multipliers = c + self.eta2 * J @ slope
        return float(by_x @ dx + by_multipliers @ dual)

    def _search(self, point: _Point, dx: Tensor, dual: Tensor, along: float) -> _Point | None:
        before, size = self._merit(point.objective, point.values, point.multipliers, point.slope)
        # What is less than the rounding of the merit function cannot be told from descent.
        rounding = 10 * torch.finfo(point.x.dtype).eps * size
        length = 1.0
        for _ in range(_MOST_HALVINGS):
            x, multipliers = point.x + length * dx, point.multipliers + length * dual
            objective, values = self._problem.objective(x), self._problem.values(x)
            slope = self._problem.slope(x, multipliers)
            merit, _ = self._merit(objective, values, multipliers, slope)
            if merit <= before + _ARMIJO * length * along + rounding:
                return self._problem.at(x, multipliers, objective, values)
            length /= 2
        return None

    def _merit(
        self, objective: Tensor, values: Tensor, multipliers: Tensor, slope: Tensor
    ) -> tuple[float, float]:
        """The merit function, and the sum of the magnitudes that it is made of."""
        terms = [
            float(objective),
            float(multipliers @ values),
            0.5 * self.eta1 * float(values @ values),
            0.5 * self.eta2 * float(slope @ slope),
        ]
        return sum(terms), sum(map(abs, terms))


def positive_on_null_space(H: Tensor, J: Tensor) -> Tensor:
    """H where it is positive definite on the null space of J; else with eigenvalues there changed.

    Those that are below √u of ‖H‖ become their magnitudes, or √u·‖H‖ where that is more.
    """
    eps = torch.finfo(H.dtype).eps
    scale = float(H.norm()) or 1.0
    least = math.sqrt(eps / 2) * scale
    _, S, Vh = torch.linalg.svd(J, full_matrices=False)
    rows = Vh[max(J.shape) * eps * S.amax() < S] if len(S) > 0 else Vh
    projected = H - rows.mT @ (rows @ H)
    projected = projected - (projected @ rows.mT) @ rows
    # ‖H‖ on the range of Jᵀ: all other eigenvalues are those on the null space.
    projected = projected + scale * rows.mT @ rows
    shift = least * torch.eye(len(H), dtype=H.dtype, device=H.device)
    if int(torch.linalg.cholesky_ex(projected - shift).info) == 0:
        return H
    values, vectors = torch.linalg.eigh(projected)
    change = torch.where(values < least, values.abs().clamp_min(least) - values, 0)
    B: Tensor = H + (vectors * change) @ vectors.mT
    return (B + B.mT) / 2


def _vector(given: Any, name: str) -> Adapted:
    array = given if isinstance(given, Tensor) else np.asarray(given)
    if array.ndim != 1:
        raise ValueError(f"{_CALLER}: {name} must be a vector, got shape {tuple(array.shape)}")
    adapted = adapt(array[None], _CALLER, name)
    return Adapted(adapted.tensor[0].detach().clone(), adapted.numpy, adapted.dtype)
