"""Chebyshev coefficients in Tucker form from values on a grid: all of them, or few fibres."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastlr.linalg import chebyshev
from fastlr.linalg._box_function import BoxFunction
from fastlr.linalg.interpolation import interpolative
from fastlr.linalg.random import random_matrix
from fastlr.linalg.results import ConvergenceWarning
from fastlr.linalg.tucker_tensor import TuckerTensor, decomposed

# Fibres beyond their rank that have to lie in the span of chosen rows.
_SPARE = 8
# Values where the chosen rows of all axes meet.
_LARGEST_CORE = 1 << 22
# How often fibres are added where the approximation is worst.
_REFINEMENTS = 12
# Where in the random matrix of the seed the fibres stand, beside the draws of `cross`.
_DRAWS = (1 << 31) + 5


@dataclass
class GridTensor:
    """Coefficients of the interpolant on a grid, scaled, nearly.

    Attributes
    ----------
    core : Tensor
    factors : list of Tensor
    error : float
        The largest difference to f at the nodes at which it was evaluated.
    suspects : list of Tensor
        For each axis, points (m, d) of the cube: fibres through them have the largest last
        coefficients.
    """

    core: Tensor
    factors: list[Tensor]
    error: float
    suspects: list[Tensor]


def from_full_grid(function: BoxFunction, degrees: Sequence[int], allowed: float) -> GridTensor:
    """By all values; they are met to `allowed`, or to rounding."""
    nodes = _nodes(function, degrees)
    values = function.on_grid(nodes)
    coefficients = values
    for axis in range(values.dim()):
        coefficients = chebyshev.coefficients(coefficients, axis)
    axes, shape = list(range(values.dim())), list(values.shape)

    def cut(tol: float) -> TuckerTensor:
        core, factors, _ = decomposed(coefficients, 0, axes, shape, tol, "st_hosvd", 0, 0)
        return TuckerTensor(core, factors)

    def error(T: TuckerTensor) -> float:
        on_grid = TuckerTensor(T._core, _on_nodes(T, nodes))
        return float((on_grid.full() - values).abs().max())

    T, missed = _cut(cut, error, float(torch.linalg.vector_norm(coefficients)), allowed)
    suspects = []
    for axis in axes:
        along = torch.movedim(values, axis, 0)
        worst = _worst(along.reshape(len(along), -1))
        others = torch.unravel_index(worst, along.shape[1:])
        points = torch.zeros(len(worst), len(axes), dtype=nodes[0].dtype, device=values.device)
        for other, places in zip([a for a in axes if a != axis], others, strict=True):
            points[:, other] = nodes[other][places]
        suspects.append(points)
    return GridTensor(T._core, _factors(T), missed, suspects)


def from_fibres(
    function: BoxFunction,
    degrees: Sequence[int],
    allowed: float,
    through: Tensor,
    refine: bool,
    seed: int,
) -> GridTensor:
    """By the values on some fibres along each axis, and where their pivots meet.

    Along axis k all fibres are nearly combinations X_k·(their entries in chosen rows), with entries
    of X_k of 2 at most. So the tensor is nearly the one where the chosen rows of all axes meet,
    times X_k along each axis. Fibres go through random nodes and those next to given points; with
    `refine`, through the worst nodes, too, until `allowed` is met.
    """
    nodes = _nodes(function, degrees)
    fibres = [_Fibres(function, nodes, axis, through, seed) for axis in range(len(nodes))]
    # Errors of the axes multiply each other's combinations: how much is seen afterwards.
    share = allowed / (2 * len(nodes))
    for _ in range(_REFINEMENTS if refine else 1):
        for each in fibres:
            each.cover(share)
        limited = _limit(fibres)
        whole, met = _meeting(function, nodes, fibres)
        missed = _error(whole, nodes, fibres, met)
        if missed <= allowed / 2 or limited:
            break
        share /= 4
        on_nodes = _on_nodes(whole, nodes)
        worst = torch.cat([each.worst(whole._core, on_nodes) for each in fibres])
        for each in fibres:
            each.add_through(worst)
    T, missed = _cut(
        lambda tol: whole.rounded(tol=tol),
        lambda T: _error(T, nodes, fibres, met),
        whole.norm(),
        max(allowed, 2 * missed),
    )
    return GridTensor(T._core, _factors(T), missed, [each.suspects() for each in fibres])


def _limit(fibres: list["_Fibres"]) -> bool:
    """Take fewer rows where the core would be too large; whether that was so."""
    ranks = [len(each.rows) for each in fibres]
    most = max(ranks)
    while most > 1 and math.prod(min(r, most) for r in ranks) > _LARGEST_CORE:
        most -= 1
    for each in fibres:
        if len(each.rows) > most:
            each.choose(most)
    return most < max(ranks)


def _meeting(
    function: BoxFunction, nodes: list[Tensor], fibres: list["_Fibres"]
) -> tuple[TuckerTensor, Tensor]:
    """The Tucker form of the coefficients, and f where the chosen rows of all axes meet."""
    met = function.on_grid([t[each.rows] for t, each in zip(nodes, fibres, strict=True)])
    factors = [chebyshev.coefficients(each.matrix) for each in fibres]
    return TuckerTensor(met, factors), met


def _error(T: TuckerTensor, nodes: list[Tensor], fibres: list["_Fibres"], met: Tensor) -> float:
    """The largest difference to f on the fibres, and where their rows meet."""
    on_nodes = _on_nodes(T, nodes)
    restricted = [F[each.rows] for F, each in zip(on_nodes, fibres, strict=True)]
    core = TuckerTensor(T._core, restricted).full()
    along = [float(each.differences(T._core, on_nodes).max()) for each in fibres]
    return max(float((core - met).abs().max()), *along)


class _Fibres:
    """Fibres along an axis, and the rows that determine them."""

    rows: Tensor
    matrix: Tensor
    _values: Tensor

    def __init__(
        self,
        function: BoxFunction,
        nodes: list[Tensor],
        axis: int,
        through: Tensor,
        seed: int,
    ) -> None:
        self._function, self._nodes, self._axis = function, nodes, axis
        self._allowed, self._seed = 0.0, seed
        self._places = torch.zeros(0, len(nodes), dtype=torch.int64, device=nodes[0].device)
        self._drawn = 0
        self.add_through(through)
        self._add(self._draw(2 * _SPARE))

    def add_through(self, points: Tensor) -> None:
        """Take fibres through the nodes next to points of the cube."""
        degrees = points.new_tensor([len(t) - 1 for t in self._nodes])
        self._add((torch.arccos(points) * (degrees / math.pi)).round().long())

    def cover(self, allowed: float) -> None:
        """Choose rows from which all else follows to `allowed`, of as many fibres as that takes."""
        self._allowed = allowed
        while True:
            self.choose(None)
            # So many more lie in the span of the rows, or there are no more of either.
            enough = min(len(self.rows) + _SPARE, self._others())
            if len(self._places) >= enough or len(self.rows) == len(self._values):
                return
            self._add(self._draw(len(self._places)))

    def choose(self, most: int | None) -> None:
        """Take the rows that give all others, and the matrix by which they do."""
        size = float(torch.linalg.vector_norm(self._values))
        if not size:
            self.rows = self._places.new_zeros(1)
            self.matrix = self._values.new_zeros(len(self._values), 1)
            return
        floor = 8 * torch.finfo(self._values.dtype).eps
        tol = max(min(self._allowed / size, 0.5), floor)
        with warnings.catch_warnings():
            # A limit that is met shows in the error of what is made of it.
            warnings.simplefilter("ignore", ConvergenceWarning)
            chosen = interpolative(self._values, most, axis=0, tol=tol, seed=self._seed)
        self.rows, self.matrix = chosen.indices, chosen.coefficients

    def worst(self, core: Tensor, on_nodes: list[Tensor]) -> Tensor:
        """Points of the cube at which a Tucker tensor differs most, on two fibres."""
        largest, at = self.differences(core, on_nodes).max(0)
        fibres = largest.topk(min(2, len(largest))).indices
        points = self._points(self._places[fibres])
        points[:, self._axis] = self._nodes[self._axis][at[fibres]]
        return points

    def differences(self, core: Tensor, on_nodes: list[Tensor]) -> Tensor:
        """The magnitude of what a Tucker tensor misses, shape (nodes, fibres)."""
        others = [axis for axis in range(core.dim()) if axis != self._axis]
        left = core.permute(*others, self._axis).unsqueeze(0)
        for axis in others:
            rows = on_nodes[axis][self._places[:, axis]]
            flat = left.flatten(2)
            left = (rows[:, None] @ flat).reshape(len(rows), *left.shape[2:])
        return (on_nodes[self._axis] @ left.mT - self._values).abs()

    def suspects(self) -> Tensor:
        """Points of the cube on the fibres that have the largest last coefficients."""
        return self._points(self._places[_worst(self._values)])

    def _points(self, places: Tensor) -> Tensor:
        return torch.stack([t[places[:, axis]] for axis, t in enumerate(self._nodes)], 1)

    def _others(self) -> int:
        return math.prod(len(t) for axis, t in enumerate(self._nodes) if axis != self._axis)

    def _draw(self, count: int) -> Tensor:
        numbers = random_matrix(
            count,
            len(self._nodes),
            kind="uniform",
            seed=self._seed,
            row_offset=self._drawn,
            column_offset=_DRAWS + self._axis * len(self._nodes),
            dtype=torch.float64,
            device=self._places.device,
        )
        self._drawn += count
        sizes = numbers.new_tensor([len(t) for t in self._nodes])
        return (numbers * sizes).ceil().long() - 1

    def _add(self, places: Tensor) -> None:
        """Evaluate the fibres that are new."""
        places[:, self._axis] = 0
        old = len(self._places)
        together = torch.cat([self._places, places])
        _, number = torch.unique(together, dim=0, return_inverse=True)
        order = torch.arange(len(together), device=places.device)
        first = torch.full_like(order, len(together)).scatter_reduce(0, number, order, "amin")
        new = together[(first[number] == order) & (order >= old)]
        if len(new):
            nodes = self._nodes[self._axis]
            values = self._function.fibres(self._axis, nodes, self._points(new))
            self._values = torch.cat([self._values, values], 1) if old else values
        self._places = torch.cat([self._places, new])


def _nodes(function: BoxFunction, degrees: Sequence[int]) -> list[Tensor]:
    return [chebyshev.nodes(n, function.real_dtype, function.device) for n in degrees]


def _factors(T: TuckerTensor) -> list[Tensor]:
    return [T._matrix(axis) for axis in range(len(T.ranks))]


def _on_nodes(T: TuckerTensor, nodes: list[Tensor]) -> list[Tensor]:
    """The values of the factors' polynomials at the nodes."""
    return [
        chebyshev.basis(t, len(t) - 1).to(F.dtype) @ F
        for t, F in zip(nodes, _factors(T), strict=True)
    ]


