"""Second moments of a layer's inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastlr.nn.modules.dense import high_precision

_CHUNK = 4096
# Rows whose products are summed in float32 before they join a sum in float64.
_SHORT_CHUNK = 512
_BLOCK = 768


class Gram:
    """G = Σ x xᵀ over the inputs x of a layer, accumulated in float64.

    Parameters
    ----------
    matrix : Tensor of shape (i, i)
        Symmetric positive semidefinite. Any scale: a constant factor changes no result.
    tokens : int, default 0
        How many inputs were summed.
    total, magnitude : Tensor of shape (i,), optional
        The sums of x and of its absolute values, of which the methods make means; None where they
        were not collected.
    after_reading : callable, optional
        Called when the matrix has been read through; one that lies in a file can leave memory then.

    Raises
    ------
    ValueError
        If `matrix` is not square.

    Notes
    -----
    One object may serve several layers that read the same input; its eigenvalues are computed
    once, when first asked for.

    Examples
    --------
    >>> import torch
    >>> from fastlr.nn.compression import Gram
    >>> gram = Gram.of(torch.ones(3, 2))
    >>> gram.tokens, gram.matrix.tolist()
    (3, [[3.0, 3.0], [3.0, 3.0]])
    """

    def __init__(
        self,
        matrix: Tensor,
        tokens: int = 0,
        total: Tensor | None = None,
        magnitude: Tensor | None = None,
        after_reading: Callable[[], None] | None = None,
    ) -> None:
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"Gram: matrix must be square, got shape {tuple(matrix.shape)}")
        self.matrix = high_precision(matrix)
        self.tokens = tokens
        self.total = total
        self.magnitude = magnitude
        self._after_reading = after_reading
        self._eigen: tuple[Tensor, Tensor] | None = None

    @property
    def scale(self) -> float:
        """The power of two just above the largest entry: divided by it, no product overflows."""
        return power_of_two_above(self.matrix)

    @property
    def unit(self) -> Tensor:
        """G / scale."""
        scaled = self.matrix / self.scale
        if self._after_reading is not None:
            self._after_reading()
        return scaled

    def __getstate__(self) -> dict[str, Any]:
        # What forgets a file is of no use to a copy, which is in memory.
        return {**self.__dict__, "_after_reading": None}

    @classmethod
    def of(cls, inputs: Tensor, *, exact: bool = True) -> Gram:
        """The Gram matrix of ``… × i`` inputs: tokens·i² multiply-adds, in chunks.

        They are float64 ones; where not `exact`, in the dtype of the inputs (float32 for half
        types) over 512 rows at a time, which leaves some √512·u of the diagonal as an error.
        """
        rows = _as_rows(inputs, exact)
        width = rows.shape[1]
        chunk = _CHUNK if exact else _SHORT_CHUNK
        matrix = torch.zeros(width, width, dtype=torch.float64, device=rows.device)
        total, magnitude = matrix.new_zeros(2, width).unbind()
        for start in range(0, len(rows), chunk):
            part = rows[start : start + chunk]
            _add_products(matrix, high_precision(part) if exact else part)
            total += part.sum(0, dtype=torch.float64)
            magnitude += part.abs().sum(0, dtype=torch.float64)
        _mirror(matrix)
        return cls(matrix, len(rows), total, magnitude)

    def copy(self) -> Gram:
        """One that can be added to without changing this one."""
        return Gram(self.matrix.clone(), self.tokens, self.total, self.magnitude)

    def add(self, other: Gram) -> None:
        """Add another layer input's sum, in place."""
        self.matrix += other.matrix
        self.tokens += other.tokens
        self.total = _both(self.total, other.total)
        self.magnitude = _both(self.magnitude, other.magnitude)
        self._eigen = None

    def eigen(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues, ascending, and eigenvectors of G / scale.

        About 9·i³ flops, the first time only.
        """
        if self._eigen is None:
            values, vectors = torch.linalg.eigh(self.unit)
            self._eigen = values, vectors
        return self._eigen

    def forget(self) -> None:
        """Free the eigenvectors, which are computed again when they are asked for."""
        self._eigen = None


def cross_products(first: Tensor, second: Tensor) -> Tensor:
    """Σ x yᵀ over two sets of ``… × i`` inputs, summed as those of an inexact Gram matrix."""
    left, right = _as_rows(first, exact=False), _as_rows(second, exact=False)
    found = torch.zeros(left.shape[1], right.shape[1], dtype=torch.float64, device=left.device)
    for start in range(0, len(left), _SHORT_CHUNK):
        found += left[start : start + _SHORT_CHUNK].T @ right[start : start + _SHORT_CHUNK]
    return found


def power_of_two_above(matrix: Tensor) -> float:
    """The power of two just above the largest entry (1 for a zero matrix)."""
    least, most = (float(end) for end in torch.aminmax(matrix))
    largest = max(-least, most)
    return math.ldexp(1.0, math.frexp(largest)[1]) if largest > 0 else 1.0


def _as_rows(inputs: Tensor, exact: bool) -> Tensor:
    rows = inputs.detach().reshape(-1, inputs.shape[-1])
    if rows.device.type == "mps":
        rows = rows.cpu()
    if not exact and rows.dtype in (torch.float16, torch.bfloat16):
        rows = rows.float()
    return rows


def _add_products(matrix: Tensor, rows: Tensor) -> None:
    """Add rowsᵀ rows to the blocks of `matrix` on and above the diagonal."""
    width = rows.shape[1]
    for start in range(0, width, _BLOCK):
        stop = min(start + _BLOCK, width)
        matrix[start:stop, start:] += rows[:, start:stop].T @ rows[:, start:]


def _mirror(matrix: Tensor) -> None:
    """Copy what is above the diagonal below it, block by block."""
    width = matrix.shape[0]
    for start in range(0, width, _BLOCK):
        stop = min(start + _BLOCK, width)
        matrix[stop:, start:stop] = matrix[start:stop, stop:].T
        block = matrix[start:stop, start:stop]
        block.copy_(block.triu() + block.triu(1).T)


def _both(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    return None if first is None or second is None else first + second
