"""Tucker decomposition of data whose indices are real numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastlr.linalg._arguments import (
    Seed,
    as_integer,
    as_real,
    as_seed,
    at_least,
    not_negative,
)
from fastlr.linalg._arrays import as_tensor, computed_dtype, restored, torch_dtype
from fastlr.linalg._autocast import as_written
from fastlr.linalg._state import State
from fastlr.linalg._tucker_posterior import LEAST_NOISE, WARM_UP, Mode, Posterior, at, contract
from fastlr.linalg._warnings import warn
from fastlr.linalg.results import ConvergenceWarning

_CALLER = "functional_tucker"
_NUS = (0.5, 1.5, 2.5)
# The posterior of the core is a matrix of that many rows.
_LARGEST_CORE = 4096
# Coordinates that are predicted at a time, in entries of the largest temporary.
_BLOCK = 1 << 21
_MOST_EXPONENT = 400


@dataclass(frozen=True)
class FunctionalTuckerInfo:
    """How a functional decomposition was obtained.

    Attributes
    ----------
    sweeps : int
        A sweep finds the core, the functions of each mode and the noise once.
    bound : float
        On the logarithm of the evidence, from below: of two decompositions of the same values, the
        one with the larger bound is the more plausible one.
    relative_residual : float
        Of the observations, ‖values − mean‖ / ‖values‖.
    converged : bool
        False where `max_sweeps` were not enough.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> t = torch.linspace(0, 1, 30, dtype=torch.float64)[:, None]
    >>> info = la.functional_tucker(t, torch.sin(6 * t[:, 0]), 1, seed=0).info
    >>> info.converged, info.relative_residual < 1e-3
    (True, True)
    """

    sweeps: int
    bound: float
    relative_residual: float
    converged: bool


@dataclass(frozen=True)
class FunctionalTuckerHistory:
    """What every sweep left; a tuple has an entry for each.

    Attributes
    ----------
    bound : tuple of float
        On the logarithm of the evidence. It never falls.
    training_error : tuple of float
        The root of the mean square of values − mean over the observations.
    validation_error : tuple of float
        The same over the observations of `validation`; empty without any.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> t = torch.linspace(0, 1, 30, dtype=torch.float64)[:, None]
    >>> history = la.functional_tucker(t, torch.sin(6 * t[:, 0]), 1, seed=0).history
    >>> history.bound[0] < history.bound[-1], history.validation_error
    (True, ())
    """

    bound: tuple[float, ...]
    training_error: tuple[float, ...]
    validation_error: tuple[float, ...]


class FunctionalPrediction(NamedTuple):
    """What values are expected at some coordinates.

    Attributes
    ----------
    mean : array, shape (n,)
    variance : array, shape (n,)
        Of what is uncertain of functions and core. That of a new observation is larger by
        `noise_variance`.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> t = torch.linspace(0, 1, 30, dtype=torch.float64)[:, None]
    >>> fit = la.functional_tucker(t, torch.sin(6 * t[:, 0]), 1, seed=0)
    >>> mean, variance = fit.predict([[0.51], [1.3]])
    >>> bool(abs(mean[0] - torch.sin(torch.tensor(3.06))) < 1e-3), bool(variance[0] < variance[1])
    (True, True)
    """

    mean: Any
    variance: Any


class FactorPosterior(NamedTuple):
    """The functions of a mode at some coordinates.

    Attributes
    ----------
    mean : array, shape (n, rank)
    covariance : array, shape (n, rank, rank)

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> t = torch.linspace(0, 1, 30, dtype=torch.float64)[:, None]
    >>> fit = la.functional_tucker(t, torch.sin(6 * t[:, 0]), 1, seed=0)
    >>> mean, covariance = fit.factor(0, [0.2, 0.51])
    >>> mean.shape, covariance.shape
    (torch.Size([2, 1]), torch.Size([2, 1, 1]))
    """

    mean: Any
    covariance: Any


class FunctionalTucker(State):
    """A Tucker decomposition with functions for factors; made by `functional_tucker` and `load`.

    The value at (t₁, …, t_D) is Σ core[k₁, …, k_D]·u₁(t₁)[k₁]···u_D(t_D)[k_D].

    Raises
    ------
    TypeError
        It was called, instead of `functional_tucker` or `load`.

    Notes
    -----
    It holds, for each distinct coordinate of a mode, two vectors and two matrices of the size of
    the state, rank·(nu + 1/2), and not the observations.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> t = la.random_matrix(200, 2, kind="uniform", seed=0, dtype=torch.float64)
    >>> values = torch.sin(2 * t[:, 0]) * torch.cos(t[:, 1])
    >>> fit = la.functional_tucker(t, values, (1, 1), seed=0)
    >>> mean, variance = fit.predict([[0.2, 0.3], [0.5, 0.5]])
    >>> [round(value, 2) for value in mean.tolist()]
    [0.37, 0.74]
    >>> fit.ranks, fit.core.shape, fit.factor(1, [0.5]).mean.shape
    ((1, 1), torch.Size([1, 1]), torch.Size([1, 1]))
    """

    _FIELDS: ClassVar[tuple[str, ...]] = (
        "core",
        "core_covariance",
        "modes",
        "nu",
        "length_scales",
        "noise_variance",
        "exponents",
        "sweeps",
        "outcome",
        "numpy",
        "dtype",
    )

    _core: Tensor  # as the modes: of values and coordinates that are scaled by powers of two
    _core_covariance: Tensor
    _modes: list[tuple[Tensor, ...]]
    _nu: float
    _length_scales: tuple[float, ...]
    _noise_variance: float
    _exponents: tuple[int, tuple[int, ...]]  # of the values, of the coordinates of each mode
    _sweeps: list[tuple[float, float, float]]
    _outcome: tuple[float, bool]
    _numpy: bool
    _dtype: str

    def __init__(self) -> None:
        raise TypeError("FunctionalTucker: call functional_tucker() or FunctionalTucker.load()")

    @property
    def ranks(self) -> tuple[int, ...]:
        """Numbers of functions of the modes."""
        return tuple(self._core.shape)

    @property
    def core(self) -> Any:
        """The mean of the core, shape `ranks`."""
        return self._given(self._core * 2.0 ** self._exponents[0])

    @property
    def core_covariance(self) -> Any:
        """The covariance of the core, shape (size, size): of its entries in the order of memory."""
        return self._given(self._squared(self._core_covariance))

    @property
    def nu(self) -> float:
        """Of the kernels."""
        return self._nu

    @property
    def length_scales(self) -> tuple[float, ...]:
        """Of the modes, in the units of the coordinates."""
        pairs = zip(self._length_scales, self._exponents[1], strict=True)
        return tuple(length * 2.0**exponent for length, exponent in pairs)

    @property
    def noise_variance(self) -> float:
        """Of the observations, in the units of the squares of the values."""
        return self._noise_variance * 2.0 ** self._exponents[0] * 2.0 ** self._exponents[0]

    @property
    def info(self) -> FunctionalTuckerInfo:
        """How it was obtained."""
        residual, converged = self._outcome
        return FunctionalTuckerInfo(len(self._sweeps), self._sweeps[-1][0], residual, converged)

    @property
    def history(self) -> FunctionalTuckerHistory:
        """What every sweep left."""
        bound, training, validation = (
            tuple(sweep[part] for sweep in self._sweeps) for part in range(3)
        )
        known = tuple(error for error in validation if not math.isnan(error))
        return FunctionalTuckerHistory(bound, training, known)

    @as_written
    def predict(self, coordinates: Any) -> FunctionalPrediction:
        """Return means and variances at coordinates, those of observations or others.

        Parameters
        ----------
        coordinates : array, shape (n, D)

        Returns
        -------
        FunctionalPrediction
            ``mean`` and ``variance``, both of shape (n,). The variance is that of the functions
            and the core, without noise.

        Raises
        ------
        TypeError, ValueError
            Coordinates of another shape or type, or not finite.
        """
        caller = "FunctionalTucker.predict"
        points = _points(coordinates, len(self.ranks), caller).to(self._core.device)
        mean, variance = self._moments(points)
        return FunctionalPrediction(
            self._given(mean * 2.0 ** self._exponents[0]),
            self._given(self._squared(variance)),
        )

    @as_written
    def factor(self, mode: int, t: Any) -> FactorPosterior:
        """Return the functions of a mode at coordinates.

        Parameters
        ----------
        mode : int
            From 0 to D − 1.
        t : array, shape (n,)

        Returns
        -------
        FactorPosterior
            ``mean``, shape (n, rank), and ``covariance``, shape (n, rank, rank).

        Raises
        ------
        TypeError, ValueError
            No such mode, or coordinates of another shape or type, or not finite.

        Notes
        -----
        Their signs, and how they are mixed, depend on the seed: only with the core do they mean
        the same.
        """
        caller = "FunctionalTucker.factor"
        index = as_integer(mode, caller, "mode")
        if not 0 <= index < len(self.ranks):
            raise ValueError(f"{caller}: mode must be from 0 to {len(self.ranks) - 1}, got {index}")
        points = _numbers(t, 1, caller, "t")[0].to(self._core.device)
        mean, cov = self._functions(index, points)
        return FactorPosterior(self._given(mean), self._given(cov))

    def _functions(self, mode: int, points: Tensor) -> tuple[Tensor, Tensor]:
        scaled = points * 2.0 ** -self._exponents[1][mode]
        rank = self.ranks[mode]
        return at(scaled, self._nu, rank, self._length_scales[mode], *self._modes[mode])

    def _moments(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Means and variances at coordinates, for the scaled values."""
        rows = max(1, _BLOCK // max(len(self._core_covariance) ** 2, 256))
        means, variances = [points.new_zeros(0)], [points.new_zeros(0)]
        for part in torch.split(points, rows):
            factors = [self._functions(mode, column) for mode, column in enumerate(part.T)]
            mean, variance = contract(self._core.reshape(-1), self._core_covariance, factors)
            means.append(mean[:, 0])
            variances.append(variance[:, 0, 0])
        return torch.cat(means), torch.cat(variances)

    def _sweep(self, posterior: Posterior, held_out: "_Observations | None") -> float:
        """Make a sweep, hold what it has found, and return by how much the bound rose."""
        posterior.sweep()
        modes = posterior.modes
        self._core = posterior.core.reshape(posterior.ranks)
        self._core_covariance = posterior.core_cov
        self._modes = [(mode.knots, *mode.past, *mode.future) for mode in modes]
        self._length_scales = tuple(mode.length for mode in modes)
        self._noise_variance = 1 / posterior.noise.mean
        exponent = self._exponents[0]
        bound = posterior.bound() - len(posterior.values) * exponent * math.log(2)
        rise = bound - self._sweeps[-1][0] if self._sweeps else math.inf
        error = posterior.training_error * 2.0**exponent
        self._sweeps.append((bound, error, self._error(held_out)))
        return rise

    def _error(self, held_out: "_Observations | None") -> float:
        """The root of the mean square error on observations; NaN without any."""
        if held_out is None:
            return math.nan
        scale = 2.0 ** self._exponents[0]
        left = held_out.values / scale - self._moments(held_out.points)[0]
        return float(left.square().mean().sqrt()) * scale

    def _squared(self, values: Tensor) -> Tensor:
        """In the unit of the squares of the values; 2ᵉ twice, as its square may overflow."""
        return values * 2.0 ** self._exponents[0] * 2.0 ** self._exponents[0]

    def _given(self, result: Tensor) -> Any:
        return restored(result, getattr(torch, self._dtype), numpy=self._numpy)


@as_written
def functional_tucker(
    coordinates: Any,
    values: Any,
    ranks: int | Sequence[int],
    *,
    nu: float = 1.5,
    length_scale: float | Sequence[float] | None = None,
    noise_variance: float | None = None,
    tol: float = 3e-4,
    max_sweeps: int = 100,
    starts: int = 4,
    validation: Any = None,
    seed: Seed = None,
) -> FunctionalTucker:
    """Fit a Tucker decomposition to values at real coordinates.

    The value at (t₁, …, t_D) is the core times vectors u₁(t₁), …, u_D(t_D). Each component of
    u_d is a Gaussian process with a Matérn kernel, so that the decomposition is known at every
    coordinate, with an uncertainty.

    Parameters
    ----------
    coordinates : array, shape (N, D)
        Real numbers, in any order; a row may occur several times.
    values : array, shape (N,)
        Real. Their prior mean is 0: subtract a typical value where that is far from them.
    ranks : int or sequence of D ints
        Numbers of functions of the modes; one number for all modes alike.
    nu : {0.5, 1.5, 2.5}
        Smoothness of the functions: continuous, or once or twice differentiable.
    length_scale : float or sequence of D floats, optional
        Of the kernel of each mode, in the units of its coordinates: the correlation of two
        values at a distance of r is k(r / length_scale). If None, those with the largest bound on
        the evidence are sought; a mode with one coordinate has a power of two near it.
    noise_variance : float, optional
        Of the observations; learned if None, which takes more than a handful of them.
    tol : float
        It ends once D sweeps in a row, after the first ten, raise the bound by no more than `tol`
        for each observation. 0 makes all sweeps.
    max_sweeps : int
    starts : int
        Random starts. Ten sweeps are made from each, and the one with the largest bound goes on.
    validation : (coordinates, values), optional
        Observations that are not fitted; `history` has the error on them. They stop nothing.
    seed : int, torch.Generator or None
        Of the start.

    Returns
    -------
    FunctionalTucker
        With ``predict``, ``factor``, ``core``, ``noise_variance``, ``length_scales``, ``history``
        and ``info``.

    Raises
    ------
    TypeError
        Complex values; numbers of another type.
    ValueError
        Shapes that do not fit each other, no observation, numbers that are not finite, a core of
        more than 4096 entries; the message names the argument.

    Warns
    -----
    ConvergenceWarning
        `max_sweeps` were not enough.

    Notes
    -----
    With R = Πr_d, J_d the number of distinct coordinates in mode d, and n_d = r_d·(nu + 1/2), a
    sweep takes some (D + 2)·N·R² + 10·R³ + 60·ΣJ_d·n_d³ flops; the functions of a mode are
    smoothed in 2·log₂(J_d) batched steps. Everything is computed in float64.

    The posterior is variational: core, functions of each mode and noise are independent in it, and
    each part is updated to the optimum given the others, with its second moments. The optimum
    found may be a local one, and depends on the seed; `info.bound` compares seeds, nu and length
    scales. Noise and length scales are learned from the eleventh sweep on.

    Variances have the size of the squares of the values: those of values of 1e±160 (1e±20 for
    float32) are infinite or zero.

    Source of the model: Fang, Yu, Wang, Li, Kirby, Zhe, "Functional Bayesian Tucker decomposition
    for continuous-indexed tensor data" (ICLR 2024), who match moments of messages instead. Not
    differentiable.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> t = la.random_matrix(300, 2, kind="uniform", seed=0, dtype=torch.float64)
    >>> noise = 0.01 * la.random_matrix(300, 1, seed=1, dtype=torch.float64)[:, 0]
    >>> values = torch.sin(3 * t[:, 0] + t[:, 1])
    >>> fit = la.functional_tucker(t, values + noise, (2, 2), seed=0)
    >>> mean, variance = fit.predict(t)
    >>> bool((mean - values).square().mean().sqrt() < 0.005)
    True
    >>> 0.008 < fit.noise_variance**0.5 < 0.012
    True
    """
    if nu not in _NUS:
        raise ValueError(f"{_CALLER}: nu must be one of 0.5, 1.5, 2.5, got {nu!r}")
    data = _observations(coordinates, values, None, _CALLER)
    sizes = _ranks(ranks, data.points.shape[1])
    stop = not_negative(tol, _CALLER, "tol")
    most = at_least(max_sweeps, 1, _CALLER, "max_sweeps")
    tries = at_least(starts, 1, _CALLER, "starts")
    held_out = _validation(validation, data)
    key = as_seed(seed, _CALLER)

    power = _exponent(data.values)
    powers = tuple(_exponent(column) for column in data.points.T)
    lengths = _lengths(length_scale, powers)
    noise = None if noise_variance is None else _noise(noise_variance, power)

    def start(number: int) -> tuple[FunctionalTucker, Posterior]:
        modes = [
            Mode(column * 2.0**-e, float(nu), rank, length)
            for column, e, rank, length in zip(data.points.T, powers, sizes, lengths, strict=True)
        ]
        posterior = Posterior(modes, data.values * 2.0**-power, noise, key, number)
        fit = FunctionalTucker.__new__(FunctionalTucker)
        fit._nu, fit._exponents = float(nu), (power, powers)
        fit._numpy, fit._dtype = data.numpy, str(data.dtype).removeprefix("torch.")
        fit._sweeps = []
        for _ in range(min(WARM_UP, most)):
            fit._sweep(posterior, held_out)
        return fit, posterior

    self, posterior = max(map(start, range(tries)), key=lambda pair: pair[0]._sweeps[-1][0])
    # Length scales are sought for one mode a sweep.
    quiet, enough = 0, len(sizes)
    while len(self._sweeps) < most and quiet < enough:
        rise = self._sweep(posterior, held_out)
        quiet = quiet + 1 if rise <= stop * len(data.values) else 0
    converged = quiet >= enough
    self._outcome = posterior.relative_residual, converged
    if not converged and stop > 0:
        warn(
            f"{_CALLER}: {most} sweeps were not enough: more than tol = {stop:g} for each "
            f"observation was gained in one of the last {enough}",
            ConvergenceWarning,
        )
    return self


@dataclass(frozen=True)
class _Observations:
    """Coordinates and values in float64, and the way back to the caller's type."""

    points: Tensor
    values: Tensor
    numpy: bool
    dtype: torch.dtype


def _observations(
    coordinates: Any, values: Any, dimensions: int | None, caller: str
) -> _Observations:
    numbers, numpy, dtype = _numbers(values, 1, caller, "values")
    points = _points(coordinates, dimensions, caller).to(numbers.device)
    if len(points) != len(numbers):
        raise ValueError(
            f"{caller}: coordinates and values must have one length, got {len(points)} and "
            f"{len(numbers)}"
        )
    if len(points) == 0:
        raise ValueError(f"{caller}: values must have at least one entry, got none")
    return _Observations(points, numbers, numpy, dtype)


def _points(coordinates: Any, dimensions: int | None, caller: str) -> Tensor:
    points = _numbers(coordinates, 2, caller, "coordinates")[0]
    if dimensions is None and points.shape[1] == 0:
        raise ValueError(f"{caller}: coordinates must have at least one column, got none")
    if dimensions is not None and points.shape[1] != dimensions:
        raise ValueError(
            f"{caller}: coordinates must have {dimensions} columns, got shape {tuple(points.shape)}"
        )
    return points


def _numbers(array: Any, dim: int, caller: str, name: str) -> tuple[Tensor, bool, torch.dtype]:
    """Finite real numbers in float64, whether they are NumPy's, and the dtype of results."""
    if isinstance(array, Tensor):
        tensor, numpy, promoted = array.detach(), False, torch.get_default_dtype()
    else:
        known = np.asarray(array)
        torch_dtype(known.dtype, caller, name, type(array).__name__)
        tensor, numpy, promoted = as_tensor(known), True, torch.float64
    if tensor.layout != torch.strided:
        raise TypeError(f"{caller}: {name} must be dense, got layout {tensor.layout}")
    if tensor.is_complex():
        raise TypeError(f"{caller}: {name} must be real, got {tensor.dtype}")
    if tensor.dim() != dim:
        what = "one dimension" if dim == 1 else f"{dim} dimensions"
        raise ValueError(f"{caller}: {name} must have {what}, got shape {tuple(tensor.shape)}")
    dtype, _ = computed_dtype(tensor.dtype, promoted, caller, name)
    tensor = tensor.double()
    bad = torch.nonzero(~tensor.isfinite())
    if len(bad):
        place = tuple(bad[0].tolist())
        raise ValueError(
            f"{caller}: {name} must be finite, got {tensor[place].item():g} at index {place}"
        )
    return tensor, numpy, dtype


def _validation(validation: Any, data: _Observations) -> _Observations | None:
    if validation is None:
        return None
    caller = f"{_CALLER}: validation"
    if not isinstance(validation, Sequence) or len(validation) != 2:
        raise TypeError(f"{caller} must be (coordinates, values), got {type(validation).__name__}")
    points, values = validation
    held_out = _observations(points, values, data.points.shape[1], caller)
    device = data.values.device
    return _Observations(
        held_out.points.to(device), held_out.values.to(device), held_out.numpy, held_out.dtype
    )


def _ranks(ranks: Any, dimensions: int) -> list[int]:
    given = list(ranks) if isinstance(ranks, Sequence) and not isinstance(ranks, str) else None
    if given is not None and len(given) != dimensions:
        raise ValueError(
            f"{_CALLER}: ranks must be {dimensions} integers, one for each column of coordinates, "
            f"got {len(given)}"
        )
    each = [ranks] * dimensions if given is None else given
    sizes = [at_least(rank, 1, _CALLER, "ranks") for rank in each]
    if math.prod(sizes) > _LARGEST_CORE:
        raise ValueError(
            f"{_CALLER}: ranks must have a product of at most {_LARGEST_CORE}, the size of the "
            f"core, got {math.prod(sizes)}"
        )
    return sizes


def _lengths(length_scale: Any, powers: Sequence[int]) -> list[float | None]:
    """In units of 2 to the power of each mode."""
    if length_scale is None:
        return [None] * len(powers)
    several = isinstance(length_scale, Sequence) and not isinstance(length_scale, str)
    each = list(length_scale) if several else [length_scale] * len(powers)
    if len(each) != len(powers):
        raise ValueError(
            f"{_CALLER}: length_scale must be {len(powers)} numbers, one for each column of "
            f"coordinates, got {len(each)}"
        )
    return [_length(length, power) for length, power in zip(each, powers, strict=True)]


def _length(length_scale: Any, power: int) -> float:
    length = as_real(length_scale, _CALLER, "length_scale")
    if not 0 < length < math.inf:
        raise ValueError(f"{_CALLER}: length_scale must be positive and finite, got {length:g}")
    mantissa, exponent = math.frexp(length)
    if not -_MOST_EXPONENT <= exponent - power <= _MOST_EXPONENT:
        raise ValueError(
            f"{_CALLER}: length_scale must be within 2^±{_MOST_EXPONENT} of the largest coordinate,"
            f" got {length:g}"
        )
    return math.ldexp(mantissa, exponent - power)


def _noise(noise_variance: Any, power: int) -> float:
    """In units of 4 to the power of the values."""
    noise = as_real(noise_variance, _CALLER, "noise_variance")
    if not 0 < noise < math.inf:
        raise ValueError(f"{_CALLER}: noise_variance must be positive and finite, got {noise:g}")
    mantissa, exponent = math.frexp(noise)
    if not 2 * math.log2(LEAST_NOISE) < exponent - 2 * power <= _MOST_EXPONENT:
        raise ValueError(
            f"{_CALLER}: noise_variance must be at least 2^{2 * math.log2(LEAST_NOISE):.0f} and at "
            f"most 2^{_MOST_EXPONENT} of the square of the largest value, got {noise:g}"
        )
    return math.ldexp(mantissa, exponent - 2 * power)


def _exponent(A: Tensor) -> int:
    """Of the power of two above the largest entry, and of one with an inverse; 0 for zeros."""
    largest = float(A.abs().amax())
    return max(-1000, min(math.frexp(largest)[1], 1000))
