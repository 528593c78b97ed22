"""CP decompositions of tensors."""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from fastlr.linalg._arguments import Seed, as_seed, at_least, not_negative
from fastlr.linalg._arrays import Adapted, adapt
from fastlr.linalg._autocast import as_written
from fastlr.linalg._cp_steps import (
    als_sweep,
    balanced,
    damped_step,
    distance,
    gradient,
    inner,
    largest_curvature,
    norm,
    residual,
)
from fastlr.linalg._warnings import warn
from fastlr.linalg.cp_tensor import CPTensor, unit_columns
from fastlr.linalg.random import random_matrix
from fastlr.linalg.results import ConvergenceWarning
from fastlr.linalg.tucker_tensor import checked_tol, decomposed

_CALLER = "cp"

# Sweeps of alternating least squares before the Gauss-Newton steps.
_SWEEPS = 5
# Sweeps of `tucker` for the core.
_CORE_SWEEPS = 2
# Of random entries that are added to singular vectors, which alone may be a saddle point.
_PERTURBATION = 0.1
# The condition of eigenvectors beyond which they are no start: of a defective matrix, which has not
# enough of them.
_DEPENDENT = 1e-4
# What a step has to gain of the error.
_GAIN = 1e-8
# The damping of the first step and the least one, relative to the largest curvature.
_DAMPING, _LEAST_DAMPING = 1.0, 1e-15
# Damping above it holds steps back, so that small ones say little.
_FREE = 1e-4
# ‖weights‖ / ‖X‖ beyond which a minimum is none, and from which it is a reason for many steps.
_DIVERGING, _GROWING = 1e3, 10


@dataclass(frozen=True)
class _Aim:
    """When an iteration ends, and what it lowers."""

    size: float  # ‖X‖
    goal: float  # an error
    most: int  # sweeps and steps
    ridge: float


@dataclass(frozen=True)
class _Path:
    """The last factors, the errors on the way, and whether steps gain nothing any more."""

    factors: list[Tensor]
    errors: list[float]
    objective: float
    damping: float
    settled: bool


