"""Tensors in CP form: a weight and a vector along each mode for every component."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch
from torch import Tensor

from fastlr.linalg._arguments import as_axis
from fastlr.linalg._arrays import as_tensor, computed_dtype, restored
from fastlr.linalg._autocast import as_written
from fastlr.linalg._cp_steps import khatri_rao
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

# Entries that `at` evaluates at a time, times the rank.
_BLOCK = 1 << 22


@dataclass(frozen=True)
class CPInfo:
    """How a CP form was obtained.

    Attributes
    ----------
    error : float
        ‖X − X̂‖_F, to rounding.
    relative_error : float
        The same over ‖X‖_F; 0 for X = 0.
    history : tuple of float
        ‖X − X̂‖_F at the start, and after every sweep and every step, of the start that was best.
        Without a ridge it never rises.
    sweeps : int
        Sweeps of alternating least squares and Gauss-Newton steps, rejected ones among them.
    converged : bool
        False where `tol` was not met, where `max_sweeps` ended the iteration, or where the
        components diverge (`cancellation` above 1e3, with an error above rounding).
    cancellation : float
        ‖weights‖ / ‖X‖: some 1, or less, for most tensors; large where components cancel, so that
        as many digits are lost. 0 for X = 0.
    starts : int
        Starts that were tried.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> a, b = torch.arange(1.0, 9), torch.arange(1.0, 6)
    >>> info = la.cp(a[:, None, None] * b[:, None] * b, 1, seed=0).info
    >>> info.converged, info.relative_error < 1e-6, round(info.cancellation, 3)
    (True, True, 1.0)
    """

    error: float
    relative_error: float
    history: tuple[float, ...]
    sweeps: int
    converged: bool
    cancellation: float
    starts: int


# error, norm of X, errors, converged, cancellation, starts
Outcome: TypeAlias = tuple[float, float, list[float], bool, float, int]


class CPTensor(State):
    """A tensor as a sum of outer products.

    Entry (i, j, k) is Σ weights[a]·F₀[i, a]·F₁[j, a]·F₂[k, a]. It unpacks into weights and factors.

    Parameters
    ----------
    weights : array or Tensor, shape (rank,)
        Of any sign. `cp` returns positive ones, the largest first.
    factors : sequence of array or Tensor
        One of shape (n, rank) for each mode, of the kind of the weights and of one dtype; that of
        the weights, or weights of its real type. `cp` returns columns of unit length.

    Raises
    ------
    ValueError
        Shapes that do not match, no factors.
    TypeError
        NumPy and torch mixed, different dtypes.

    Notes
    -----
    Methods give back the kind of array, dtype and device of the factors, and never write to them.
    Only `full` has the size of the tensor. What slices, sums and products leave are other columns
    and weights: `normalized` makes them unit and positive again.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> a, b = torch.arange(1.0, 9), torch.arange(1.0, 6)
    >>> T = la.CPTensor(torch.ones(1), [a[:, None], b[:, None], b[:, None]])
    >>> T.shape, T.rank, T.size
    ((8, 5, 5), 1, 19)
    >>> T.at([[7, 4, 4], [0, 0, 1]])
    tensor([200.,   2.])
    >>> (T + T)[1:3, 0, 4].full()
    tensor([20., 30.])
    >>> weights, factors = T.normalized()
    >>> weights.round()
    tensor([786.])
    """

    _FIELDS: ClassVar[tuple[str, ...]] = ("weights", "factors", "outcome", "numpy", "dtype")

    _weights: Tensor
    _factors: list[Tensor]
    _outcome: Outcome | None
    _numpy: bool
    _dtype: str

    # NumPy leaves the arithmetic of a scalar and a tensor to this class.
    __array_ufunc__ = None

    def __init__(self, weights: Any, factors: Sequence[Any]) -> None:
        caller = "CPTensor"
        if not len(factors):
            raise ValueError(f"{caller}: factors must be one for each mode, got none")
        numpy = not isinstance(weights, Tensor)
        if any(isinstance(F, Tensor) is numpy for F in factors):
            raise TypeError(f"{caller}: weights and factors must be all of NumPy or all of torch")
        scale = as_tensor(np.asarray(weights)) if numpy else weights
        matrices = [as_tensor(np.asarray(F)) if numpy else F for F in factors]
        dtype, computed = computed_dtype(
            matrices[0].dtype,
            torch.float64 if numpy else torch.get_default_dtype(),
            caller,
            "factors[0]",
        )
        for mode, F in enumerate(matrices):
            if F.dtype != matrices[0].dtype:
                raise TypeError(
                    f"{caller}: factors must have one dtype, got {matrices[0].dtype} and {F.dtype}"
                )
            if scale.dim() != 1 or F.dim() != 2 or F.shape[1] != len(scale):
                raise ValueError(
                    f"{caller}: factors[{mode}] must have shape (n, {scale.numel()}) for weights "
                    f"of shape {tuple(scale.shape)}, got {tuple(F.shape)}"
                )
        if scale.dtype not in (matrices[0].dtype, _real(matrices[0].dtype)):
            raise TypeError(
                f"{caller}: weights must have the dtype of the factors, {matrices[0].dtype}, or "
                f"its real type, got {scale.dtype}"
            )
        kept = computed if scale.is_complex() else _real(computed)
        self._weights = scale.detach().to(kept)
        self._factors = [F.detach().to(computed) for F in matrices]
        self._outcome = None
        self._numpy, self._dtype = numpy, str(dtype).removeprefix("torch.")

    @classmethod
    def _made(
        cls,
        weights: Tensor,
        factors: list[Tensor],
        numpy: bool,
        dtype: torch.dtype,
        outcome: Outcome | None = None,
    ) -> "CPTensor":
        self = cls.__new__(cls)
        self._weights, self._factors, self._outcome = weights, factors, outcome
        self._numpy, self._dtype = numpy, str(dtype).removeprefix("torch.")
        return self

    def _like(self, weights: Tensor, factors: list[Tensor]) -> "CPTensor":
        """Another tensor of this kind."""
        return self._made(weights, factors, self._numpy, getattr(torch, self._dtype))

    def _given(self, result: Tensor) -> Any:
        return restored(result, getattr(torch, self._dtype), numpy=self._numpy)

    # What it is

    @property
    def weights(self) -> Any:
        """The weights, shape (rank,)."""
        return self._given(self._weights)

    @property
    def factors(self) -> list[Any]:
        """A matrix (n, rank) for each mode."""
        return [self._given(F) for F in self._factors]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole tensor."""
        return tuple(len(F) for F in self._factors)

    @property
    def ndim(self) -> int:
        """Dimensions of the whole tensor."""
        return len(self._factors)

    @property
    def rank(self) -> int:
        """Components."""
        return len(self._weights)

    @property
    def size(self) -> int:
        """Numbers that are stored."""
        return len(self._weights) + sum(F.numel() for F in self._factors)

    @property
    def info(self) -> CPInfo | None:
        """How `cp` obtained it; None for what was made otherwise."""
        if self._outcome is None:
            return None
        error, norm, history, converged, cancellation, starts = self._outcome
        relative = error / norm if norm else 0.0
        sweeps = max(len(history) - 1, 0)
        return CPInfo(error, relative, tuple(history), sweeps, converged, cancellation, starts)

    def __iter__(self) -> Iterator[Any]:
        """Yield the weights and the factors."""
        return iter((self.weights, self.factors))

    def __repr__(self) -> str:
        return f"CPTensor(shape={self.shape}, rank={self.rank}, dtype={self._dtype})"

    # Its entries

    @as_written
    def full(self) -> Any:
        """Return the whole tensor, of shape `shape`."""
        first, *others = self._factors
        first = first * self._weights
        if not others:
            return self._given(first.sum(1))
        return self._given((first @ khatri_rao(others).mT).reshape(self.shape))

    @as_written
    def at(self, indices: Any) -> Any:
        """Return entries.

        Parameters
        ----------
        indices : array of integers, shape (p, d)
            Their places: one row for each, one column for each mode.

        Returns
        -------
        array, shape (p,)

        Raises
        ------
        TypeError
            Indices that are no integers.
        ValueError
            Another shape, or a place outside the tensor.

        Notes
        -----
        (d + 1)·rank flops for each entry.
        """
        columns = entry_columns(indices, self.shape, "CPTensor.at", self._weights.device)
        step = max(_BLOCK // max(self.rank, 1), 1)
        parts = [
            self._entries([column[first : first + step] for column in columns])
            for first in range(0, max(len(columns[0]), 1), step)
        ]
        return self._given(torch.cat(parts))

    def _entries(self, columns: list[Tensor]) -> Tensor:
        products = self._factors[0][columns[0]] * self._weights
        for F, column in zip(self._factors[1:], columns[1:], strict=True):
            products = products * F[column]
        return products.sum(1)

    @as_written
    def __getitem__(self, index: Any) -> Any:
        """Return a part, in CP form; a scalar array where every mode has an integer.

        Parameters
        ----------
        index : int, slice, Ellipsis or tuple of them
            As for an array. Steps may be negative.

        Raises
        ------
        IndexError
            Too many indices, or one out of range.
        TypeError
            Any other index.
        """
        weights, kept = self._weights, []
        for F, part in zip(self._factors, expanded(index, self.ndim, "CPTensor"), strict=True):
            rows = selected(F, 0, part)
            if isinstance(part, int):
                weights = weights * rows
            else:
                kept.append(rows)
        return self._like(weights, kept) if kept else self._given(weights.sum())

    # Arithmetic

    @as_written
    def norm(self) -> float:
        """Return the Frobenius norm.

        From inner products of unit columns, in double precision: right to √u·‖weights‖, u = 1e-16,
        and to u·‖weights‖ where components do not cancel.
        """
        wide = _wide(self._factors[0].dtype)
        weights, columns = unit_columns(self._weights, [F.to(wide) for F in self._factors])
        largest = float(weights.max()) if len(weights) else 0.0
        if largest == 0:
            return 0.0
        weights = weights / largest
        return largest * math.sqrt(max(_inner((weights, columns), (weights, columns)).real, 0.0))

    @as_written
    def inner(self, other: "CPTensor") -> Any:
        """Return Σ conj(self)·other over all entries, a number.

        Parameters
        ----------
        other : CPTensor
            Of the same shape, and of any rank.

        Raises
        ------
        ValueError
            Another shape, dtype, device or kind of array.
        """
        self._check_other(other, "inner")
        one, two = (self._weights, self._factors), (other._weights, other._factors)
        product = _inner(one, two)
        return product if self._factors[0].is_complex() else product.real

    @as_written
    def mode_dot(self, A: Any, mode: int) -> "CPTensor":
        """Return the product with a matrix along a mode; a vector takes the mode away.

        Parameters
        ----------
        A : array or Tensor, shape (p, n) or (n,)
            Multiplied with every fibre along the mode, of n entries.
        mode : int
            Negative ones count from the end.

        Raises
        ------
        ValueError
            A mode that there is not, or another n.
        TypeError
            NumPy and torch mixed.
        """
        caller = "CPTensor.mode_dot"
        place = as_axis(mode, self.ndim, caller, "mode")
        F = self._factors[place]
        matrix = mode_matrix(A, len(F), F, caller, numpy=self._numpy)
        factors = list(self._factors)
        if matrix.dim() == 2:
            factors[place] = matrix @ F
            return self._like(self._weights, factors)
        if self.ndim == 1:
            raise ValueError(f"{caller}: A must be a matrix for the last mode, got a vector")
        del factors[place]
        return self._like(self._weights * (matrix @ F), factors)

    @as_written
    def normalized(self) -> "CPTensor":
        """Return the same tensor with positive weights, the largest first, and unit columns.

        The largest entry of each column is real and positive in all modes but the last. A component
        that is zero has a weight of 0 and columns of the identity.
        """
        return self._like(*unit_columns(self._weights, self._factors))

    @as_written
    def __add__(self, other: "CPTensor") -> "CPTensor":
        """The sum, whose rank is the sum of the ranks."""
        if not isinstance(other, CPTensor):
            return NotImplemented
        self._check_other(other, "+")
        factors = [torch.cat([F, G], 1) for F, G in zip(self._factors, other._factors, strict=True)]
        return self._like(torch.cat([self._weights, other._weights]), factors)

    @as_written
    def __sub__(self, other: "CPTensor") -> "CPTensor":
        if not isinstance(other, CPTensor):
            return NotImplemented
        return self + (-other)

    def __neg__(self) -> "CPTensor":
        return self._like(-self._weights, list(self._factors))

    @as_written
    def __mul__(self, other: Any) -> "CPTensor":
        """With a number, or entry by entry with a tensor: then the rank is the product."""
        if not isinstance(other, CPTensor):
            scale = as_scale(other, "CPTensor.*", complex_=self._factors[0].is_complex())
            return self._like(self._weights * scale, list(self._factors))
        self._check_other(other, "*")
        factors = [
            (F.unsqueeze(2) * G.unsqueeze(1)).flatten(1)
            for F, G in zip(self._factors, other._factors, strict=True)
        ]
        return self._like(torch.outer(self._weights, other._weights).flatten(), factors)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> "CPTensor":
        return self._like(self._weights / as_divisor(other, "CPTensor./"), list(self._factors))

    def _check_other(self, other: "CPTensor", name: str) -> None:
        pairs = (
            (self.shape, other.shape, "shape"),
            (self._dtype, other._dtype, "dtype"),
            (self._numpy, other._numpy, "kind of array (NumPy or torch)"),
            (self._weights.device, other._weights.device, "device"),
        )
        check_same(pairs, f"CPTensor.{name}")


def unit_columns(weights: Tensor, factors: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Positive weights in descending order, and columns of unit length with fixed signs."""
    lengths = [torch.linalg.vector_norm(F, dim=0) for F in factors]
    total = weights.abs() * torch.stack(lengths).prod(0)
    zero = total == 0
    phase = weights / torch.where(zero, 1, weights.abs())
    columns = []
    for F, length in zip(factors, lengths, strict=True):
        unit = torch.eye(len(F), 1, dtype=F.dtype, device=F.device)
        columns.append(torch.where(zero, unit, F / torch.where(zero, 1, length)))
    if not all(len(F) for F in factors):
        return total, columns
    for mode, F in enumerate(columns[:-1]):
        largest = F.gather(0, F.abs().argmax(0, keepdim=True))[0]
        turn = largest / largest.abs()
        columns[mode] = F * turn.conj()
        phase = phase * turn
    columns[-1] = columns[-1] * torch.where(zero, 1, phase)
    order = total.argsort(descending=True, stable=True)
    return total[order], [F[:, order].contiguous() for F in columns]


def _inner(one: tuple[Tensor, list[Tensor]], two: tuple[Tensor, list[Tensor]]) -> complex:
    """Σ conj(one)·two for weights and factors of each, in double precision."""
    wide = _wide(one[1][0].dtype)
    product = torch.outer(one[0].conj().to(wide), two[0].to(wide))
    for F, G in zip(one[1], two[1], strict=True):
        product = product * (F.to(wide).mH @ G.to(wide))
    return complex(product.sum().item())


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.complex128 if dtype.is_complex else torch.float64


def _real(dtype: torch.dtype) -> torch.dtype:
    return dtype.to_real() if dtype.is_complex else dtype
