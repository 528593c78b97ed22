"""From what a user calls a matrix to what the core multiplies by."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastlr import _core
from fastlr.linalg._arrays import adapt, as_tensor, computed_dtype, restored
from fastlr.linalg._blocks import Source, count_rows, operator_of, promoted, source_of
from fastlr.linalg.operators import LinearOperator


@dataclass(frozen=True)
class Matrix:
    """A dense tensor, perhaps a batch, or an operator of the core, and the way back."""

    data: Any
    numpy: bool
    dtype: torch.dtype
    reads: int = 0  # of it, before any algorithm begins

    def restore(self, result: Tensor, out: str | None = None) -> Any:
        """Give a result the dtype and the kind of the input, or the kind `out`."""
        return restored(result, self.dtype, numpy=self.numpy if out is None else out == "numpy")


def is_scipy_sparse(A: Any) -> bool:
    """Whether A is a matrix of SciPy, which can only come from a SciPy that is imported."""
    return "scipy.sparse" in sys.modules and bool(sys.modules["scipy.sparse"].issparse(A))


def can_be_read_again(A: Any) -> bool:
    """Whether A is no iterator, which loses what it has yielded."""
    return not isinstance(A, Iterator)


def open_matrix(A: Any, caller: str, name: str = "A", *, read_once: bool = False) -> Matrix:
    """Adapt any kind of matrix; with `read_once` its number of rows may not be known."""
    if isinstance(A, LinearOperator):
        return Matrix(_operator(A), False, A.dtype)
    if isinstance(A, Tensor) and A.layout != torch.strided:
        return _sparse(A, False, caller, name)
    if is_scipy_sparse(A):
        return _sparse(_from_scipy(A, caller, name), True, caller, name)
    if "scipy.sparse.linalg" in sys.modules and isinstance(
        A, sys.modules["scipy.sparse.linalg"].LinearOperator
    ):
        wrapped = LinearOperator.from_scipy(A)
        return Matrix(_operator(wrapped), True, wrapped.dtype)
    if not (read_once or can_be_read_again(A)):
        raise ValueError(
            f"{caller}: {name} is an iterator, which can be read once: "
            "only a one-read method takes it; "
            "give a list of blocks, or an object that can be iterated again"
        )
    source = None if isinstance(A, Tensor) else source_of(A, caller)
    if source is not None:
        return _blocks(source, read_once, caller)
    adapted = adapt(A, caller, name, batched=True, complex_=True)
    return Matrix(adapted.tensor, adapted.numpy, adapted.dtype)


def open_operator(A: Any, caller: str, name: str = "A") -> Matrix:
    """Adapt any kind of matrix, but no batch, to an operator of the core."""
    matrix = open_matrix(A, caller, name)
    if not isinstance(matrix.data, Tensor):
        return matrix
    if matrix.data.dim() != 2:
        raise ValueError(
            f"{caller}: {name} must be one matrix and no batch, "
            f"got shape {tuple(matrix.data.shape)}"
        )
    return replace(matrix, data=_core.operator_of_matrix(matrix.data.detach().resolve_conj()))


def open_block(A: Any, caller: str, name: str, *, axis: int) -> Matrix:
    """Adapt some rows (axis 0) or columns of a matrix, or a vector as one of them, to a tensor.

    It has no gradient; a sparse one has layout CSR.
    """
    if isinstance(A, Tensor) and A.layout != torch.strided:
        matrix = _sparse_tensor(A.detach(), False, caller, name)
        return replace(matrix, data=matrix.data.to_sparse_csr())
    if is_scipy_sparse(A):
        return _sparse_tensor(_from_scipy(A, caller, name), True, caller, name)
    array = A if isinstance(A, Tensor) else np.asarray(A)
    if array.ndim == 1:
        array = array[None, :] if axis == 0 else array[:, None]
    adapted = adapt(array, caller, name, complex_=True)
    return Matrix(adapted.tensor.detach().resolve_conj(), adapted.numpy, adapted.dtype)


def _operator(A: LinearOperator) -> _core.Operator:
    return _core.operator_of_functions(*A.shape, A.dtype, A.device, A.matmat, A.rmatmat)


def _blocks(source: Source, read_once: bool, caller: str) -> Matrix:
    dtype = computed_dtype(source.dtype, promoted(source), caller, source.name)[0]
    rows, reads = source.shape[0], 0
    if rows is None and not read_once:
        rows, reads = count_rows(source), 1
    return Matrix(operator_of(source, rows, caller), source.device is None, dtype, reads)


def _sparse(A: Tensor, numpy: bool, caller: str, name: str) -> Matrix:
    matrix = _sparse_tensor(A, numpy, caller, name)
    return replace(matrix, data=_core.operator_of_matrix(matrix.data))


def _sparse_tensor(A: Tensor, numpy: bool, caller: str, name: str = "A") -> Matrix:
    if A.layout not in (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc):
        raise TypeError(
            f"{caller}: a sparse {name} must be of layout COO, CSR or CSC, got {A.layout}"
        )
    if A.dim() != 2:
        raise ValueError(
            f"{caller}: a sparse {name} must have 2 dimensions, got shape {tuple(A.shape)}"
        )
    if A.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"{caller}: a sparse {name} has no gradient, got one that requires grad; "
            f"detach it, or give {name}.to_dense()"
        )
    dtype, computed = computed_dtype(A.dtype, torch.get_default_dtype(), caller, name)
    return Matrix(A.detach().to(computed), numpy, dtype)


def _from_scipy(A: Any, caller: str, name: str = "A") -> Tensor:
    """A CSR tensor that shares the memory of a CSR matrix; malformed indices are an error.

    SciPy's products leave the indices of a row unsorted: those are sorted in a copy.
    """
    if A.ndim != 2:
        raise ValueError(f"{caller}: a sparse {name} must have 2 dimensions, got shape {A.shape}")
    rows = A.tocsr()
    if not rows.has_canonical_format:
        rows = rows.copy()
        rows.sum_duplicates()
    values = as_tensor(rows.data)
    if not (values.is_floating_point() or values.is_complex()):
        values = values.to(torch.float64)
    return torch.sparse_csr_tensor(
        as_tensor(rows.indptr),
        as_tensor(rows.indices),
        values,
        size=rows.shape,
        check_invariants=True,
    )