@as_written
def cp(
    X: Any,
    rank: int,
    *,
    tol: float | None = None,
    init: Literal["auto", "svd", "random"] | CPTensor = "auto",
    restarts: int = 0,
    ridge: float = 0.0,
    max_sweeps: int = 300,
    seed: Seed = None,
) -> CPTensor:
    """Write a tensor as a sum of a few outer products (CANDECOMP/PARAFAC).

    X ≈ Σ weights[a]·F₀[:, a] ∘ F₁[:, a] ∘ …, by alternating least squares and Gauss-Newton steps.

    Parameters
    ----------
    X : array or Tensor, shape (n₀, …, n_{d-1})
        Real or complex, d of at least 2. float16 and bfloat16 are computed in float32, integers in
        the default float type. Any strides. Never written to.
    rank : int
        Components, at least 1; it may be larger than all sizes.
    tol : float, optional
        The iteration ends where ‖X − X̂‖_F ≤ tol·‖X‖_F, 0 < tol < 1. If None, or where that is not
        met, it ends where steps gain nothing any more, or at rounding.
    init : {"auto", "svd", "random"} or CPTensor
        "svd": leading singular vectors of each unfolding, with a random part, and random columns
        where there are not enough. "auto": eigenvectors, which give exact components, if the rank
        is at most the two largest sizes of d ≥ 3; otherwise "svd". "random": normal entries. Or a
        tensor of this shape and rank to begin with.
    restarts : int
        Further starts, from random entries. The best one is returned; none is made after one that
        met `tol`, or that left nothing but rounding.
    ridge : float
        Adds ridge·‖X‖^(2 − 2/d)·Σ‖F‖² to the ‖X − X̂‖² that is minimised, where weights are spread
        over the factors. It keeps components from cancelling and growing without bounds.
    max_sweeps : int
        Of each start: sweeps and steps together. As many again on X, after those on a core.
    seed : int, torch.Generator or None
        Of random entries. The same seed gives the same factors; None draws one from torch's default
        generator.

    Returns
    -------
    CPTensor
        Of the kind, dtype and device of X: positive weights, the largest first, and factors of unit
        columns. The largest entry of a column is real and positive, in all modes but the last. Its
        ``info`` says how good it is.

    Raises
    ------
    ValueError
        A rank, tol, ridge or number of sweeps out of range; an init of another shape or rank; an
        entry that is not finite (its index is named).
    TypeError
        A sparse X, numbers of the wrong type, an init of other entries than X has.

    Warns
    -----
    ConvergenceWarning
        ``info.converged`` is False: `tol` was not met, `max_sweeps` ended before a minimum, or
        components cancel and grow, as where no best approximation of this rank exists.

    See Also
    --------
    CPTensor : what can be done with it.
    tucker : a core and orthonormal factors, which has a solution always.

    Notes
    -----
    For d ≥ 3 the components are unique up to their order, if the factors are general enough
    (Kruskal: k-ranks that add up to 2·rank + d − 1 or more), and the error has local minima: no
    iteration is sure to find the best one, and `restarts` make it likelier. For matrices (d = 2)
    the error is that of the truncated SVD, and the components are any that fit.

    Where the rank is below sizes, all that is iterated first is the core of a Tucker decomposition,
    in double precision. If the core holds all of X but rounding, that is enough: a CP tensor of
    this rank has such a core. Otherwise steps on X follow. After a start come five sweeps of
    alternating least squares, then Gauss-Newton steps for all factors at once, damped (Levenberg
    and Marquardt) so that each one that is taken lowers the error; they pass swamps, and end
    quadratically where X has this rank: at rounding, not at its root. The residual is formed in
    every one of them, and their gradient is its product with Khatri-Rao products, halves of the
    modes sharing what they need.

    A step costs 6·rank·N flops for N entries and d = 3, and for P = rank·Σ min(n, rank) unknowns up
    to 1000 P³/3 flops; above, conjugate gradients of 4·d²·rank²·min(n, rank) flops an iteration, at
    most 100. Memory: X, twice more where a core is not all of it; where no size is above the rank,
    in double precision.

    Not differentiable.

    Sources: Harshman, "Foundations of the PARAFAC procedure" (1970), and Carroll, Chang,
    Psychometrika 35 (1970), for the sweeps; Paatero, "A weighted non-negative least squares
    algorithm for three-way 'PARAFAC' factor analysis" (1997), Phan, Tichavský, Cichocki, "Low
    complexity damped Gauss-Newton algorithms for CANDECOMP/PARAFAC", SIMAX 34 (2013), and Sorber,
    Van Barel, De Lathauwer, SIAM J. Optim. 23 (2013), for the steps; Bro, Andersson, "Improving the
    speed of multiway algorithms II: compression" (1998); Leurgans, Ross, Abel, "A decomposition for
    three-way arrays", SIMAX 14 (1993), for the eigenvectors; de Silva, Lim, "Tensor rank and the
    ill-posedness of the best low-rank approximation problem", SIMAX 30 (2008).

    Examples
    --------
    Two 2 × 2 matrices are multiplied by seven products of numbers:

    >>> import torch, fastlr.linalg as la
    >>> X = torch.zeros(4, 4, 4, dtype=torch.float64)
    >>> for i in range(2):
    ...     for j in range(2):
    ...         for k in range(2):
    ...             X[2 * i + j, 2 * j + k, 2 * i + k] = 1
    >>> T = la.cp(X, 7, tol=1e-12, restarts=10, seed=0)
    >>> T.info.converged, bool((T.full() - X).norm() < 1e-12 * X.norm())
    (True, True)
    >>> weights, factors = T
    >>> weights.shape, factors[0].shape
    (torch.Size([7]), torch.Size([4, 7]))
    """
    adapted = adapt(X, _CALLER, "X", batched=True, complex_=True)
    tensor = adapted.tensor.detach().resolve_conj().resolve_neg()
    components = at_least(rank, 1, _CALLER, "rank")
    target = checked_tol(tol, 0, _CALLER)
    more = at_least(restarts, 0, _CALLER, "restarts")
    given = _given_start(init, tensor, components, more)
    penalty = not_negative(ridge, _CALLER, "ridge")
    most = at_least(max_sweeps, 0, _CALLER, "max_sweeps")
    key = as_seed(seed, _CALLER)
    exponent = _exponent(tensor)
    order = sorted(range(tensor.dim()), key=lambda mode: -tensor.stride()[mode])
    laid_out = _times_power(tensor, -exponent).permute(order).contiguous()
    size = norm(laid_out)
    aim = _Aim(
        size=size,
        # A little below, so that rounding keeps no one from what is checked in the end.
        goal=size * max(0.99 * (target or 0.0), 2 * torch.finfo(tensor.dtype).eps),
        most=most,
        # The power of ‖X‖ makes the ridge a relative one.
        ridge=penalty * size ** (2 - 2 / tensor.dim()),
    )
    starts = 1
    if size == 0:
        path = _Path(
            [laid_out.new_zeros(n, components) for n in laid_out.shape], [0.0], 0.0, 1.0, True
        )
    elif given is not None:
        first = [given[mode] for mode in order]
        first[0] = _times_power(first[0], -exponent)
        path = _descended(_wide(laid_out, components), first, aim)
    else:
        kinds = [init, *["random"] * more]
        path, starts = _from_starts(laid_out, components, kinds, aim, size, key)
    return _returned(path, laid_out, order, exponent, size, starts, adapted, target)


