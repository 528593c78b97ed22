"""From what a user calls a matrix with missing entries to the entries that the core reads."""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from fastlr import _core
from fastlr.linalg._arguments import at_least
from fastlr.linalg._arrays import as_tensor, as_weights, computed_dtype, restored, torch_dtype
from fastlr.linalg._sources import is_scipy_sparse, open_block

# offsets, columns, values, weights, width: what the core takes
ObservedRows: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor | None, int]

# Sizes and their products that the core's 64-bit numbers can count bytes of.
_MOST = 1 << 58


@dataclass(frozen=True)
class Observed:
    """Entries of a matrix, of a type that the core computes in, and the way back to the caller's.

    Duplicates are separate observations.
    """

    rows: Tensor
    cols: Tensor
    values: Tensor
    weights: Tensor | None
    shape: tuple[int, int]
    numpy: bool
    dtype: torch.dtype

    def restore(self, result: Tensor) -> Any:
        """Give a result the dtype and the kind of the values."""
        return restored(result, self.dtype, numpy=self.numpy)

    def by_rows(self) -> ObservedRows:
        """Sort the entries by their rows."""
        m, n = self.shape
        return _core.observed_rows(self.rows, self.cols, self.values, self.weights, m, n)


def open_observed(
    rows: Any,
    cols: Any,
    values: Any,
    shape: Any,
    caller: str,
    *,
    mask: Any = None,
    weights: Any = None,
) -> Observed:
    """Adapt triplets, or a matrix in the place of `rows`: sparse, or dense with a mask or NaN."""
    if (cols is None) != (values is None):
        missing = "cols" if cols is None else "values"
        raise TypeError(
            f"{caller}: rows, cols and values go together, or a matrix alone; got no {missing}"
        )
    if cols is None:
        return _of_matrix(rows, shape, mask, weights, caller)
    if mask is not None:
        raise ValueError(f"{caller}: mask goes with a dense matrix, and not with rows and cols")
    array, numpy, dtype = _numbers(values, caller)
    row, col = _indices(rows, caller, "rows"), _indices(cols, caller, "cols")
    if array.dim() != 1 or row.shape != array.shape or col.shape != array.shape:
        raise ValueError(
            f"{caller}: rows, cols and values must be vectors of one length, got shapes "
            f"{tuple(row.shape)}, {tuple(col.shape)} and {tuple(array.shape)}"
        )
    size = _shape(shape, row, col, caller)
    _check_range(row, size[0], caller, "rows")
    _check_range(col, size[1], caller, "cols")
    _check_finite(array, array.isfinite(), caller, "values")
    row, col = row.to(array.device), col.to(array.device)
    return Observed(row, col, array, _weights(weights, array, caller), size, numpy, dtype)


def _of_matrix(A: Any, shape: Any, mask: Any, weights: Any, caller: str) -> Observed:
    sparse = is_scipy_sparse(A) or (isinstance(A, Tensor) and A.layout != torch.strided)
    observed = _of_sparse(A, caller) if sparse else _of_dense(A, mask, weights, caller)
    if sparse and not (mask is None and weights is None):
        name = "weights" if mask is None else "mask"
        raise ValueError(
            f"{caller}: {name} goes with no sparse matrix: give its rows, cols and values"
        )
    if shape is not None and _pair(shape, caller) != observed.shape:
        raise ValueError(
            f"{caller}: shape must be that of the matrix, {observed.shape}, got {shape}"
        )
    return observed


def _of_sparse(A: Any, caller: str) -> Observed:
    matrix = open_block(A, caller, "rows (a matrix)", axis=0)
    csr = matrix.data
    if csr.values().is_complex():
        raise TypeError(f"{caller}: the matrix must be real, got {csr.values().dtype}")
    rows = torch.repeat_interleave(csr.crow_indices().to(torch.int64).diff())
    cols, values = csr.col_indices().to(torch.int64), csr.values()
    _check_finite(values, values.isfinite(), caller, "the matrix", torch.stack((rows, cols), 1))
    size = (int(csr.shape[0]), int(csr.shape[1]))
    return Observed(rows, cols, values, None, size, matrix.numpy, matrix.dtype)


def _of_dense(A: Any, mask: Any, weights: Any, caller: str) -> Observed:
    array, numpy, dtype = _numbers(A, caller)
    if array.dim() != 2:
        raise ValueError(
            f"{caller}: a dense matrix must have 2 dimensions, got shape {tuple(array.shape)}"
        )
    known = ~array.isnan() if mask is None else _mask(mask, array, caller)
    _check_finite(array, array.isfinite() | ~known, caller, "the matrix")
    rows, cols = torch.nonzero(known, as_tuple=True)
    if weights is not None:
        weights = weights if isinstance(weights, Tensor) else as_tensor(np.asarray(weights))
        if weights.shape != array.shape:
            raise ValueError(
                f"{caller}: weights must have the shape of the matrix, {tuple(array.shape)}, got "
                f"{tuple(weights.shape)}"
            )
        weights = weights.to(array.device)[known]
    values = array[known]
    size = (int(array.shape[0]), int(array.shape[1]))
    return Observed(rows, cols, values, _weights(weights, values, caller), size, numpy, dtype)