def _cut(
    cut: Callable[[float], TuckerTensor],
    error: Callable[[TuckerTensor], float],
    norm: float,
    allowed: float,
) -> tuple[TuckerTensor, float]:
    """The smallest ranks, nearly, whose error is small enough; else those to rounding."""
    if not norm:
        T = cut(0.5)
        return T, error(T)
    # The Frobenius norm of what is cut bounds a mean square of it; its maximum is some times that.
    tol, last = min(allowed / norm, 0.5), None
    while True:
        T = cut(tol)
        found = error(T)
        floor = 4 * torch.finfo(T._core.dtype).eps
        # Next to rounding, larger ranks that hardly help are rounding themselves.
        if last is not None and tol <= 16 * floor and found > 0.5 * last[1]:
            return last
        if found <= allowed or tol <= floor:
            return T, found
        last = T, found
        tol = max(tol * min(0.7, 0.9 * allowed / found), floor)


def _worst(values: Tensor) -> Tensor:
    """The two fibres (nodes, fibres) whose last two coefficients are largest."""
    eye = torch.eye(len(values), dtype=values.dtype, device=values.device)
    last = chebyshev.coefficients(eye)[-2:] @ values
    sizes = last.abs().sum(0)
    return sizes.topk(min(2, len(sizes))).indices