def _returned(
    path: _Path,
    X: Tensor,
    order: list[int],
    exponent: int,
    size: float,
    starts: int,
    adapted: Adapted,
    tol: float | None,
) -> CPTensor:
    """The tensor in the order of the caller, with the error of what is returned."""
    found = [path.factors[order.index(mode)] for mode in range(X.dim())]
    ones = torch.ones(found[0].shape[1], dtype=torch.float64, device=X.device)
    weights, columns = unit_columns(ones, found)
    factors = [F.to(X.dtype) for F in columns]
    shown = [factors[mode] for mode in order]
    error = distance(X, [shown[0] * weights.to(X.dtype), *shown[1:]]) if X.numel() else 0.0
    cancellation = float(torch.linalg.vector_norm(weights)) / size if size else 0.0
    rounding = error <= _rounding(X) * size
    diverging = cancellation > _DIVERGING and not rounding
    converged = error <= tol * size if tol else path.settled and not diverging
    if not converged:
        _warn(tol, error / size, path.settled, cancellation)
    outcome = (
        math.ldexp(error, exponent),
        math.ldexp(size, exponent),
        [math.ldexp(e, exponent) for e in path.errors],
        converged,
        cancellation,
        starts,
    )
    return CPTensor._made(
        _times_power(weights, exponent).to(X.dtype.to_real() if X.is_complex() else X.dtype),
        factors,
        adapted.numpy,
        adapted.dtype,
        outcome,
    )


def _warn(tol: float | None, error: float, settled: bool, cancellation: float) -> None:
    reasons = []
    if tol is not None:
        reasons.append(f"the error is {error:.3g} of X, more than tol = {tol:g}")
    if not settled:
        reasons.append("no minimum was reached within max_sweeps")
    if cancellation > _GROWING:
        reasons.append(
            f"components cancel, their weights are {cancellation:.2g} times X: there may be no "
            "best tensor of this rank, and a ridge bounds them"
        )
    warn(f"{_CALLER}: {'; '.join(reasons)}", ConvergenceWarning)


# Phases


def _from_starts(
    X: Tensor, rank: int, kinds: list[Any], aim: _Aim, size: float, key: int
) -> tuple[_Path, int]:
    """The best of some starts, on a core where there is a smaller one, and what X makes of it."""
    core, bases, lost = _compressed(X, rank, size, key)
    reachable = math.sqrt(max(aim.goal - lost, 0.0) * (aim.goal + lost))
    on_core = replace(aim, goal=reachable)
    best, tried = None, 0
    for kind in kinds:
        path = _descended(core, _start(core, rank, kind, key, tried), on_core)
        tried += 1
        if best is None or path.objective < best.objective:
            best = path
        if best.errors[-1] <= max(reachable, _rounding(X) * size):
            break
    assert best is not None
    if bases is None:
        return best, tried
    lifted = [Q @ F for Q, F in zip(bases, best.factors, strict=True)]
    if not lost:
        return replace(best, factors=lifted), tried
    error = distance(X, lifted)
    last = replace(best, factors=lifted, errors=[error])
    if best.errors[-1] > reachable:
        last = _stepped(X, last, aim)
    # The two errors are those of orthogonal parts; `lost` is not as exact as what X says of it.
    beyond = math.sqrt(max(error**2 - best.errors[-1] ** 2, 0.0))
    before = [math.hypot(beyond, inside) for inside in best.errors[:-1]]
    return replace(last, errors=before + last.errors), tried


