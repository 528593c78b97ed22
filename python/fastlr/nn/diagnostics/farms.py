"""The tail of a spectrum, the same for every shape of matrix."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastlr.nn.diagnostics.decay import numerical_rank, singular_values, tail_exponent


def farms_exponent(matrix: Tensor, ratio: float, samples: int, seed: int) -> float:
    """The tail exponent of the mean spectral density of submatrices of one aspect ratio.

    Parameters
    ----------
    matrix : Tensor of shape (m, n), float64
    ratio : float
        Long over short side of a submatrix, at least 1.
    samples : int
        How many submatrices.
    seed : int
        Of the rows and columns, which are drawn without replacement.

    Returns
    -------
    float
        NaN where the submatrices have fewer than two eigenvalues above rounding.
    """
    size = submatrix_size(tuple(matrix.shape), ratio)
    spectra = []
    for part in _submatrices(matrix, size, samples, seed):
        values = singular_values(part)
        spectra.append(values[: numerical_rank(values, size)])
    together = torch.cat(spectra)
    # The exponent is one of ratios, and squares of scaled values do not overflow.
    largest = together.max() if len(together) else 1.0
    return tail_exponent((together / largest).square())


def submatrix_size(shape: tuple[int, ...], ratio: float) -> tuple[int, int]:
    """Half the sides of the largest submatrix with this aspect ratio, long side as in `shape`."""
    m, n = shape
    short = max(1, int(min(min(m, n), max(m, n) / ratio) / 2))
    long = min(max(m, n), max(1, round(short * ratio)))
    return (long, short) if m >= n else (short, long)


def _submatrices(
    matrix: Tensor, size: tuple[int, int], samples: int, seed: int
) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(samples):
        rows, columns = (
            torch.randperm(whole, generator=generator)[:part].to(matrix.device)
            for whole, part in zip(matrix.shape, size, strict=True)
        )
        yield matrix[rows][:, columns]
