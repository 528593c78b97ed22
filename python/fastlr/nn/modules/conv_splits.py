"""The ways to write the kernel of a convolution as a chain of smaller convolutions."""

from __future__ import annotations

import abc
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastlr import linalg as la
from fastlr.nn.modules.conv_geometry import Geometry

Ranks = tuple[int, ...]
Attempt = Callable[[Ranks], float]  # builds a layer and returns its relative error


@dataclass(frozen=True)
class Link:
    """One convolution of a chain: its channels, its groups, and the axes along which it is wide."""

    in_channels: Any
    out_channels: Any
    groups: Any
    axes: range


@dataclass(frozen=True)
class Menu:
    """All ranks that may be chosen: what each stores, and the squared relative error it has."""

    ranks: Tensor  # (choices, numbers of a rank)
    sizes: Tensor
    losses: Tensor  # zero at full rank

    def best(self, budget: int) -> int | None:
        """The one of least error that stores at most `budget` numbers."""
        return _first(self.losses, self.sizes, self.sizes <= budget)

    def smallest(self, allowed: float) -> int:
        """The one that stores least with at most this squared error."""
        found = _first(self.sizes, self.losses, self.losses <= allowed)
        assert found is not None  # the full rank
        return found


class ConvSplit(abc.ABC):
    """One way, for one kernel shape: (g, o/g, i/g, \\*kernel_size), with ranks for each group."""

    name: ClassVar[str]

    def __init__(self, owner: str, geometry: Geometry) -> None:
        self.owner = owner
        self.geometry = geometry
        self.groups, self.o, self.i, *kernel = geometry.kernel_shape
        self.kernel = tuple(kernel)

    @property
    @abc.abstractmethod
    def limits(self) -> Ranks:
        """The full ranks, with which every kernel is exact."""

    @abc.abstractmethod
    def links(self, ranks: Sequence[Any]) -> list[Link]:
        """The convolutions, the first one first; for tensors of ranks, too."""

    @abc.abstractmethod
    def compose(self, weights: Sequence[Tensor]) -> Tensor:
        """The kernel, of the shape of all groups, from the weights of the convolutions."""

    @abc.abstractmethod
    def decompose(self, kernel: Tensor, ranks: Ranks, tol: float | None = None) -> list[Tensor]:
        """The weights whose kernel is near to this one; if `tol` is met, that is near enough."""

    @abc.abstractmethod
    def within(self, kernel: Tensor, budget: int) -> Ranks | None:
        """The best ranks that store at most `budget` numbers, or None."""

    @abc.abstractmethod
    def reaching(self, kernel: Tensor, tol: float, attempt: Attempt) -> Ranks:
        """The smallest ranks with at most this relative error, or full ones."""

    def checked(self, rank: Any) -> Ranks:
        """The ranks that the caller gave; an int stands for all of them."""
        several = len(self.limits) > 1
        given = tuple(rank) if isinstance(rank, tuple | list) else (rank,) * len(self.limits)
        if len(given) != len(self.limits) or (isinstance(rank, tuple | list) and not several):
            numbers = f"one integer or {len(self.limits)}" if several else "one integer"
            raise ValueError(f"{self.owner}: rank must be {numbers}, got {rank}")
        for value, limit in zip(given, self.limits, strict=True):
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{self.owner}: rank must be an integer, got {value!r}")
            if not 1 <= value <= limit:
                what = f"at most {self.limits}, got {given}" if several else f"{limit}, got {value}"
                between = "at least 1 and" if several else "between 1 and"
                raise ValueError(f"{self.owner}: rank must be {between} {what}")
        return given

    def stored(self, ranks: Sequence[Any]) -> Any:
        """How many numbers the weights have; for tensors of ranks, too."""
        return sum(
            link.out_channels
            * (link.in_channels // link.groups)
            * math.prod(self.kernel[axis] for axis in link.axes)
            for link in self.links(ranks)
        )


class RankedSplit(ConvSplit):
    """A split whose errors singular values predict for all ranks at once."""

    @abc.abstractmethod
    def losses(self, kernel: Tensor) -> Tensor:
        """Squared relative errors for the ranks 1, 2, … along each dimension."""

    def within(self, kernel: Tensor, budget: int) -> Ranks | None:
        menu = self.menu(kernel)
        chosen = menu.best(budget)
        return None if chosen is None else tuple(menu.ranks[chosen].tolist())

    def reaching(self, kernel: Tensor, tol: float, attempt: Attempt) -> Ranks:
        menu, allowed = self.menu(kernel), tol**2
        while True:
            chosen = menu.smallest(allowed)
            ranks: Ranks = tuple(menu.ranks[chosen].tolist())
            predicted = float(menu.losses[chosen])
            # More than predicted is rounding of the weights, for which a rank makes up.
            if attempt(ranks) <= tol or not predicted:
                return ranks
            allowed = predicted / 4

    def menu(self, kernel: Tensor) -> Menu:
        """All ranks, with what they cost."""
        losses = self.losses(_normalized(kernel)).cpu()
        grid = torch.meshgrid(*(torch.arange(1, n + 1) for n in losses.shape), indexing="ij")
        ranks = torch.stack([axis.flatten() for axis in grid], dim=1)
        return Menu(ranks, self.stored(ranks.unbind(1)), losses.flatten())


class TuckerSplit(RankedSplit):
    """Channels to fewer, the whole kernel on those, and back: ranks (output, input)."""

    name = "tucker"

    @property
    def limits(self) -> Ranks:
        return self.o, self.i

    def links(self, ranks: Sequence[Any]) -> list[Link]:
        g, (out_rank, in_rank) = self.groups, ranks
        return [
            Link(g * self.i, g * in_rank, g, range(0)),
            Link(g * in_rank, g * out_rank, g, range(len(self.kernel))),
            Link(g * out_rank, g * self.o, g, range(0)),
        ]

    def compose(self, weights: Sequence[Tensor]) -> Tensor:
        first, core, last = weights
        g = self.groups
        first, last = (W.reshape(g, len(W) // g, W.shape[1]) for W in (first, last))
        core = core.reshape(g, last.shape[2], first.shape[1], -1)
        kernel = torch.einsum("gor,grsk,gsi->goik", last, core, first)
        return kernel.reshape(self.geometry.kernel_shape)

    def decompose(self, kernel: Tensor, ranks: Ranks, tol: float | None = None) -> list[Tensor]:
        core, factors = la.tucker(kernel, ranks, modes=(0, 1), batch_dims=1, seed=0)
        return [factors[1].mT, core, factors[0]]

    def losses(self, kernel: Tensor) -> Tensor:
        # In the bases of both unfoldings, what ranks leave out are entries of the core.
        matrix = kernel.flatten(3)
        left = _left_vectors(matrix.flatten(2))
        right = _left_vectors(matrix.transpose(1, 2).flatten(2))
        core = torch.einsum("goik,goa,gib->gabk", matrix, left, right)
        energy = core.square().sum((0, 3))
        energy /= energy.sum().clamp_min(torch.finfo(energy.dtype).tiny)
        # Sums of what is left out, as differences of sums would cancel.
        beyond = _tails(energy, 1)
        return _tails(energy.sum(1), 0)[:, None] + beyond.cumsum(0)


class MatrixSplit(RankedSplit):
    """A kernel as a product of two, by the SVD of an unfolding with input channels as columns."""

    first_axes: range  # those of the first convolution; the last one has the others

    @property
    def limits(self) -> Ranks:
        rows, columns = self._sizes()
        return (min(self.o * rows, self.i * columns),)

    def links(self, ranks: Sequence[Any]) -> list[Link]:
        g, (rank,) = self.groups, ranks
        return [
            Link(g * self.i, g * rank, g, self.first_axes),
            Link(g * rank, g * self.o, g, range(self.first_axes.stop, len(self.kernel))),
        ]

    def compose(self, weights: Sequence[Tensor]) -> Tensor:
        first, last = weights
        g, (rows, columns) = self.groups, self._sizes()
        kernel = torch.einsum(
            "gorv,grih->goihv",
            last.reshape(g, self.o, -1, rows),
            first.reshape(g, -1, self.i, columns),
        )
        return kernel.reshape(self.geometry.kernel_shape)

    def decompose(self, kernel: Tensor, ranks: Ranks, tol: float | None = None) -> list[Tensor]:
        (rank,) = ranks
        U, S, Vh = torch.linalg.svd(self._unfolded(kernel), full_matrices=False)
        basis = U[..., :rank].unflatten(1, (self.o, -1)).transpose(2, 3)
        return [S[:, :rank, None] * Vh[:, :rank], basis]

    def losses(self, kernel: Tensor) -> Tensor:
        energy = torch.linalg.svdvals(self._unfolded(kernel)).square().sum(0)
        return _tails(energy / energy.sum().clamp_min(torch.finfo(energy.dtype).tiny), 0)

    def _sizes(self) -> tuple[int, int]:
        """How many entries of the kernel an output channel and an input channel come with."""
        cut = self.first_axes.stop
        return math.prod(self.kernel[cut:]), math.prod(self.kernel[:cut])

    def _unfolded(self, kernel: Tensor) -> Tensor:
        """The matrices (o·v) × (i·h) of all groups: h the axes of the first convolution."""
        rows, columns = self._sizes()
        parts = kernel.reshape(self.groups, self.o, self.i, columns, rows)
        return parts.permute(0, 1, 4, 2, 3).reshape(self.groups, self.o * rows, -1)


class SpatialSplit(MatrixSplit):
    """A convolution along the first axis, and one along the others."""

    name = "spatial"
    first_axes = range(1)

    def __init__(self, owner: str, geometry: Geometry) -> None:
        super().__init__(owner, geometry)
        if len(self.kernel) < 2:
            raise ValueError(
                f'{owner}: split="spatial" must have two axes or more to split; '
                'give "tucker" or "channel"'
            )


class ChannelSplit(MatrixSplit):
    """The whole kernel into fewer channels, and those to all."""

    name = "channel"

    def __init__(self, owner: str, geometry: Geometry) -> None:
        super().__init__(owner, geometry)
        self.first_axes = range(len(self.kernel))


class CPSplit(ConvSplit):
    """Channels to one for each component, one axis after the other for each alone, and back."""

    name = "cp"

    def __init__(
        self, owner: str, geometry: Geometry, ridge: float = 0.0, max_sweeps: int = 100
    ) -> None:
        super().__init__(owner, geometry)
        self.ridge, self.max_sweeps = ridge, max_sweeps

    @property
    def limits(self) -> Ranks:
        # A sum of as many outer products as there are fibres along the longest mode.
        sizes = (self.o, self.i, *self.kernel)
        return (math.prod(sizes) // max(sizes),)

    def links(self, ranks: Sequence[Any]) -> list[Link]:
        g, (rank,) = self.groups, ranks
        inner = g * rank
        along = [Link(inner, inner, inner, range(a, a + 1)) for a in range(len(self.kernel))]
        first, last = Link(g * self.i, inner, g, range(0)), Link(inner, g * self.o, g, range(0))
        return [first, *along, last]

    def compose(self, weights: Sequence[Tensor]) -> Tensor:
        first, *along, last = weights
        g = self.groups
        kernel = last.reshape(g, self.o, -1)[:, :, None] * first.reshape(g, -1, self.i).mT[:, None]
        for W in along:
            kernel = (
                kernel[..., None, :]
                * W.reshape(g, -1, W[0].numel()).mT[(slice(None), *[None] * (kernel.dim() - 2))]
            )
        return kernel.sum(-1)

    def decompose(self, kernel: Tensor, ranks: Ranks, tol: float | None = None) -> list[Tensor]:
        (rank,) = ranks
        if ranks == self.limits:
            found = [_all_fibres(part) for part in kernel]
        else:
            found = [self._components(part, rank, tol) for part in kernel]
        last, first, *along = (torch.stack(factors) for factors in zip(*found, strict=True))
        return [first.mT, *(F.mT for F in along), last]

    def _components(self, X: Tensor, rank: int, tol: float | None) -> list[Tensor]:
        """The factors of a CP decomposition; each gets its share of the weights."""
        with warnings.catch_warnings():
            if tol is not None:  # one attempt of many; the last one is looked at
                warnings.simplefilter("ignore", la.ConvergenceWarning)
            weights, factors = la.cp(
                X, rank, tol=tol, ridge=self.ridge, max_sweeps=self.max_sweeps, seed=0
            )
        share = weights ** (1 / len(factors))
        return [F * share for F in factors]

    def within(self, kernel: Tensor, budget: int) -> Ranks | None:
        rank = min(budget // int(self.stored((1,))), *self.limits)
        return (rank,) if rank else None

    def reaching(self, kernel: Tensor, tol: float, attempt: Attempt) -> Ranks:
        # No fewer components than an unfolding needs; then twice as many until there are enough.
        (limit,) = self.limits
        failed, rank = 0, self._least(kernel, tol)
        while attempt((rank,)) > tol:
            if rank == limit:
                return (rank,)
            failed, rank = rank, min(2 * rank, limit)
        while failed and rank - failed > 1:
            middle = (failed + rank) // 2
            if attempt((middle,)) > tol:
                failed = middle
            else:
                rank = middle
        return (rank,)

    def _least(self, kernel: Tensor, tol: float) -> int:
        least, part = 1, _normalized(kernel)
        for mode in range(1, kernel.dim()):
            energy = torch.linalg.svdvals(part.movedim(mode, 1).flatten(2)).square().sum(0)
            enough = _tails(energy, 0) <= tol**2 * energy.sum()
            least = max(least, 1 + int(enough.int().argmax()))
        return least


SPLITS: dict[str, type[ConvSplit]] = {
    kind.name: kind for kind in (TuckerSplit, SpatialSplit, ChannelSplit)
}


def split_named(owner: str, name: Any) -> type[ConvSplit]:
    """The class of that name; ValueError for another one."""
    if name not in SPLITS:
        known = ", ".join(f'"{known}"' for known in SPLITS)
        raise ValueError(f"{owner}: split must be one of {known}, got {name!r}")
    return SPLITS[name]


def _all_fibres(X: Tensor) -> list[Tensor]:
    """Exact factors: all fibres along the longest mode, each times its place."""
    longest = max(range(X.dim()), key=lambda mode: X.shape[mode])
    fibres = X.movedim(longest, 0).flatten(1)
    others = [n for mode, n in enumerate(X.shape) if mode != longest]
    places = torch.unravel_index(torch.arange(fibres.shape[1], device=X.device), others)
    factors = [
        torch.eye(n, dtype=X.dtype, device=X.device)[:, place]
        for n, place in zip(others, places, strict=True)
    ]
    factors.insert(longest, fibres)
    return factors


def _first(values: Tensor, then: Tensor, allowed: Tensor) -> int | None:
    """The index of the least value where allowed; among equals, the least of the others."""
    places = allowed.nonzero().flatten()
    if not len(places):
        return None
    least = places[values[places] == values[places].min()]
    return int(least[then[least].argmin()])


def _left_vectors(matrices: Tensor) -> Tensor:
    U: Tensor = torch.linalg.svd(matrices, full_matrices=False).U
    return U


def _tails(energy: Tensor, dim: int) -> Tensor:
    """At index r − 1 what comes after the first r, summed from the smallest."""
    sums = energy.flip(dim).cumsum(dim).flip(dim)
    zero = torch.zeros_like(sums.narrow(dim, 0, 1))
    return torch.cat([sums.narrow(dim, 1, sums.shape[dim] - 1), zero], dim)


def _normalized(kernel: Tensor) -> Tensor:
    """The kernel with a largest entry of one, whose squares neither overflow nor vanish."""
    largest = kernel.abs().max()
    return kernel / largest if largest else kernel