def _compressed(
    X: Tensor, rank: int, size: float, key: int
) -> tuple[Tensor, list[Tensor] | None, float]:
    """A core that has room for the rank, its bases, and what of X it has not."""
    if not _compresses(X, rank):
        return _wide(X, rank), None, 0.0
    ranks = [min(rank, n) for n in X.shape]
    modes = list(range(X.dim()))
    core, bases, outcomes = decomposed(X, 0, modes, ranks, None, "hooi", _CORE_SWEEPS, key)
    lost = outcomes[0][3]
    exact = lost <= _rounding(X) * size
    wide = _wide_dtype(X)
    return core.to(wide), [Q.to(wide) for Q in bases], 0.0 if exact else lost


def _compresses(X: Tensor, rank: int) -> bool:
    return any(rank < n for n in X.shape)


def _descended(X: Tensor, start: list[Tensor], aim: _Aim) -> _Path:
    """Sweeps, and then steps, for as long as they lower the objective."""
    return _stepped(X, _swept(X, start, aim), aim)


def _swept(X: Tensor, start: list[Tensor], aim: _Aim) -> _Path:
    factors = balanced(start)
    left, error, objective = _measured(X, factors, aim.ridge)
    errors = [error]
    while error > aim.goal and len(errors) <= min(_SWEEPS, aim.most):
        found = als_sweep(X, factors, aim.ridge)
        _, found_error, lower = _measured(X, found, aim.ridge, left)
        if lower < objective:
            factors, error, objective = found, found_error, lower
        errors.append(error)
    return _Path(factors, errors, objective, _DAMPING, error <= aim.goal)


def _stepped(X: Tensor, path: _Path, aim: _Aim) -> _Path:
    """Damped Gauss-Newton steps; the damping is relative to the largest curvature."""
    factors, errors = path.factors, list(path.errors)
    if errors[-1] <= aim.goal or len(errors) > aim.most:
        return path
    left, error, objective = _measured(X, factors, aim.ridge)
    slope = gradient(left, factors, aim.ridge)
    curvature, damping, growth = largest_curvature(factors), path.damping, 2.0
    settled = False
    # No curvature: all factors are zero, and nothing leads away from there.
    while not settled and error > aim.goal and len(errors) <= aim.most and curvature > 0:
        damped = damping * curvature
        step = damped_step(factors, slope, damped + aim.ridge)
        expected = inner(slope, step) + damped * inner(step, step)
        found = balanced([F + D for F, D in zip(factors, step, strict=True)])
        _, found_error, lower = _measured(X, found, aim.ridge, left)
        gained, enough = objective - lower, 2 * _GAIN * objective
        if gained > 0:
            agreement = gained / expected
            settled = gained <= enough and damping <= _FREE
            factors, error, objective = found, found_error, lower
            slope = gradient(left, factors, aim.ridge)
            curvature, growth = largest_curvature(factors), 2.0
            # Nielsen's rule: the damping follows how well the step was predicted.
            damping *= max(1 / 3, 1 - (2 * agreement - 1) ** 3)
            damping = max(damping, _LEAST_DAMPING)
        else:
            settled = expected <= enough or error <= _rounding(X) * aim.size
            damping, growth = damping * growth, 2 * growth
        errors.append(error)
    return _Path(factors, errors, objective, damping, settled or error <= aim.goal)


def _measured(
    X: Tensor, factors: list[Tensor], ridge: float, out: Tensor | None = None
) -> tuple[Tensor, float, float]:
    """The residual, its norm, and the objective."""
    left = residual(X, factors, out)
    error = norm(left)
    return left, error, error**2 + ridge * inner(factors, factors)


# Starts


def _start(X: Tensor, rank: int, kind: Any, key: int, number: int) -> list[Tensor]:
    if kind == "auto":
        found = _by_eigenvectors(X, rank, key)
        if found is not None:
            return found
    factors = []
    for mode, n in enumerate(X.shape):
        random = _random(X, n, rank, key, number * X.dim() + mode)
        if kind != "random":
            unfolded = torch.movedim(X, mode, 0).flatten(1)
            U = torch.linalg.svd(unfolded, full_matrices=False).U[:, :rank]
            random[:, : U.shape[1]] = U + _PERTURBATION * random[:, : U.shape[1]]
        factors.append(random)
    return factors