def _numbers(values: Any, caller: str) -> tuple[Tensor, bool, torch.dtype]:
    """Return real numbers in a type that the core computes in, their kind and their own type."""
    if isinstance(values, Tensor):
        tensor, numpy, promoted = values.detach(), False, torch.get_default_dtype()
    else:
        array = np.asarray(values)
        torch_dtype(array.dtype, caller, "values", type(values).__name__)
        tensor, numpy, promoted = as_tensor(array), True, torch.float64
    if tensor.is_complex():
        raise TypeError(f"{caller}: values must be real, got {tensor.dtype}")
    dtype, computed = computed_dtype(tensor.dtype, promoted, caller, "values")
    return tensor.to(computed), numpy, dtype


def _indices(index: Any, caller: str, name: str) -> Tensor:
    tensor = index.detach() if isinstance(index, Tensor) else None
    if tensor is None:
        array = np.asarray(index)
        if array.size == 0 and array.dtype.kind == "f":  # an empty list
            array = array.astype(np.int64)
        if array.dtype.kind not in "iu":
            raise TypeError(f"{caller}: {name} must be integers, got dtype {array.dtype}")
        if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
            raise ValueError(f"{caller}: {name} must fit 64 signed bits, got {array.max()}")
        tensor = as_tensor(array.astype(np.int64))
    if tensor.dtype == torch.bool or tensor.is_floating_point() or tensor.is_complex():
        raise TypeError(f"{caller}: {name} must be integers, got dtype {tensor.dtype}")
    return tensor.to(torch.int64)


def as_indices(index: Any, size: int | None, caller: str, name: str) -> Tensor:
    """Return integers as int64, below `size` where there is one, and none negative."""
    tensor = _indices(index, caller, name)
    _check_range(tensor, size, caller, name)
    return tensor


def _check_range(index: Tensor, size: int | None, caller: str, name: str) -> None:
    most = torch.iinfo(torch.int64).max if size is None else size - 1
    bad = torch.nonzero((index < 0) | (index > most))
    if len(bad):
        place = tuple(bad[0].tolist())
        raise ValueError(
            f"{caller}: {name} must be from 0 to {most}, got {int(index[place])} at index {place}"
        )


def _pair(shape: Any, caller: str) -> tuple[int, int]:
    if not isinstance(shape, (tuple, list, torch.Size)) or len(shape) != 2:
        raise TypeError(f"{caller}: shape must be two integers, got {shape!r}")
    m, n = (at_least(size, 0, caller, "shape") for size in shape)
    if max(m, n) > _MOST:
        raise ValueError(f"{caller}: shape must be at most {_MOST} a side, got {(m, n)}")
    return m, n


def _shape(shape: Any, rows: Tensor, cols: Tensor, caller: str) -> tuple[int, int]:
    if shape is not None:
        return _pair(shape, caller)
    return _pair([int(index.max()) + 1 if len(index) else 0 for index in (rows, cols)], caller)


def _mask(mask: Any, array: Tensor, caller: str) -> Tensor:
    known = mask if isinstance(mask, Tensor) else torch.from_numpy(np.asarray(mask))
    if known.dtype != torch.bool or known.shape != array.shape:
        raise ValueError(
            f"{caller}: mask must be booleans of shape {tuple(array.shape)}, True where an entry "
            f"is known, got {known.dtype} of shape {tuple(known.shape)}"
        )
    return known.to(array.device)


def _weights(weights: Any, values: Tensor, caller: str) -> Tensor | None:
    if weights is None:
        return None
    return as_weights(weights, len(values), caller).to(device=values.device, dtype=values.dtype)


def _check_finite(
    values: Tensor, good: Tensor, caller: str, name: str, places: Tensor | None = None
) -> None:
    bad = torch.nonzero(~good)
    if len(bad) == 0:
        return
    place = tuple(bad[0].tolist())
    value = values[place].item()
    shown = place if places is None else tuple(places[place].tolist())
    raise ValueError(f"{caller}: {name} must be finite, got {value:g} at index {shown}")


def check_rank(rank: Any, least: int, shape: tuple[int, int], caller: str) -> int:
    """Return a rank that factors of a matrix of this shape can have."""
    number = at_least(rank, least, caller, "rank")
    if number > min(shape):
        raise ValueError(f"{caller}: rank must be at most min(m, n) = {min(shape)}, got {number}")
    if max(shape) * max(number, 1) > _MOST:
        raise ValueError(f"{caller}: shape {shape} times rank {number} is more than memory")
    return number


def has_enough(observed: ObservedRows, rank: int) -> bool:
    """Whether there are as many observations as a matrix of this rank has degrees of freedom.

    That is in all, and in every row and every column of it.
    """
    offsets, cols, values, _, n = observed
    m = len(offsets) - 1
    if m == 0 or n == 0:
        return True
    in_rows, in_cols = offsets.diff(), torch.bincount(cols, minlength=n)
    least = min(int(in_rows.min()), int(in_cols.min()))
    return least >= rank and len(values) >= rank * (m + n - rank)
