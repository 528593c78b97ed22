"""Tensors that are read in slabs along their first mode, made small by a basis for each other mode.

A slab S becomes S ×ₖ Qₖᴴ; what the bases lose of it is computed entry by entry. Together the slabs
make a small tensor P that has the first mode of X. Where all slabs were given the same bases,
‖X − X̂‖² = ‖X − P ×ₖ Qₖ‖² + ‖P − P̂‖² for whatever P̂ is found for P.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastlr import _core
from fastlr.linalg._arrays import computed_dtype
from fastlr.linalg._blocks import Source, leaving_a_thread, promoted, tensors_of
from fastlr.linalg.random import random_matrix
from fastlr.linalg.tucker_tensor import _times

# Of the energy that a tolerance allows, the share that the bases may lose: so little that they hold
# nearly all that the ranks could, and what it may become where noise would fill them.
_SHARE, _SHARE_OF_NOISE = 0.3, 0.9
# Bases for more of the tensor than this are tried again with the larger share, which has to make
# them hold less by this factor: slowly falling singular values do not.
_FULL, _SPARED = 0.1, 0.25
# Columns of a sketch beyond the rank.
_OVERSAMPLE = 10
# What is within so many units of rounding of a slab is no reason to make a basis larger.
_NOISE = 16
# Of unit columns, so many units of rounding outside a basis are no direction of their own.
_DEPENDENT = 8


class Slabs:
    """The slabs of a source, in the type that is computed in."""

    def __init__(self, source: Source, caller: str) -> None:
        dtypes = computed_dtype(source.dtype, promoted(source), caller, source.name)
        self.dtype, self.computed = dtypes
        self.numpy = source.device is None
        self.device = source.device or torch.device("cpu")
        self.rows = source.shape[0]  # None until they have been read
        self.sizes = source.sizes
        self.norm = 0.0  # of what the last read has given so far
        self._source, self._caller = source, caller

    def read(self) -> Iterator[tuple[int, Tensor, float]]:
        """Read once: the first index of a slab, the slab, its norm."""
        first, self.norm = 0, 0.0
        with leaving_a_thread(self._source):
            for block in tensors_of(self._source):
                slab = block.to(self.computed).resolve_conj()
                length = self._length(slab, first)
                self.norm = math.hypot(self.norm, length)
                yield first, slab, length
                first += len(slab)
        if self.rows not in (None, first):
            raise ValueError(
                f"{self._caller}: a read gave {first} of the {self.rows} rows of X; every read "
                "must give the same rows"
            )
        self.rows = first

    def zeros(self, *shape: int) -> Tensor:
        """Zeros of the type and on the device of the slabs."""
        return torch.zeros(shape, dtype=self.computed, device=self.device)

    def _length(self, slab: Tensor, first: int) -> float:
        try:
            return norm(slab)
        except ValueError:
            index = torch.nonzero(~torch.isfinite(slab))[0].tolist()
            value, place = slab[tuple(index)].item(), (first + index[0], *index[1:])
            raise ValueError(
                f"{self._caller}: X must be finite, got {value} at index {place}"
            ) from None


@dataclass(frozen=True)
class _Part:
    """A slab in bases, and the norm of what they lose of it."""

    tensor: Tensor
    lost: float


@dataclass(frozen=True)
class Small:
    """A tensor in bases of its later modes, and how far it is from the one that was read."""

    tensor: Tensor
    bases: Mapping[int, Tensor]  # of modes, n × r, orthonormal columns; others are as they were
    norm: float
    missed: float
    # Parts that were made before the bases had all of their columns: rows, sizes, what was lost.
    older: Sequence[tuple[slice, torch.Size, float]]

    def tolerance(
        self, tol: float, inner: float = 0.0, error: float = 0.0, *, last: bool = False
    ) -> float:
        """What may be lost of the small tensor, relative to it, so that X is met to `tol`.

        After an `inner` error of the small tensor was not small enough: that by which `error` is
        above the sum of squares is taken to fall as it does. The `last` time to what is enough in
        any case.
        """
        size = norm(self.tensor)
        if not size:
            return tol
        # Some of it is for the rounding that the small tensor comes with.
        aim = tol - min(0.5 * tol, _NOISE * torch.finfo(self.tensor.dtype).eps)
        missed = self.missed / self.norm
        if last:
            left = aim - missed
        else:
            left = leg(aim, missed)
            if inner:
                e = inner / self.norm
                beyond = (leg(error / self.norm, missed) ** 2 - e**2) / (2 * e)
                left = 0.98 * (math.hypot(beyond, left) - beyond)
        return max(left, 0.01 * aim) * (self.norm / size)

    def error(self, core: Tensor, factors: Mapping[int, Tensor], inner: float) -> float:
        """‖X − X̂‖_F for an approximation of the small tensor whose error is `inner`.

        What an older part has lost need not be orthogonal to the columns that came later: there
        this is a bound, by the product of that norm and the norm of what X̂ has in them.
        """
        if not self.norm:
            return 0.0
        later = core
        for mode in self.bases:
            later = _times(later, 0, mode, factors[mode])
        both = 0.0
        for rows, sizes, lost in self.older:
            slab = _times(later, 0, 0, factors[0][rows]) if 0 in factors else later[rows].clone()
            slab[tuple(slice(size) for size in sizes)] = 0
            both += (lost / self.norm) * (norm(slab) / self.norm)
        squares = (self.missed / self.norm) ** 2 + (inner / self.norm) ** 2 + 2 * both
        return self.norm * math.sqrt(squares)


def grown(slabs: Slabs, modes: Sequence[int], tol: float, seed: int) -> Small:
    """Read once; bases that lose no more than their share of a tolerance, and rounding.

    A slab of which they would lose more adds the directions of what they lose. Later slabs may use
    what earlier ones have left of the share.
    """
    bases = {mode: slabs.zeros(slabs.sizes[mode - 1], 0) for mode in modes}
    noise = _NOISE * torch.finfo(slabs.computed).eps
    share, missed = _SHARE, 0.0
    parts: list[_Part] = []
    for _, slab, length in slabs.read():
        part, rest = _split(slab, bases)
        lost = part.lost
        allowed, loosely = (
            max(leg(math.sqrt(of_all) * tol * slabs.norm, missed), noise * length)
            for of_all in (share, _SHARE_OF_NOISE)
        )
        if lost > allowed:
            held = _with_directions(bases, rest, allowed / lost, seed)
            if _filled(held) > _FULL and allowed < loosely:
                fewer = _with_directions(bases, rest, loosely / lost, seed)
                if _filled(fewer) < _SPARED * _filled(held):
                    held, share = fewer, _SHARE_OF_NOISE
            bases = held
            part, _ = _split(slab, bases)
        missed = math.hypot(missed, part.lost)
        parts.append(part)
    if not slabs.norm:
        # No slab has had a direction; a basis has one.
        bases = {mode: torch.eye(len(Q), 1).to(Q) for mode, Q in bases.items()}
    return _together(slabs, parts, bases)


def sketched(slabs: Slabs, ranks: Mapping[int, int], seed: int) -> dict[int, Tensor]:
    """Read once; bases of sketches of the modes' unfoldings, the leading directions first.

    A mode that is hardly longer than its sketch would be is left as it is.
    """
    sums = {
        mode: slabs.zeros(slabs.sizes[mode - 1], rank + _OVERSAMPLE)
        for mode, rank in ranks.items()
        if rank + _OVERSAMPLE < slabs.sizes[mode - 1]
    }
    for first, slab, _ in slabs.read():
        for mode, Y in sums.items():
            columns = _unfolded(slab, mode)
            place = first * (columns.shape[1] // max(len(slab), 1))
            Y.addmm_(columns, _gaussian(columns.shape[1], Y.shape[1], seed + mode, place, Y))
    return {mode: torch.linalg.svd(Y, full_matrices=False).U for mode, Y in sums.items()}


def improved(slabs: Slabs, bases: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Read once more; the bases after a step of subspace iteration, for all modes at once.

    Columns for small singular values are small themselves: as long as they are apart from those
    for large ones, rounding of the latter does not hide them.
    """
    # Of the two factors X one is scaled, so that their product has the magnitude of X.
    scale = math.ldexp(1.0, -math.frexp(slabs.norm)[1])
    sums = {mode: torch.zeros_like(Q) for mode, Q in bases.items()}
    for _, slab, _ in slabs.read():
        for mode, Y in sums.items():
            columns = _unfolded(slab, mode)
            Y.addmm_(columns, (columns.mH @ bases[mode]) * scale)
    return {mode: torch.linalg.qr(Y).Q for mode, Y in sums.items()}


