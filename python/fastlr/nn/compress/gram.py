"""Second moments of a layer's inputs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastlr.nn.modules.dense import high_precision

_CHUNK = 4096
_BLOCK = 768


class Gram:
    """G = Σ x xᵀ over the inputs x of a layer, accumulated in float64.

    Parameters
    ----------
    matrix : Tensor of shape (i, i)
        Symmetric positive semidefinite. Any scale: a constant factor changes no result.
    tokens : int, default 0
        How many inputs were summed.

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
    >>> from fastlr.nn.compress import Gram
    >>> gram = Gram.of(torch.ones(3, 2))
    >>> gram.tokens, gram.matrix.tolist()
    (3, [[3.0, 3.0], [3.0, 3.0]])
    """

    def __init__(self, matrix: Tensor, tokens: int = 0) -> None:
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"Gram: matrix must be square, got shape {tuple(matrix.shape)}")
        self.matrix = high_precision(matrix)
        self.tokens = tokens
        self._eigen: tuple[Tensor, Tensor] | None = None

    @property
    def scale(self) -> float:
        """The power of two just above the largest entry: divided by it, no product overflows."""
        return power_of_two_above(self.matrix)

    @property
    def unit(self) -> Tensor:
        """G / scale."""
        return self.matrix / self.scale

    @classmethod
    def of(cls, inputs: Tensor) -> Gram:
        """The Gram matrix of ``… × i`` inputs: tokens·i² float64 multiply-adds, in chunks."""
        rows = inputs.detach().reshape(-1, inputs.shape[-1])
        width = rows.shape[1]
        device = torch.device("cpu") if rows.device.type == "mps" else rows.device
        matrix = torch.zeros(width, width, dtype=torch.float64, device=device)
        for start in range(0, len(rows), _CHUNK):
            _add_products(matrix, high_precision(rows[start : start + _CHUNK]))
        upper = matrix.triu()
        return cls(upper + upper.T - torch.diag(matrix.diagonal()), len(rows))

    def add(self, other: Gram) -> None:
        """Add another layer input's sum, in place."""
        self.matrix += other.matrix
        self.tokens += other.tokens
        self._eigen = None

    def eigen(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues, ascending, and eigenvectors of G / scale.

        About 9·i³ flops, the first time only.
        """
        if self._eigen is None:
            values, vectors = torch.linalg.eigh(self.unit)
            self._eigen = values, vectors
        return self._eigen


def power_of_two_above(matrix: Tensor) -> float:
    """The power of two just above the largest entry (1 for a zero matrix)."""
    largest = float(matrix.abs().max())
    return math.ldexp(1.0, math.frexp(largest)[1]) if largest > 0 else 1.0


def _add_products(matrix: Tensor, rows: Tensor) -> None:
    """Add rowsᵀ rows to the blocks of `matrix` on and above the diagonal."""
    width = rows.shape[1]
    for start in range(0, width, _BLOCK):
        stop = min(start + _BLOCK, width)
        matrix[start:stop, start:].addmm_(rows[:, start:stop].T, rows[:, start:])
