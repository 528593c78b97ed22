"""Random matrices by (seed, row, column)."""

from typing import Any

import torch
from torch import Tensor

from fastlr.linalg._arguments import Seed, as_integer, as_seed


def random_matrix(
    rows: int,
    columns: int,
    *,
    kind: str = "gaussian",
    seed: Seed = None,
    row_offset: int = 0,
    column_offset: int = 0,
    dtype: torch.dtype | None = None,
    device: Any = None,
) -> Tensor:
    """Make a window of the random matrix of a seed.

    Every entry is a function of (seed, row, column) alone, so that the same bits come out for any
    window, number of threads, instruction set and device.

    Parameters
    ----------
    rows, columns : int
        Shape of the window; columns are numbered below 2**32.
    kind : {"gaussian", "uniform", "sign"}
        N(0, 1); uniform on (0, 1]; or −1 and +1 with equal probability.
    seed : int, torch.Generator or None
        None draws a seed from torch's default generator.
    row_offset, column_offset : int
        Where the window begins in the (unbounded) matrix of the seed.
    dtype : torch.dtype, optional
        float32 or float64; torch's default dtype if None. The two have different entries for one
        seed, made from the same random words: take two seeds for independent ones.
    device : torch.device, optional
        The CPU if None.

    Returns
    -------
    Tensor, shape (rows, columns)

    Raises
    ------
    ValueError
        A negative size or offset, an unknown kind, a seed beyond 64 bits.
    TypeError
        A dtype other than float32 and float64, a number that is not an integer.

    Notes
    -----
    Philox4x32-10, one 128-bit counter for four rows of a column in float32 and two in float64;
    Gaussians by Box and Muller's transform, two (float32) to ten (float64) nanoseconds an entry and
    thread. Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC
    2011.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> whole = la.random_matrix(100, 8, seed=7)
    >>> torch.equal(la.random_matrix(3, 8, seed=7, row_offset=41), whole[41:44])
    True
    """
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"random_matrix: dtype must be float32 or float64, got {dtype}")
    numbers = (
        as_integer(value, "random_matrix", name)
        for value, name in (
            (rows, "rows"),
            (columns, "columns"),
            (row_offset, "row_offset"),
            (column_offset, "column_offset"),
        )
    )
    height, width, row0, column0 = numbers
    for value, name in ((row0, "row_offset"), (column0, "column_offset")):
        if value < 0:
            raise ValueError(f"random_matrix: {name} must be non-negative, got {value}")
    window: Tensor = torch.ops.fastlr.random_matrix(
        height,
        width,
        kind,
        as_seed(seed, "random_matrix"),
        row0,
        column0,
        dtype,
        torch.device("cpu" if device is None else device),
    )
    return window
