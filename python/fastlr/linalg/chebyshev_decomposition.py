"""Functions on a box by Chebyshev interpolation and a Tucker decomposition."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from fastlr.linalg import chebyshev
from fastlr.linalg._arguments import Seed, as_out, as_seed, as_tolerance, at_least
from fastlr.linalg._autocast import as_written
from fastlr.linalg._box_function import BoxFunction
from fastlr.linalg._chebyshev_grids import GridTensor, from_fibres, from_full_grid
from fastlr.linalg._warnings import warn
from fastlr.linalg.chebyshev_tensor import ChebyshevTucker, as_box
from fastlr.linalg.random import random_matrix
from fastlr.linalg.results import ConvergenceWarning
from fastlr.linalg.tucker_tensor import TuckerTensor

_CALLER = "chebyshev_tucker"

# Where in the random matrix of the seed the sample points stand, beside the draws of `cross`.
_DRAWS = (1 << 31) + 3
# The degree at which fibres are first seen: of 33 points few functions are deceived.
_FIRST = 32
# Fibres that show the degrees go through so many of the largest values of a sample, and others.
_THROUGH = 4
# The tails of d axes may take half of the tolerance, as twice their sum counts, and truncation a
# quarter at the nodes: between them it may be larger.
_TAILS = 4
_TRUNCATION = 4
# Coefficients below so many eps of max|f| are zeros: rounding of f alone makes them.
_ZERO = 2
# Coefficients that no longer fall are rounding of f up to so many eps; above, up to √tol·max|f|,
# they are noise once this degree has been seen.
_ROUNDING = 64
_NOISE_SEEN = 512
# How often points at which a sample failed may refine the approximation.
_ROUNDS = 8


@as_written
def chebyshev_tucker(
    f: Callable[[Any], Any],
    domain: Sequence[Any],
    *,
    tol: float,
    max_degree: int = 1024,
    max_grid: int = 1 << 20,
    samples: int = 1000,
    dtype: torch.dtype = torch.float64,
    device: Any = None,
    seed: Seed = None,
    out: Literal["torch", "numpy"] = "torch",
) -> ChebyshevTucker:
    """Approximate a function on a box by a polynomial whose coefficients are in Tucker form.

    Parameters
    ----------
    f : callable
        ``f(points)`` returns the values, shape (N,), at points (N, d) of the box: real or complex,
        a Tensor or an array. It is called with 65536 points at most.
    domain : sequence of (float, float)
        The interval [low, high] of each of d axes.
    tol : float
        Of the largest error, relative to the largest value of f in magnitude; 0 < tol < 1.
    max_degree : int
        The largest degree in each variable.
    max_grid : int
        Above so many nodes of the tensor grid, f is evaluated on fibres only ("cross").
    samples : int
        Random points at which the result is checked. A part p of the box where it is wrong is
        missed with probability (1 − p)^samples.
    dtype : torch.dtype
        Of points, coefficients and arithmetic, float32 or float64; complex values are computed in
        its complex counterpart. What f returns is converted to it.
    device : torch.device, optional
        Of the points and the result. The CPU if None; no other with ``out="numpy"``.
    seed : int, torch.Generator or None
        Of fibres and sample points.
    out : {"torch", "numpy"}
        Whether f is given Tensors or arrays, and so is the result.

    Returns
    -------
    ChebyshevTucker
        A function that can be called, differentiated, integrated, put on a grid and computed with;
        ``info`` says how good it is.

    Raises
    ------
    ValueError
        A domain that is empty or not finite, `tol` or another number out of range; an f that
        returns another shape than it should, or a value that is not finite (the point is named).
        What f raises is passed on.
    TypeError
        An f that cannot be called or returns no numbers, another dtype.

    Warns
    -----
    ConvergenceWarning
        `tol` is not met, as far as can be seen, or an axis needs more than `max_degree`;
        ``info.converged`` is False.

    See Also
    --------
    ChebyshevTucker : what can be done with it.
    tucker : of a tensor that is at hand.
    cross : of a matrix that is known by its entries.

    Notes
    -----
    M is the largest value in magnitude that is seen.

    Degrees: f is interpolated on some fibres along each axis, through the largest values of a first
    sample and others, at 33, 65, 129, … Chebyshev points, each set a part of the next, until the
    coefficients beyond a degree n sum up to tol·M/(4d) at most, and n/4 + 5 of them have been
    seen. Coefficients that have ceased to fall end this, too: they are rounding, or noise in f.

    "full grid": f at all Π(n + 1) nodes. The two fibres along each axis that have the largest last
    coefficients are looked at as above, and where they show a larger degree the grid is made anew.
    Then coefficients by fast cosine transforms, and their Tucker decomposition, with the smallest
    ranks, nearly, for which no node of the grid has an error above tol·M/4.

    "cross": f at the nodes of twice as many fibres along each axis as its rank r, or some more.
    Rows of these matrices that give all others by combinations with coefficients of 2 at most
    (`interpolative`) meet in Πr nodes; f there and these coefficients are a Tucker form, whose
    ranks are reduced as above, at the nodes that were seen. Fibres through the worst of these are
    added until they are met. Πr is at most 2²² before it is reduced.

    At the end `samples` new points check the result. Where the error is above tol·M, fibres
    through the worst four points are added, degrees or ranks grow, and new points check again.

    What is certain: at the nodes where f was evaluated, the error is at most ``info.grid_error``
    times M, and with the full grid between them T differs from the interpolant
    by at most Π(1 + ⅔·log(n + 1)) times that. What is estimated: the degrees, from the fibres that
    were seen, and the error between the nodes, from the last sample.

    Πn·Σlog(n) flops for the transforms of a full grid and some n·Πn for its decomposition; for
    fibres O(n·r²) an axis and O(r·Πr). Not differentiable.

    Sources: Benner, Khoromskij, Khoromskaia, Sun, "A mesh-free hybrid Chebyshev–Tucker tensor
    format with applications to multi-particle modelling", arXiv 2503.01696 (2025); Dolgov,
    Kressner, Strössner, "Functional Tucker approximation using Chebyshev interpolation", SISC 43
    (2021), for fibres; Aurentz, Trefethen, "Chopping a Chebyshev series", ACM TOMS 43 (2017), for
    the tail that has to be seen.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> f = lambda x: 1 / (1 + x.square().sum(1))
    >>> T = la.chebyshev_tucker(f, [(-1, 1)] * 3, tol=1e-8, seed=0)
    >>> T.degrees, T.ranks, T.info.converged
    ((24, 24, 24), (7, 7, 7), True)
    >>> x = 2 * torch.rand(1000, 3, dtype=torch.float64) - 1
    >>> bool((T(x) - f(x)).abs().max() < 1e-8)
    True
    """
    if not callable(f):
        raise TypeError(f"{_CALLER}: f must be a function, got {f!r}")
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{_CALLER}: dtype must be float32 or float64, got {dtype}")
    numpy = as_out(out, _CALLER) == "numpy"
    place = torch.device("cpu" if device is None else device)
    if numpy and place.type != "cpu":
        raise ValueError(f'{_CALLER}: device must be the CPU with out="numpy", got {place}')
    box = as_box(domain, dtype, _CALLER)
    search = _Search(
        BoxFunction(f, box, dtype, place, numpy, _CALLER),
        as_tolerance(tol, _CALLER),
        at_least(max_degree, 0, _CALLER, "max_degree"),
        at_least(max_grid, 1, _CALLER, "max_grid"),
        at_least(samples, 1, _CALLER, "samples"),
        as_seed(seed, _CALLER),
    )
    found, error = search.run()
    function = search.function
    T = TuckerTensor._made(found.core * function.scale, [*found.factors], numpy, found.core.dtype)
    result = ChebyshevTucker(T, box)
    relative = function.largest or 1.0
    outcome = (
        search.method,
        function.count,
        function.largest * function.scale,
        error / relative,
        search.samples,
        found.error / relative,
        tuple(tail / relative for tail in search.degrees.tails()),
        max(error, found.error) <= search.tol * function.largest and not search.degrees.capped,
    )
    result._outcome = outcome
    if not outcome[-1]:
        _warn(search, error / relative, found.error / relative)
    return result


def _warn(search: "_Search", error: float, grid_error: float) -> None:
    capped = sorted(search.degrees.capped)
    cause = f"; more than max_degree is needed along axes {capped}" if capped else ""
    warn(
        f"{_CALLER}: tol={search.tol:g} not met, the largest relative error at {search.samples} "
        f"random points is {error:.3g}, at nodes {grid_error:.3g}{cause}",
        ConvergenceWarning,
    )


class _Search:
    """Degrees and ranks that grow until a fresh sample has no error above the tolerance."""

    method: Literal["full grid", "cross"] = "full grid"

    def __init__(
        self,
        function: BoxFunction,
        tol: float,
        max_degree: int,
        max_grid: int,
        samples: int,
        seed: int,
    ) -> None:
        self.function, self.tol, self.samples = function, tol, samples
        self.degrees = _Degrees(function, tol, max_degree)
        self._max_grid, self._seed, self._drawn = max_grid, seed, 0

    def run(self) -> tuple[GridTensor, float]:
        """The approximation, and its largest error in the last sample."""
        guide = self._sample()
        largest = self.function(guide).abs().argsort(descending=True, stable=True)
        # Those that follow the largest ones in the sample are as good as any.
        through = guide[largest[:_THROUGH]]
        through = torch.cat([through, guide[:_THROUGH]])
        self._examine([through] * self.function.axes)
        for _ in range(_ROUNDS):
            found = self._approximated(through)
            fresh = self._sample()
            errors = (self._values(found, fresh) - self.function(fresh)).abs()
            error = float(errors.max())
            met = max(error, found.error) <= self.tol * self.function.largest
            if met or self.degrees.capped:
                break
            worst = fresh[errors.argsort(descending=True, stable=True)[:_THROUGH]]
            grown = self._examine([worst] * self.function.axes)
            if not grown and self.method == "full grid":
                break
            through = torch.cat([through, worst])
        return found, error

    def _approximated(self, through: Tensor) -> GridTensor:
        """On a grid that its worst fibres have confirmed."""
        while True:
            degrees = self.degrees.degrees
            full = len(degrees) == 1 or math.prod(n + 1 for n in degrees) <= self._max_grid
            self.method = "full grid" if full else "cross"
            allowed = self.tol * self.function.largest / _TRUNCATION
            found = (
                from_full_grid(self.function, degrees, allowed)
                if full
                # What no degree resolves, no fibres do.
                else from_fibres(
                    self.function,
                    degrees,
                    allowed,
                    through,
                    not self.degrees.capped,
                    self._seed,
                )
            )
            if not self._examine(found.suspects):
                return found

    def _examine(self, through: Sequence[Tensor]) -> bool:
        """Whether fibres through points, those of each axis, show larger degrees."""
        grown = [self.degrees.examine(axis, points) for axis, points in enumerate(through)]
        return any(grown)

    def _sample(self) -> Tensor:
        numbers = random_matrix(
            self.samples,
            self.function.axes,
            kind="uniform",
            seed=self._seed,
            row_offset=self._drawn,
            column_offset=_DRAWS,
            dtype=torch.float64,
            device=self.function.device,
        )
        self._drawn += self.samples
        return (2 * numbers - 1).to(self.function.real_dtype)

    def _values(self, found: GridTensor, unit: Tensor) -> Tensor:
        T = TuckerTensor(found.core, found.factors)
        values: Tensor = ChebyshevTucker(T, [(-1, 1)] * self.function.axes)(unit)
        return values


class _Degrees:
    """The degree of each axis that the fibres seen so far need."""

    def __init__(self, function: BoxFunction, tol: float, most: int) -> None:
        self.degrees = [0] * function.axes
        self.capped: set[int] = set()
        self._function, self._tol, self._most = function, tol, most
        # What is above each degree, of every fibre.
        self._tails: list[list[Tensor]] = [[] for _ in self.degrees]

    def tails(self) -> list[float]:
        """For each axis, the largest of its fibres' tails above its degree."""
        return [
            max(float(tail[n]) if n < len(tail) else 0.0 for tail in tails)
            for n, tails in zip(self.degrees, self._tails, strict=True)
        ]

    def examine(self, axis: int, through: Tensor) -> bool:
        """Look at the fibres through points; whether one needs a larger degree."""
        before = self.degrees[axis]
        if len(self.degrees) == 1:
            through = through[:1]  # all fibres are the same
        for n, tail in self._fibres(axis, through):
            self._tails[axis].append(tail)
            if n > self._most:
                self.capped.add(axis)
            self.degrees[axis] = max(self.degrees[axis], min(n, self._most))
        return self.degrees[axis] > before

    def _fibres(self, axis: int, through: Tensor) -> list[tuple[int, Tensor]]:
        """Degree and tails of each fibre, on grids that are doubled until they are resolved."""
        dtype, device = self._function.real_dtype, self._function.device
        seen = _FIRST
        nodes = chebyshev.nodes(seen, dtype, device)
        values = self._function.fibres(axis, nodes, through)
        found: list[tuple[int, Tensor]] = []
        while len(through):
            c = chebyshev.coefficients(values)
            tails = chebyshev.tails(c, _ZERO * torch.finfo(c.dtype).eps * self._function.largest)
            open_ones = []
            for fibre in range(len(through)):
                n = self._degree(c[:, fibre], tails[:, fibre])
                if n is None:
                    open_ones.append(fibre)
                else:
                    found.append((n, tails[:, fibre]))
            if seen >= chebyshev.largest_judged(self._most):
                found.extend((self._most + 1, tails[:, fibre]) for fibre in open_ones)
                break
            seen *= 2
            through, nodes = through[open_ones], chebyshev.nodes(seen, dtype, device)
            doubled = values.new_empty(seen + 1, len(through))
            doubled[::2] = values[:, open_ones]
            if len(through):
                doubled[1::2] = self._function.fibres(axis, nodes[1::2], through)
            values = doubled
        return found

    def _degree(self, c: Tensor, tail: Tensor) -> int | None:
        """The degree that a fibre needs; None where its grid does not show it."""
        seen, largest = len(c) - 1, self._function.largest
        allowed = self._tol * largest / (_TAILS * len(self.degrees))
        n = chebyshev.least_degree(tail[:, None], allowed)
        if chebyshev.is_resolved(n, seen):
            return n
        level = chebyshev.noise_level(c)
        rounding = _ROUNDING * torch.finfo(c.dtype).eps * largest
        noise = math.sqrt(self._tol) * largest if seen >= _NOISE_SEEN else 0.0
        if 0 < level <= max(rounding, noise):
            return chebyshev.last_above(c, 2 * level)
        return None
