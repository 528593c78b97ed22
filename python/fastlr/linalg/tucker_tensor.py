"""Tensors in Tucker form: a small core and a matrix for each mode."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch
from torch import Tensor

from fastlr import _core
from fastlr.linalg._arguments import as_axis, as_tolerance, at_least
from fastlr.linalg._arrays import as_tensor, computed_dtype, restored
from fastlr.linalg._autocast import as_written
from fastlr.linalg._state import State
from fastlr.linalg._tensor_forms import (
    as_divisor,
    as_scale,
    check_same,
    entry_columns,
    expanded,
    mode_matrix,
    selected,
)

# Entries that `at` evaluates at a time, times the size of the core.
_BLOCK = 1 << 22


@dataclass(frozen=True)
class TuckerInfo:
    """How a Tucker form was obtained.

    Attributes
    ----------
    method : {"hooi", "st_hosvd", "randomized"}
    error : float
        ‖X − X̂‖_F, to rounding; over the observed entries where there is a mask.
    relative_error : float
        The same over ‖X‖_F; 0 for X = 0.
    history : tuple of float
        ‖X − X̂‖_F at the start and after every sweep, right to √u·‖X‖_F.
    sweeps : int
    converged : bool
        False where `max_sweeps` ended the sweeps, or `tol` was not met.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> a, b = torch.arange(1.0, 9), torch.arange(1.0, 6)
    >>> info = la.tucker(a[:, None, None] * b[:, None] * b, 1, seed=0).info
    >>> info.converged, info.relative_error < 1e-6
    (True, True)
    """

    method: str
    error: float
    relative_error: float
    history: tuple[float, ...]
    sweeps: int
    converged: bool


class TuckerTensor(State):
    """A tensor as the products of a core with a matrix along each mode.

    Entry (i, j, k) is Σ core[a, b, c]·F₀[i, a]·F₁[j, b]·F₂[k, c]. It unpacks into core and factors.

    Parameters
    ----------
    core : array or Tensor, shape (\\*batch, r₀, …, r_{d-1})
    factors : sequence of array, Tensor or None
        One of shape (\\*batch, n, r) for each mode, of the kind and dtype of the core; None for a
        mode that has none, so that it is as long as the core is there.

    Raises
    ------
    ValueError
        Shapes that do not match.
    TypeError
        NumPy and torch mixed, different dtypes.

    Notes
    -----
    Leading dimensions of the factors are a batch: every tensor of it has a core and factors of its
    own. Methods give back the kind of array, dtype and device of the core, and never write to it.
    All of them cost no more than products of the core with the factors; only `full` has the size of
    the tensor.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> a, b = torch.arange(1.0, 9), torch.arange(1.0, 6)
    >>> T = la.tucker(a[:, None, None] * b[:, None] * b, 1, seed=0)
    >>> T.shape, T.ranks, T.size
    ((8, 5, 5), (1, 1, 1), 19)
    >>> T.at([[7, 4, 4], [0, 0, 1]]).round()
    tensor([200.,   2.])
    >>> (T + T)[1:3, 0, 4].full().round()
    tensor([20., 30.])
    >>> core, factors = (T + T).rounded(tol=1e-3)
    >>> core.shape
    torch.Size([1, 1, 1])
    """

    _FIELDS: ClassVar[tuple[str, ...]] = ("core", "factors", "batch", "outcome", "numpy", "dtype")

    _core: Tensor
    _factors: list[Tensor | None]
    _batch: int  # dimensions
    _outcome: tuple[str, float, float, list[float], int, bool] | None
    _numpy: bool
    _dtype: str

    # NumPy leaves the arithmetic of a scalar and a tensor to this class.
    __array_ufunc__ = None

    def __init__(self, core: Any, factors: Sequence[Any]) -> None:
        caller = "TuckerTensor"
        numpy = not isinstance(core, Tensor)
        given = as_tensor(np.asarray(core)) if numpy else core
        dtype, computed = computed_dtype(
            given.dtype, torch.float64 if numpy else torch.get_default_dtype(), caller, "core"
        )
        matrices: list[Tensor | None] = []
        for factor in factors:
            if factor is None:
                matrices.append(None)
                continue
            if isinstance(factor, Tensor) is numpy:
                raise TypeError(f"{caller}: core and factors must be all of NumPy or all of torch")
            matrix = factor if isinstance(factor, Tensor) else as_tensor(np.asarray(factor))
            if matrix.dtype != given.dtype:
                raise TypeError(
                    f"{caller}: factors must have the dtype of the core, {given.dtype}, got "
                    f"{matrix.dtype}"
                )
            matrices.append(matrix.detach().to(computed))
        self._set(given.detach().to(computed), matrices, _batch_of(given, matrices), None)
        self._numpy, self._dtype = numpy, str(dtype).removeprefix("torch.")

    def _set(
        self,
        core: Tensor,
        factors: list[Tensor | None],
        batch: int,
        outcome: tuple[str, float, float, list[float], int, bool] | None,
    ) -> None:
        self._core, self._factors, self._batch = core, factors, batch
        self._outcome = outcome

    @classmethod
    def _made(
        cls,
        core: Tensor,
        factors: list[Tensor | None],
        numpy: bool,
        dtype: torch.dtype,
        batch: int = 0,
        outcome: tuple[str, float, float, list[float], int, bool] | None = None,
    ) -> "TuckerTensor":
        self = cls.__new__(cls)
        self._set(core, factors, batch, outcome)
        self._numpy, self._dtype = numpy, str(dtype).removeprefix("torch.")
        return self

    def _like(
        self, core: Tensor, factors: list[Tensor | None], batch: int | None = None
    ) -> "TuckerTensor":
        """Another tensor of this kind."""
        batch = self._batch if batch is None else batch
        return self._made(core, factors, self._numpy, getattr(torch, self._dtype), batch)

    def _given(self, result: Tensor) -> Any:
        return restored(result, getattr(torch, self._dtype), numpy=self._numpy)

    # What it is

    @property
    def core(self) -> Any:
        """The core, shape (\\*batch, \\*ranks)."""
        return self._given(self._core)

    @property
    def factors(self) -> list[Any]:
        """A matrix (\\*batch, n, r) for each mode, None for one without."""
        return [None if F is None else self._given(F) for F in self._factors]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole tensor, the batch included."""
        sizes = (
            r if F is None else F.shape[-2] for r, F in zip(self.ranks, self._factors, strict=True)
        )
        return (*self._core.shape[: self._batch], *sizes)

    @property
    def ndim(self) -> int:
        """Dimensions of the whole tensor, the batch included."""
        return self._core.dim()

    @property
    def batch_dims(self) -> int:
        """Leading dimensions that are a batch."""
        return self._batch

    @property
    def ranks(self) -> tuple[int, ...]:
        """Sizes of the core, without the batch."""
        return tuple(self._core.shape[self._batch :])

    @property
    def size(self) -> int:
        """Numbers that are stored."""
        return self._core.numel() + sum(F.numel() for F in self._factors if F is not None)

    @property
    def info(self) -> TuckerInfo | None:
        """How `tucker` obtained it; None for what was made otherwise."""
        if self._outcome is None:
            return None
        method, error, norm, history, sweeps, converged = self._outcome
        relative = error / norm if norm else 0.0
        return TuckerInfo(method, error, relative, tuple(history), sweeps, converged)

    def __iter__(self) -> Iterator[Any]:
        """Yield the core and the factors."""
        return iter((self.core, self.factors))

    def __repr__(self) -> str:
        return f"TuckerTensor(shape={self.shape}, ranks={self.ranks}, dtype={self._dtype})"

    # Its entries

    @as_written
    def full(self) -> Any:
        """Return the whole tensor, of shape `shape`."""
        return self._given(self._product())

    def _product(self) -> Tensor:
        core = self._core
        # What lengthens the least comes first.
        for mode in sorted(range(len(self._factors)), key=self._growth):
            core = _times(core, self._batch, mode, self._factors[mode])
        return core

    def _growth(self, mode: int) -> float:
        F = self._factors[mode]
        return 1.0 if F is None else F.shape[-2] / max(F.shape[-1], 1)

    @as_written
    def at(self, indices: Any) -> Any:
        """Return entries.

        Parameters
        ----------
        indices : array of integers, shape (p, d)
            Their places: one row for each, one column for each mode. A batch has the same places in
            all of its tensors.

        Returns
        -------
        array, shape (\\*batch, p)

        Raises
        ------
        TypeError
            Indices that are no integers.
        ValueError
            Another shape, or a place outside the tensor.

        Notes
        -----
        2·Πr flops for each entry, and two more for every smaller core on the way.
        """
        caller = "TuckerTensor.at"
        sizes = self.shape[self._batch :]
        columns = entry_columns(indices, sizes, caller, self._core.device)
        step = max(_BLOCK // max(math.prod(self.ranks), 1), 1)
        parts = [
            contracted(
                self._core,
                self._batch,
                [
                    self._matrix(mode).index_select(-2, column[first : first + step])
                    for mode, column in enumerate(columns)
                ],
            )
            for first in range(0, max(len(columns[0]), 1), step)
        ]
        return self._given(torch.cat(parts, -1))

    @as_written
    def __getitem__(self, index: Any) -> Any:
        """Return a part, in Tucker form; a scalar array where every dimension has an integer.

        Parameters
        ----------
        index : int, slice, Ellipsis or tuple of them
            As for an array; the batch comes first. Steps may be negative.

        Raises
        ------
        IndexError
            Too many indices, or one out of range.
        TypeError
            Any other index.
        """
        parts = expanded(index, self.ndim, "TuckerTensor")
        core, factors = self._core, list(self._factors)
        batch_index = tuple(parts[: self._batch])
        if batch_index:
            core = core[batch_index]
            factors = [None if F is None else F[batch_index] for F in factors]
        batch = self._batch - sum(isinstance(part, int) for part in batch_index)
        dimension = batch
        kept: list[Tensor | None] = []
        for F, part in zip(factors, parts[self._batch :], strict=True):
            if F is None:
                core = selected(core, dimension, part)
            elif isinstance(part, int):
                row = selected(F, F.dim() - 2, part).unsqueeze(-2)
                core = _times(core, batch, dimension - batch, row).squeeze(dimension)
            else:
                F = selected(F, F.dim() - 2, part)
            if not isinstance(part, int):
                kept.append(F)
                dimension += 1
        if not kept:
            return self._given(core)
        return self._like(core, kept, batch)

    # Arithmetic

    @as_written
    def norm(self) -> Any:
        """Return the Frobenius norm, a float; an array of shape batch for a batch."""
        core = self._orthogonal()[0]
        norms = torch.linalg.vector_norm(core.flatten(self._batch), dim=-1)
        return self._given(norms) if self._batch else float(norms)

    @as_written
    def inner(self, other: "TuckerTensor") -> Any:
        """Return Σ conj(self)·other over all entries, a number; an array for a batch.

        Parameters
        ----------
        other : TuckerTensor
            Of the same shape.

        Raises
        ------
        ValueError
            Another shape, dtype, device or kind of array.
        """
        self._check_other(other, "inner")
        core = other._core
        for mode, (F, G) in enumerate(zip(self._factors, other._factors, strict=True)):
            if F is None:
                core = _times(core, self._batch, mode, G)
            else:
                adjoint = F.mH
                core = _times(core, self._batch, mode, adjoint if G is None else adjoint @ G)
        products = self._core.conj() * core
        sums = products.flatten(self._batch).sum(-1)
        return self._given(sums) if self._batch else sums.item()

    @as_written
    def mode_dot(self, A: Any, mode: int) -> "TuckerTensor":
        """Return the product with a matrix along a mode; a vector takes the mode away.

        Parameters
        ----------
        A : array or Tensor, shape (p, n) or (n,)
            Multiplied with every fibre along the mode, of n entries.
        mode : int
            Not counting the batch; negative ones count from the end.

        Raises
        ------
        ValueError
            A mode that there is not, or another n.
        TypeError
            NumPy and torch mixed.
        """
        caller = "TuckerTensor.mode_dot"
        d = len(self._factors)
        index = as_axis(mode, d, caller, "mode")
        n = self.shape[self._batch + index]
        matrix = mode_matrix(A, n, self._core, caller, numpy=self._numpy)
        vector = matrix.dim() == 1
        rows = matrix[None] if vector else matrix
        F = self._factors[index]
        product = rows if F is None else rows @ F
        factors = list(self._factors)
        if not vector:
            factors[index] = product
            return self._like(self._core, factors)
        if d == 1:
            raise ValueError(f"{caller}: A must be a matrix for the last mode, got a vector")
        del factors[index]
        core = _times(self._core, self._batch, index, product).squeeze(self._batch + index)
        return self._like(core, factors)

    @as_written
    def rounded(
        self, ranks: int | Sequence[int] | None = None, *, tol: float | None = None
    ) -> "TuckerTensor":
        """Return nearly the same tensor with smaller ranks.

        Parameters
        ----------
        ranks : int or sequence of int, optional
            Of each mode; larger ones than there are change nothing. With `tol`, the largest ones.
        tol : float, optional
            The smallest ranks for which the difference is at most tol·`norm()`, 0 < tol < 1; not
            for a batch.

        Returns
        -------
        TuckerTensor
            With orthonormal factors for all modes and an all-orthogonal core.

        Raises
        ------
        ValueError
            Neither ranks nor tol, numbers out of range, tol for a batch.

        Notes
        -----
        QR factorizations of the factors, and `tucker` with "st_hosvd" of a core that is not larger.
        """
        caller = "TuckerTensor.rounded"
        target = checked_tol(tol, self._batch, caller)
        if ranks is None and target is None:
            raise ValueError(f"{caller}: give ranks or tol, got neither")
        core, outer = self._orthogonal()
        sizes = tuple(core.shape[self._batch :])
        wanted = sizes if ranks is None else as_ranks(ranks, len(sizes), caller)
        most = [min(r, size) for r, size in zip(wanted, sizes, strict=True)]
        modes = list(range(len(sizes)))
        core, inner, _ = decomposed(core, self._batch, modes, most, target, "st_hosvd", 0, 0)
        return self._like(core, [Q @ F for Q, F in zip(outer, inner, strict=True)])

    def _matrix(self, mode: int) -> Tensor:
        """The factor of a mode; the identity where it has none."""
        F = self._factors[mode]
        if F is not None:
            return F
        r, core = self.ranks[mode], self._core
        eye = torch.eye(r, dtype=core.dtype, device=core.device)
        return eye.expand(*core.shape[: self._batch], r, r)

    def _orthogonal(self) -> tuple[Tensor, list[Tensor]]:
        """The same tensor with orthonormal factors for all modes."""
        core, factors = self._core, []
        for mode, F in enumerate(self._factors):
            if F is None:
                factors.append(self._matrix(mode))
                continue
            Q, R = torch.linalg.qr(F)
            core = _times(core, self._batch, mode, R)
            factors.append(Q)
        return core, factors

    @as_written
    def __add__(self, other: "TuckerTensor") -> "TuckerTensor":
        """The sum, whose ranks are sums: `rounded` makes them small again."""
        if not isinstance(other, TuckerTensor):
            return NotImplemented
        self._check_other(other, "+")
        factors: list[Tensor | None] = []
        corner: list[Any] = [Ellipsis]
        rest: list[Any] = [Ellipsis]
        ranks: list[int] = []
        for mode, (a, b) in enumerate(zip(self.ranks, other.ranks, strict=True)):
            if self._factors[mode] is None and other._factors[mode] is None:
                # Cores are added along a mode without factors.
                factors.append(None)
                corner.append(slice(None))
                rest.append(slice(None))
                ranks.append(a)
            else:
                factors.append(torch.cat([self._matrix(mode), other._matrix(mode)], -1))
                corner.append(slice(0, a))
                rest.append(slice(a, None))
                ranks.append(a + b)
        core = self._core.new_zeros(*self._core.shape[: self._batch], *ranks)
        core[tuple(corner)] += self._core
        core[tuple(rest)] += other._core
        return self._like(core, factors)

    @as_written
    def __sub__(self, other: "TuckerTensor") -> "TuckerTensor":
        if not isinstance(other, TuckerTensor):
            return NotImplemented
        return self + (-other)

    def __neg__(self) -> "TuckerTensor":
        return self._like(-self._core, list(self._factors))

    @as_written
    def __mul__(self, other: Any) -> "TuckerTensor":
        """With a number, or entry by entry with a tensor: then the ranks are products."""
        if not isinstance(other, TuckerTensor):
            return self._scaled(other, "*")
        self._check_other(other, "*")
        lead = self._core.shape[: self._batch]
        one = self._core.reshape(*lead, *(size for r in self.ranks for size in (r, 1)))
        two = other._core.reshape(*lead, *(size for r in other.ranks for size in (1, r)))
        ranks = [a * b for a, b in zip(self.ranks, other.ranks, strict=True)]
        factors: list[Tensor | None] = [
            (self._matrix(mode).unsqueeze(-1) * other._matrix(mode).unsqueeze(-2)).flatten(-2)
            for mode in range(len(ranks))
        ]
        return self._like((one * two).reshape(*lead, *ranks), factors)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> "TuckerTensor":
        return self._like(self._core / as_divisor(other, "TuckerTensor./"), list(self._factors))

    def _scaled(self, number: Any, name: str) -> "TuckerTensor":
        scale = as_scale(number, f"TuckerTensor.{name}", complex_=self._core.is_complex())
        return self._like(self._core * scale, list(self._factors))

    def _check_other(self, other: "TuckerTensor", name: str) -> None:
        pairs = (
            (self.shape, other.shape, "shape"),
            (self._batch, other._batch, "batch_dims"),
            (self._dtype, other._dtype, "dtype"),
            (self._numpy, other._numpy, "kind of array (NumPy or torch)"),
            (self._core.device, other._core.device, "device"),
        )
        check_same(pairs, f"TuckerTensor.{name}")


def as_ranks(ranks: Any, count: int, caller: str) -> list[int]:
    """One rank, of at least 1, for each of `count` modes."""
    if isinstance(ranks, Sequence) and not isinstance(ranks, str):
        given = [at_least(r, 1, caller, "ranks") for r in ranks]
        if len(given) != count:
            raise ValueError(f"{caller}: ranks must be one for each of {count} modes, got {given}")
        return given
    return [at_least(ranks, 1, caller, "ranks")] * count


def checked_tol(tol: Any, batch: int, caller: str) -> float | None:
    """A relative tolerance, for one tensor."""
    if tol is None:
        return None
    number = as_tolerance(tol, caller)
    if batch:
        raise ValueError(f"{caller}: tol takes one tensor, since ranks differ within a batch")
    return number


# core, factors, norm, error, errors of the start and the sweeps, converged
Outcome: TypeAlias = tuple[Tensor, list[Tensor], float, float, list[float], bool]


def decomposed(
    X: Tensor,
    batch: int,
    modes: Sequence[int],
    ranks: Sequence[int],
    tol: float | None,
    method: str,
    sweeps: int,
    seed: int,
) -> tuple[Tensor, list[Tensor], list[Outcome]]:
    """The core, the factors of some modes, and what is told of each tensor of a batch."""
    lead = X.shape[:batch]
    outcomes = [
        _core.tucker(one, list(modes), list(ranks), tol, method, sweeps, seed)
        for one in X.reshape(-1, *X.shape[batch:])
    ]
    if not batch:
        return outcomes[0][0], outcomes[0][1], outcomes

    def stacked(parts: list[Tensor], like: Sequence[int]) -> Tensor:
        together = torch.stack(parts) if parts else X.new_zeros(0, *like)
        return together.reshape(*lead, *like)

    sizes = list(X.shape[batch:])
    for mode, r in zip(modes, ranks, strict=True):
        sizes[mode] = r
    core = stacked([outcome[0] for outcome in outcomes], sizes)
    factors = [
        stacked([outcome[1][i] for outcome in outcomes], (X.shape[batch + mode], ranks[i]))
        for i, mode in enumerate(modes)
    ]
    return core, factors, outcomes


def _batch_of(core: Tensor, factors: Sequence[Tensor | None]) -> int:
    """How many leading dimensions are a batch; shapes that do not match are an error."""
    batch = core.dim() - len(factors)
    if batch < 0 or not factors:
        raise ValueError(
            f"TuckerTensor: factors must be one for each dimension of the core, {core.dim()}, got "
            f"{len(factors)}"
        )
    for mode, F in enumerate(factors):
        expected = (*core.shape[:batch], core.shape[batch + mode])
        if F is not None and (F.dim() != batch + 2 or (*F.shape[:-2], F.shape[-1]) != expected):
            lead = "".join(f"{size}, " for size in expected[:-1])
            raise ValueError(
                f"TuckerTensor: factors[{mode}] must have shape ({lead}n, {expected[-1]}) for a "
                f"core of shape {tuple(core.shape)}, got {tuple(F.shape)}"
            )
    return batch


def _times(core: Tensor, batch: int, mode: int, A: Tensor | None) -> Tensor:
    """The matrices A, one for each of the batch or for all, times the fibres along a mode."""
    if A is None:
        return core
    lead, sizes = core.shape[:batch], core.shape[batch:]
    before, after = math.prod(sizes[:mode]), math.prod(sizes[mode + 1 :])
    if after == 1:
        # One product of matrices, where there would be one with a vector for each fibre.
        product = core.reshape(*lead, before, sizes[mode]) @ A.mT
    else:
        product = A.unsqueeze(-3) @ core.reshape(*lead, before, sizes[mode], after)
    return product.reshape(*lead, *sizes[:mode], A.shape[-2], *sizes[mode + 1 :])


def contracted(core: Tensor, batch: int, rows: Sequence[Tensor]) -> Tensor:
    """For each of p points, the core times a row for every mode; rows (\\*batch, p, r)."""
    lead, sizes = core.shape[:batch], core.shape[batch:]
    count = rows[0].shape[-2]
    # A matrix product with the rows of the last mode, then ever smaller sums for each point.
    flat = core.reshape(*lead, math.prod(sizes[:-1]), sizes[-1])
    values = rows[-1] @ flat.mT  # (*batch, p, everything else)
    for mode in range(len(sizes) - 2, -1, -1):
        values = values.reshape(*lead, count, math.prod(sizes[:mode]), sizes[mode])
        values = (values @ rows[mode].unsqueeze(-1)).squeeze(-1)
    return values.reshape(*lead, count)