def _by_eigenvectors(X: Tensor, rank: int, key: int) -> list[Tensor] | None:
    """The components of a tensor of that rank with two modes of that length, for most of them.

    Two sums A, B of slices along these modes are F·diag·Gᵀ with the same factors, so that the
    eigenvectors of A·B⁻¹ are F. Its inverse leaves tensors of rank one.
    """
    one, two = sorted(range(X.dim()), key=lambda mode: -X.shape[mode])[:2]
    if X.dim() < 3 or X.shape[two] < rank:
        return None
    slices = torch.movedim(X, (one, two), (0, 1)).flatten(2)
    A, B = (slices @ _random(X, slices.shape[2], 2, key, 0)).unbind(2)
    quotient, failed = torch.linalg.solve_ex(B, A, left=False)
    if int(failed) or not bool(torch.isfinite(quotient).all()):
        return None
    F = torch.linalg.eig(quotient).eigenvectors
    if not X.is_complex():
        F = F.real + F.imag  # of a pair v, v̄ two real vectors that span the same
    values = torch.linalg.svdvals(F)
    if float(values[-1]) < _DEPENDENT * float(values[0]):
        return None
    parts = torch.tensordot(torch.linalg.pinv(F), X, dims=([1], [one]))
    factors, others = [], [mode for mode in range(X.dim()) if mode != one]
    for mode in range(X.dim()):
        if mode == one:
            factors.append(F)
        else:
            unfolded = torch.movedim(parts, 1 + others.index(mode), 1).flatten(2)
            factors.append(torch.linalg.svd(unfolded, full_matrices=False).U[:, :, 0].mT)
    return factors


def _random(X: Tensor, n: int, rank: int, key: int, number: int) -> Tensor:
    """Independent normal entries of columns of some length 1."""
    parts = [
        random_matrix(
            n,
            rank,
            seed=key,
            column_offset=(2 * number + part) * rank,
            dtype=torch.float64,
            device=X.device,
        )
        for part in range(2 if X.is_complex() else 1)
    ]
    drawn = torch.complex(*parts) if X.is_complex() else parts[0]
    return drawn / math.sqrt(len(parts) * n)


# Types and scales


def _wide_dtype(X: Tensor) -> torch.dtype:
    return torch.complex128 if X.is_complex() else torch.float64


def _wide(X: Tensor, rank: int) -> Tensor:
    """In double precision, where there is no smaller core that is."""
    return X if _compresses(X, rank) else X.to(_wide_dtype(X))


def _rounding(X: Tensor) -> float:
    """What products along all modes may lose of ‖X‖_F."""
    return 4 * X.dim() * math.sqrt(max(X.shape, default=1)) * torch.finfo(X.dtype).eps


def _exponent(X: Tensor) -> int:
    """e, where the largest entry is from 2^(e − 1) to 2^e."""
    if not X.numel():
        return 0
    entries = torch.view_as_real(X) if X.is_complex() else X
    least, most = (float(value) for value in entries.aminmax())
    if not math.isfinite(least) or not math.isfinite(most):
        index = tuple(torch.nonzero(~torch.isfinite(X))[0].tolist())
        raise ValueError(f"{_CALLER}: X must be finite, got {X[index].item()} at index {index}")
    return math.frexp(max(-least, most))[1]


def _times_power(X: Tensor, exponent: int) -> Tensor:
    """X·2^exponent, in two steps as the power alone may overflow."""
    half = exponent // 2
    return X * 2.0**half * 2.0 ** (exponent - half)


def _given_start(init: Any, X: Tensor, rank: int, restarts: int) -> list[Tensor] | None:
    """The factors to begin with, weights in the first one, if they are given."""
    if isinstance(init, str) and init in ("auto", "svd", "random"):
        return None
    if not isinstance(init, CPTensor):
        raise ValueError(
            f"{_CALLER}: init must be 'auto', 'svd', 'random' or a CPTensor, got {init!r}"
        )
    if init.shape != tuple(X.shape) or init.rank != rank:
        raise ValueError(
            f"{_CALLER}: init must have shape {tuple(X.shape)} and rank {rank}, got "
            f"{init.shape} and {init.rank}"
        )
    if init._factors[0].is_complex() and not X.is_complex():
        raise TypeError(f"{_CALLER}: init must be real for a real X")
    if restarts:
        raise ValueError(f"{_CALLER}: restarts must be 0 with an init of factors, got {restarts}")
    factors = [F.to(X.device, _wide_dtype(X)) for F in init._factors]
    factors[0] = factors[0] * init._weights.to(factors[0])
    if not all(bool(torch.isfinite(F).all()) for F in factors):
        raise ValueError(f"{_CALLER}: init must be finite")
    return factors
