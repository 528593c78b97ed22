"""Functions on a box as Chebyshev polynomials whose coefficients are in Tucker form."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch
from torch import Tensor

from fastlr.linalg import chebyshev
from fastlr.linalg._arguments import as_axis, at_least
from fastlr.linalg._arrays import as_tensor, restored
from fastlr.linalg._autocast import as_written
from fastlr.linalg._state import State
from fastlr.linalg.tucker_tensor import TuckerTensor, _times, contracted

# Numbers that an evaluation holds at a time.
_BLOCK = 1 << 22

Outcome: TypeAlias = tuple[str, int, float, float, int, float, tuple[float, ...], bool]


@dataclass(frozen=True)
class ChebyshevTuckerInfo:
    """How a function was approximated, and how far the approximation may be from it.

    Attributes
    ----------
    method : {"full grid", "cross"}
    evaluations : int
        Points at which f was evaluated, those of the samples included.
    scale : float
        Its largest value in magnitude; errors and tails are relative to it.
    error : float
        The largest difference of f and T at `samples` points, uniform in the box, that led to
        nothing in T: a statistical check. What no sample hits is not in it.
    samples : int
    grid_error : float
        The largest difference at the nodes of the grid, all of them or ("cross") those at which f
        was evaluated: what is lost by truncation, as the interpolant itself is f there.
    tails : tuple of float
        For each axis, the largest sum of the coefficients above the degree that fibres showed.
        Twice their sum estimates the error of interpolation.
    converged : bool
        False where `error` or `grid_error` is above `tol`, or `max_degree` ended an axis.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> f = lambda x: x[:, 0] * x[:, 1] ** 3
    >>> T = la.chebyshev_tucker(f, [(0, 1), (0, 2)], tol=1e-10, seed=0)
    >>> T.info.method, T.info.error < 1e-14, T.info.converged
    ('full grid', True, True)
    """

    method: str
    evaluations: int
    scale: float
    error: float
    samples: int
    grid_error: float
    tails: tuple[float, ...]
    converged: bool


class ChebyshevTucker(State):
    """A polynomial on a box, by Chebyshev coefficients in Tucker form; call it with points.

    T(x) = Σ core[a, b, …]·p₀ₐ(x₀)·p₁ᵦ(x₁)…, where p₀ₐ is the polynomial with the Chebyshev
    coefficients in column a of factor 0, and so on.

    Parameters
    ----------
    coefficients : TuckerTensor, shape (n₀ + 1, …, n_{d-1} + 1)
        Entry (i, j, …) multiplies the product of the polynomials of degrees i, j, …; no batch.
    domain : sequence of (float, float)
        The interval of each axis.

    Raises
    ------
    ValueError
        A batch, a domain of another length, an interval that is empty or not finite.
    TypeError
        Coefficients that are no TuckerTensor.

    Notes
    -----
    Methods take and give the kind of array of the coefficients, in their dtype and on their device,
    and never write to what they hold.

    Examples
    --------
    >>> import math, torch, fastlr.linalg as la
    >>> f = lambda x: torch.exp(-x.square().sum(1)) * torch.cos(x[:, 0] * x[:, 1])
    >>> T = la.chebyshev_tucker(f, [(-1, 1), (-1, 1), (0, 2)], tol=1e-10, seed=0)
    >>> T.ranks
    (5, 5, 1)
    >>> x = torch.tensor([[0.5, -0.25, 1.0]], dtype=torch.float64)
    >>> bool((T(x) - f(x)).abs() < 1e-10)
    True
    >>> dT = T.derivative(2)  # f times −2·x₂
    >>> bool((dT(x) + 2 * f(x)).abs() < 1e-8)
    True
    >>> marginal = T.integral(2)
    >>> marginal.domain
    ((-1.0, 1.0), (-1.0, 1.0))
    """

    _FIELDS: ClassVar[tuple[str, ...]] = ("core", "factors", "box", "outcome", "numpy", "dtype")

    _core: Tensor
    _factors: list[Tensor]
    _box: list[tuple[float, float]]
    _outcome: Outcome | None
    _numpy: bool
    _dtype: str

    # NumPy leaves the arithmetic of a scalar and a function to this class.
    __array_ufunc__ = None

    def __init__(self, coefficients: TuckerTensor, domain: Sequence[Any]) -> None:
        caller = "ChebyshevTucker"
        if not isinstance(coefficients, TuckerTensor):
            raise TypeError(f"{caller}: coefficients must be a TuckerTensor, got {coefficients!r}")
        if coefficients.batch_dims:
            raise ValueError(f"{caller}: coefficients must be one tensor, got a batch")
        box = as_box(domain, coefficients._core.real.dtype, caller)
        if len(box) != coefficients.ndim:
            raise ValueError(
                f"{caller}: domain must have an interval for each of {coefficients.ndim} axes, got "
                f"{len(box)}"
            )
        self._core = coefficients._core
        self._factors = [coefficients._matrix(axis) for axis in range(len(box))]
        self._box, self._outcome = box, None
        self._numpy, self._dtype = coefficients._numpy, coefficients._dtype

    def _like(
        self, core: Tensor, factors: list[Tensor], box: list[tuple[float, float]] | None = None
    ) -> "ChebyshevTucker":
        """Another function of this kind."""
        return ChebyshevTucker(self._tensor(core, factors), self._box if box is None else box)

    def _tensor(self, core: Tensor, factors: Sequence[Tensor]) -> TuckerTensor:
        """A tensor of this kind of array and dtype."""
        return TuckerTensor._made(core, [*factors], self._numpy, getattr(torch, self._dtype))

    # What it is

    @property
    def coefficients(self) -> TuckerTensor:
        """The Chebyshev coefficients, of shape `degrees` + 1."""
        return self._tensor(self._core, self._factors)

    @property
    def domain(self) -> tuple[tuple[float, float], ...]:
        """The interval of each axis."""
        return tuple(self._box)

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self._box)

    @property
    def degrees(self) -> tuple[int, ...]:
        """Of the polynomials in each variable."""
        return tuple(len(F) - 1 for F in self._factors)

    @property
    def ranks(self) -> tuple[int, ...]:
        """Sizes of the core."""
        return tuple(self._core.shape)

    @property
    def info(self) -> ChebyshevTuckerInfo | None:
        """How `chebyshev_tucker` obtained it; None for what was made otherwise."""
        return None if self._outcome is None else ChebyshevTuckerInfo(*self._outcome)

    def __repr__(self) -> str:
        return (
            f"ChebyshevTucker(domain={self.domain}, degrees={self.degrees}, ranks={self.ranks}, "
            f"dtype={self._dtype})"
        )

    # Its values

    @as_written
    def __call__(self, points: Any) -> Any:
        """Evaluate.

        Parameters
        ----------
        points : array or Tensor, shape (p, d)
            One point a row, in the domain.

        Returns
        -------
        array, shape (p,)

        Raises
        ------
        ValueError
            Another shape, or a coordinate outside of the domain (its index is named).
        TypeError
            NumPy and torch mixed.

        Notes
        -----
        2·Πr flops for each point, 2·n·r more for each axis, and n cosines. Rounding: some n·u of
        the sum of the coefficients.
        """
        caller = "ChebyshevTucker"
        given = self._taken(points, caller, "points")
        d = self.ndim
        if given.dim() != 2 or given.shape[1] != d:
            raise ValueError(f"{caller}: points must have shape (p, {d}), got {tuple(given.shape)}")
        columns = [self._unit(given[:, axis], axis, f"(·, {axis})") for axis in range(d)]
        width = max(math.prod(self.ranks), *(n + 1 for n in self.degrees))
        step = max(_BLOCK // width, 1)
        parts = [
            contracted(
                self._core,
                0,
                [
                    self._rows(column[first : first + step], axis)
                    for axis, column in enumerate(columns)
                ],
            )
            for first in range(0, max(len(given), 1), step)
        ]
        return self._given(torch.cat(parts))

    def _rows(self, unit: Tensor, axis: int) -> Tensor:
        """The polynomials of an axis at points of [−1, 1]."""
        F = self._factors[axis]
        return chebyshev.basis(unit, len(F) - 1).to(F.dtype) @ F

    @as_written
    def on_grid(self, *axes: Any) -> TuckerTensor:
        """Evaluate on a tensor grid, in Tucker form: the grid's tensor is never formed.

        Parameters
        ----------
        *axes : array or Tensor, shape (m,)
            Coordinates of the grid, one vector for each axis.

        Returns
        -------
        TuckerTensor, shape (m₀, …, m_{d-1})
            Its factors are orthonormal, and its ranks at most those of T.

        Raises
        ------
        ValueError
            Not one vector for each axis, a coordinate outside of the domain.
        TypeError
            NumPy and torch mixed.

        Notes
        -----
        For each axis m·n cosines, 2·m·n·r flops for the values of its polynomials, 4·m·r² for their
        QR factorization, and 2·r·Πr to multiply the core by R.
        """
        caller = "ChebyshevTucker.on_grid"
        if len(axes) != self.ndim:
            raise ValueError(
                f"{caller}: axes must be {self.ndim} vectors of coordinates, got {len(axes)}"
            )
        core, factors = self._core, []
        for axis, coordinates in enumerate(axes):
            given = self._taken(coordinates, caller, f"axes[{axis}]")
            if given.dim() != 1 or not len(given):
                raise ValueError(
                    f"{caller}: axes[{axis}] must be a vector of coordinates, got shape "
                    f"{tuple(given.shape)}"
                )
            unit = self._unit(given, axis, f"axis {axis}", caller)
            Q, R = torch.linalg.qr(self._rows(unit, axis))
            core = _times(core, 0, axis, R)
            factors.append(Q)
        return self._tensor(core, factors)

    # Calculus

    @as_written
    def derivative(self, axis: int, order: int = 1) -> "ChebyshevTucker":
        """Differentiate with respect to one variable.

        Parameters
        ----------
        axis : int
            Negative ones count from the end.
        order : int
            How often, at least once.

        Returns
        -------
        ChebyshevTucker
            Of a degree that is smaller by `order`, at least 0; exact but for rounding. Its distance
            to the derivative of f is up to n² times that of T to f, over half the length of the
            interval, for each order (Markov's inequality).

        Notes
        -----
        A recurrence on the columns of one factor: n·r flops.
        """
        caller = "ChebyshevTucker.derivative"
        place = as_axis(axis, self.ndim, caller, "axis")
        low, high = self._box[place]
        factors = list(self._factors)
        for _ in range(at_least(order, 1, caller, "order")):
            factors[place] = chebyshev.derivative(factors[place]) * (2 / (high - low))
        return self._like(self._core, factors)

    @as_written
    def integral(self, axis: int | None = None) -> Any:
        """Integrate over the box, or over the interval of one axis.

        Parameters
        ----------
        axis : int, optional
            Negative ones count from the end. All axes if None.

        Returns
        -------
        float or complex; ChebyshevTucker
            A number over all axes (or the only one); a function of the other variables over one.

        Notes
        -----
        2·n·r flops for an axis, and 2·Πr for the core.
        """
        d = self.ndim
        if axis is None:
            core = self._core
            for place in range(d):
                core = _times(core, 0, place, self._weighted(place))
            return core.item()
        place = as_axis(axis, d, "ChebyshevTucker.integral", "axis")
        core = _times(self._core, 0, place, self._weighted(place)).squeeze(place)
        if d == 1:
            return core.item()
        others = [other for other in range(d) if other != place]
        return self._like(core, [self._factors[i] for i in others], [self._box[i] for i in others])

    def _weighted(self, axis: int) -> Tensor:
        """The integrals of the polynomials of an axis, a row."""
        F, (low, high) = self._factors[axis], self._box[axis]
        weights = chebyshev.integrals(len(F) - 1, F.dtype, F.device)
        return (high - low) / 2 * (weights @ F)[None]

    # Arithmetic

    @as_written
    def rounded(
        self, ranks: int | Sequence[int] | None = None, *, tol: float | None = None
    ) -> "ChebyshevTucker":
        """Return nearly the same function with smaller ranks.

        Parameters
        ----------
        ranks : int or sequence of int, optional
            Of each axis; larger ones than there are change nothing. With `tol`, the largest ones.
        tol : float, optional
            The smallest ranks for which the coefficients change by tol times their Frobenius norm
            at most: that bounds the change of the function in the mean square that Chebyshev's
            weight makes, not at every point.

        Returns
        -------
        ChebyshevTucker
            With orthonormal factors.

        See Also
        --------
        TuckerTensor.rounded : which does it.
        """
        tensor = self.coefficients.rounded(ranks, tol=tol)
        return self._like(tensor._core, [tensor._matrix(axis) for axis in range(self.ndim)])

    @as_written
    def __add__(self, other: Any) -> "ChebyshevTucker":
        """The sum, whose ranks are sums: `rounded` makes them small again."""
        if not isinstance(other, ChebyshevTucker):
            other = self._constant(other)
        self._check_other(other, "+")
        mine, its = self._of_same_degrees(other)
        return ChebyshevTucker(mine + its, self._box)

    __radd__ = __add__

    @as_written
    def __sub__(self, other: Any) -> "ChebyshevTucker":
        return self.__add__(-1 * other)

    def __rsub__(self, other: Any) -> "ChebyshevTucker":
        return (-self).__add__(other)

    def __neg__(self) -> "ChebyshevTucker":
        return self._like(-self._core, self._factors)

    @as_written
    def __mul__(self, other: Any) -> "ChebyshevTucker":
        """With a number, or with a function: degrees are sums then, and ranks products."""
        if not isinstance(other, ChebyshevTucker):
            return ChebyshevTucker(self.coefficients * other, self._box)
        self._check_other(other, "*")
        factors = [_product(F, G) for F, G in zip(self._factors, other._factors, strict=True)]
        mine = self._tensor(self._core, [F for F, _ in factors])
        values = mine * self._tensor(other._core, [G for _, G in factors])
        return self._like(
            values._core,
            [chebyshev.coefficients(values._matrix(axis)) for axis in range(self.ndim)],
        )

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> "ChebyshevTucker":
        return ChebyshevTucker(self.coefficients / other, self._box)

    def _constant(self, number: Any) -> "ChebyshevTucker":
        ones = [F.new_ones(1, 1) for F in self._factors]
        one = self._like(self._core.new_ones([1] * self.ndim), ones)
        return one.__mul__(number)

    def _of_same_degrees(self, other: "ChebyshevTucker") -> tuple[TuckerTensor, TuckerTensor]:
        degrees = [max(a, b) for a, b in zip(self.degrees, other.degrees, strict=True)]
        one, two = (
            self._tensor(
                each._core,
                [chebyshev.padded(F, n) for F, n in zip(each._factors, degrees, strict=True)],
            )
            for each in (self, other)
        )
        return one, two

    def _check_other(self, other: "ChebyshevTucker", name: str) -> None:
        for mine, its, what in (
            (self.domain, other.domain, "domain"),
            (self._dtype, other._dtype, "dtype"),
            (self._numpy, other._numpy, "kind of array (NumPy or torch)"),
            (self._core.device, other._core.device, "device"),
        ):
            if mine != its:
                raise ValueError(
                    f"ChebyshevTucker.{name}: both functions must have the same {what}, got {mine} "
                    f"and {its}"
                )

    # Arguments

    def _given(self, result: Tensor) -> Any:
        return restored(result, getattr(torch, self._dtype), numpy=self._numpy)

    def _taken(self, points: Any, caller: str, name: str) -> Tensor:
        if isinstance(points, Tensor) is self._numpy:
            raise TypeError(f"{caller}: {name} must be of the kind of T, NumPy or torch")
        given = points if isinstance(points, Tensor) else as_tensor(np.asarray(points))
        if given.is_complex():
            raise TypeError(f"{caller}: {name} must be real, got {given.dtype}")
        return given.detach().to(self._core.device, self._core.real.dtype)

    def _unit(
        self, column: Tensor, axis: int, where: str, caller: str = "ChebyshevTucker"
    ) -> Tensor:
        """Coordinates mapped to [−1, 1]; one outside is an error."""
        low, high = self._box[axis]
        # Bounds as the points' dtype has them.
        least, most = column.new_tensor(low), column.new_tensor(high)
        bad = torch.nonzero(~((least <= column) & (column <= most)))
        if len(bad):
            index = int(bad[0])
            raise ValueError(
                f"{caller}: points must lie in the domain, from {low:g} to {high:g} for axis "
                f"{axis}, got {column[index].item()} at {where.replace('·', str(index))}"
            )
        return (((column - low) - (high - column)) / (high - low)).clamp(-1, 1)


def as_box(domain: Any, dtype: torch.dtype, caller: str) -> list[tuple[float, float]]:
    """The intervals of a box; empty and infinite ones are an error."""
    try:
        box = [(float(low), float(high)) for low, high in domain]
    except (TypeError, ValueError):
        box = []
    if not box:
        raise ValueError(
            f"{caller}: domain must be a sequence of (low, high), one for each axis, got {domain!r}"
        )
    for axis, (low, high) in enumerate(box):
        ends = torch.tensor([low, high], dtype=dtype)
        if not (bool(torch.isfinite(ends).all()) and bool(ends[0] < ends[1])):
            raise ValueError(
                f"{caller}: domain must have finite low < high, got ({low:g}, {high:g}) for axis "
                f"{axis} in {dtype}"
            )
    return box


def _product(F: Tensor, G: Tensor) -> tuple[Tensor, Tensor]:
    """The values of two factors at nodes on which their products are determined."""
    degree = len(F) + len(G) - 2
    at = chebyshev.basis(
        chebyshev.nodes(degree, F.real.dtype, F.device), max(len(F), len(G)) - 1
    ).to(F.dtype)
    return at[:, : len(F)] @ F, at[:, : len(G)] @ G