def projected(slabs: Slabs, bases: Mapping[int, Tensor]) -> Small:
    """Read once more; the tensor in these bases."""
    parts = [_split(slab, bases)[0] for _, slab, _ in slabs.read()]
    return _together(slabs, parts, bases)


def with_signs(core: Tensor, mode: int, F: Tensor) -> tuple[Tensor, Tensor]:
    """The same product; the largest entry of every column of F is real and positive."""
    largest = F.gather(0, F.abs().argmax(0, keepdim=True))[0]
    signs = torch.where(largest == 0, 1, torch.sgn(largest))
    along = [1] * core.dim()
    along[mode] = len(signs)
    return core * signs.view(along), F * signs.conj()


def norm(X: Tensor) -> float:
    """‖X‖_F, summed in double precision; an entry that is not finite is a ValueError."""
    size: float = _core.tucker(X, [], [], None, "st_hosvd", 0, 0)[2]
    return size


def leg(hypotenuse: float, other: float) -> float:
    """The other leg of a right triangle, 0 where there is none."""
    if other >= hypotenuse:
        return 0.0
    ratio = other / hypotenuse
    return hypotenuse * math.sqrt((1 - ratio) * (1 + ratio))


def _split(slab: Tensor, bases: Mapping[int, Tensor]) -> tuple[_Part, Tensor]:
    """A slab in the bases, and what they lose of it."""
    # What shortens the most comes first, and last on the way back.
    order = sorted(bases, key=lambda mode: (bases[mode].shape[1] / max(len(bases[mode]), 1), -mode))
    # The memory of a slab is that of a later one, too.
    part = slab if order else slab.clone()
    for mode in order:
        part = _times(part, 0, mode, bases[mode].mH)
    back = part
    for mode in reversed(order):
        back = _times(back, 0, mode, bases[mode])
    rest = slab - back
    return _Part(part, norm(rest)), rest


def _with_directions(
    bases: Mapping[int, Tensor], rest: Tensor, tol: float, seed: int
) -> dict[int, Tensor]:
    """The bases with those directions of what they lose that leave `tol` of it."""
    if tol >= 1:
        return dict(bases)
    modes = sorted(bases)
    sizes = [rest.shape[mode] for mode in modes]
    directions = _core.tucker(rest, modes, sizes, tol, "st_hosvd", 0, seed)[1]
    return {mode: _beside(bases[mode], U) for mode, U in zip(modes, directions, strict=True)}


def _filled(bases: Mapping[int, Tensor]) -> float:
    """How much of a slab they can hold."""
    return math.prod(Q.shape[1] / Q.shape[0] for Q in bases.values())


def _beside(Q: Tensor, U: Tensor) -> Tensor:
    """Q and as many columns more as the orthonormal columns of U need to lie in the span."""
    for _ in range(2):
        U = U - Q @ (Q.mH @ U)
    V, sines, _ = torch.linalg.svd(U, full_matrices=False)
    apart = sines > _DEPENDENT * torch.finfo(Q.dtype).eps
    V = V[:, apart][:, : len(Q) - Q.shape[1]]
    # Columns of small sines lean on Q.
    V = torch.linalg.qr(V - Q @ (Q.mH @ V)).Q
    return torch.cat([Q, V], 1)


def _together(slabs: Slabs, parts: Sequence[_Part], bases: Mapping[int, Tensor]) -> Small:
    """The parts below each other, with zeros for the columns that came after them."""
    later = [bases[k].shape[1] if k in bases else n for k, n in enumerate(slabs.sizes, 1)]
    whole = slabs.zeros(slabs.rows or 0, *later)
    older, first, missed = [], 0, 0.0
    for part in parts:
        sizes, rows = part.tensor.shape, slice(first, first + len(part.tensor))
        whole[(rows, *(slice(size) for size in sizes[1:]))] = part.tensor
        if list(sizes[1:]) != later:
            older.append((rows, sizes, part.lost))
        first, missed = rows.stop, math.hypot(missed, part.lost)
    return Small(whole, bases, slabs.norm, missed, older)


def _unfolded(slab: Tensor, mode: int) -> Tensor:
    """The slab as a matrix with a row for each index of the mode."""
    n = slab.shape[mode]
    return slab.movedim(mode, 0).reshape(n, slab.numel() // max(n, 1))


def _gaussian(rows: int, columns: int, seed: int, first: int, like: Tensor) -> Tensor:
    """Rows, from the first one on, of the Gaussian matrix of a seed."""
    width = 2 * columns if like.is_complex() else columns
    drawn = random_matrix(
        rows,
        width,
        seed=seed,
        row_offset=first,
        dtype=like.dtype.to_real(),
        device=like.device,
    )
    return torch.complex(drawn[:, :columns], drawn[:, columns:]) if like.is_complex() else drawn
