"""Leverage scores: how much each row of a matrix counts for the space of its columns."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fastlr import _core
from fastlr.linalg._arguments import Seed, as_seed, at_least
from fastlr.linalg._arrays import adapt, computed_dtype, restored
from fastlr.linalg._autocast import as_written
from fastlr.linalg._blocks import (
    Source,
    count_rows,
    leaving_a_thread,
    promoted,
    source_of,
    tensors_of,
)
from fastlr.linalg._sources import can_be_read_again, is_scipy_sparse, open_block
from fastlr.linalg.random import random_matrix

_CALLER = "leverage_scores"

# Twice as many rows as columns would do to keep the space; eight keep every score within a factor
# of (1 ± √(1/8))² or so.
_ROWS_OF_SKETCH = 8
_NONZEROS = 8
# Entries that are multiplied at a time.
_BLOCK = 1 << 22
# Of a sparse matrix, whose rows are not cut, columns that are multiplied at a time.
_COLUMNS = 16


@as_written
def leverage_scores(A: Any, *, size: int | None = None, seed: Seed = None) -> Any:
    """Return the leverage score of each row of a matrix.

    The score of row i is ‖U[i]‖² for an orthonormal basis U of the range of A: between 0 and 1, 1
    where no other row has what row i has, and in sum the rank of A.

    Parameters
    ----------
    A : array, Tensor or sparse matrix, shape (..., m, n); or data larger than memory, (m, n)
        Real or complex; float16 and bfloat16 are computed in float32. Data larger than memory as in
        `sketch`, but no iterator: they are read twice. Never written to.
    size : int, optional
        Rows of the sketch, at least n; with `size` ≥ m the scores are exact. 8·n if None.
    seed : int, torch.Generator or None
        Of the sketch. Exact scores do not depend on it.

    Returns
    -------
    array or Tensor, shape (..., m)
        Real, of the kind, precision and device of A.

    Raises
    ------
    ValueError
        Not a matrix, a `size` below n and m, an iterator, an entry that is not finite.
    TypeError
        A `size` that is not an integer; A neither an array nor a matrix.

    See Also
    --------
    sketch : with ``kind="leverage"``, rows drawn by their scores.

    Notes
    -----
    With a sketch S A (sparse signs, eight in a column) and
    its SVD, scores are the squared row norms of A V Σ⁻¹ over the singular values that are not zero
    to rounding, so that dependent columns do not count twice. They are within (1 ± ε)^∓² of the
    exact ones, with a sketch that keeps norms of the range of A to 1 ± ε: ε ≈ √(n/size), 0.35 for
    the default. Where n exceeds k = 10.4·ln(200·m) the rows are multiplied by k Gaussian columns
    after V Σ⁻¹: another factor of 2 at most, for all rows, with probability 99 %. Exact scores are
    row norms of the Q of a QR; of data that are read by blocks, of A V Σ⁻¹ with the R of all rows,
    with errors of u·cond(A).

    Two passes over A (three over an iterable, whose rows are counted first) and 16·m·n +
    2·size·n² + 2·m·n·min(n, k) flops, entries that are zero in a sparse A left out; 4·m·n² flops
    for exact scores.

    Sources: Drineas, Magdon-Ismail, Mahoney, Woodruff, "Fast approximation of matrix coherence and
    statistical leverage", JMLR 13 (2012); Clarkson, Woodruff, "Low-rank approximation and
    regression in input sparsity time", STOC 2013. Not differentiable.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> A = torch.ones(1000, 2, dtype=torch.float64)
    >>> A[7, 1] = 5.0  # the only row in which the columns differ
    >>> scores = la.leverage_scores(A, size=1000)
    >>> int(scores.argmax()), round(scores[7].item(), 6), round(scores.sum().item(), 6)
    (7, 1.0, 2.0)
    """
    number = as_seed(seed, _CALLER)
    if isinstance(A, Tensor):
        A = A.detach()
    if (isinstance(A, Tensor) and A.layout != torch.strided) or is_scipy_sparse(A):
        matrix = open_block(A, _CALLER, "A", axis=0)
        return matrix.restore(_scores_of_sparse(matrix.data, size, number))
    if not can_be_read_again(A):
        raise ValueError(
            f"{_CALLER}: A is an iterator, which can be read once; two reads are needed"
        )
    source = None if isinstance(A, Tensor) else source_of(A, _CALLER)
    if source is not None:
        return _scores_of_blocks(source, size, number)
    adapted = adapt(A, _CALLER, batched=True, complex_=True)
    *batch, m, n = adapted.tensor.shape
    matrices = adapted.tensor.resolve_conj().reshape(math.prod(batch), m, n)
    scores = [_scores_of_dense(matrix, size, number) for matrix in matrices]
    found = torch.stack(scores) if scores else adapted.tensor.real.new_zeros(0, m)
    return adapted.restore(found.reshape(*batch, m))


def _scores_of_dense(A: Tensor, size: int | None, seed: int) -> Tensor:
    m, n = A.shape
    rows = _size(size, m, n)
    if rows >= m:
        _check_finite(A)
        return _exact(A)
    sketch = _sketched(A, rows, m, seed, 0)
    if not bool(torch.isfinite(sketch).all()):
        _check_finite(A)
    whitener = _whitener(sketch, m, seed)
    return torch.cat([_row_norms(block, whitener) for block in _in_blocks(A)])


def _scores_of_sparse(A: Tensor, size: int | None, seed: int) -> Tensor:
    m, n = A.shape
    rows = _size(size, m, n)
    _check_finite(A)
    if rows >= m:
        return _exact(A.to_dense())
    sketch = _core.sketch_sparse(A, *_sketch(rows, m, seed), 0)
    whitener = _whitener(sketch, m, seed)
    scores = A.values().real.new_zeros(m)
    for columns in torch.split(whitener, _COLUMNS, 1):
        scores += (A @ columns).abs().square().sum(1)
    return scores.clamp_(max=1)


def _scores_of_blocks(source: Source, size: int | None, seed: int) -> Any:
    """One read for the sketch, or for R, and another for the scores."""
    dtype, computed = computed_dtype(source.dtype, promoted(source), _CALLER, source.name)
    m = count_rows(source) if source.shape[0] is None else source.shape[0]
    rows = _size(size, m, source.shape[1])
    with leaving_a_thread(source), torch.no_grad():
        whitener = _whitener(_factor_of_blocks(source, rows, m, computed, seed), m, seed)
        scores = [
            _row_norms(part, whitener)
            for block in tensors_of(source)
            for part in _in_blocks(block.to(computed))
        ]
    return restored(torch.cat(scores), dtype, numpy=source.device is None)


def _factor_of_blocks(source: Source, rows: int, m: int, dtype: torch.dtype, seed: int) -> Tensor:
    """A matrix with the Gram matrix of the whole, or nearly: R, or a sketch."""
    exact, first = rows >= m, 0
    factor = torch.zeros(0 if exact else rows, source.shape[1], dtype=dtype, device=source.device)
    for block in tensors_of(source):
        tensor = block.to(dtype)
        _check_finite(tensor, first)
        if exact:
            factor = torch.linalg.qr(torch.cat([factor, tensor]), mode="r")[1]
        else:
            factor += _sketched(tensor, rows, m, seed, first)
        first += len(tensor)
    return factor


def _size(size: int | None, m: int, n: int) -> int:
    if size is None:
        return max(1, _ROWS_OF_SKETCH * n)
    # A sketch of fewer rows has not the rank of A; one as long as A is not needed.
    return at_least(size, max(1, min(m, n)), _CALLER, "size")


def _sketch(rows: int, m: int, seed: int) -> tuple[str, int, int, int, int]:
    """The arguments of a sketch."""
    return "sparse_sign", rows, m, seed, min(_NONZEROS, rows)


def _sketched(A: Tensor, rows: int, m: int, seed: int, first: int) -> Tensor:
    found: Tensor = torch.ops.fastlr.sketch_apply(A, *_sketch(rows, m, seed), first)
    return found


def _exact(A: Tensor) -> Tensor:
    """Row norms of the part of Q that the rank of R leaves."""
    Q, R = torch.linalg.qr(_near_one(A))
    U, S, _ = torch.linalg.svd(R, full_matrices=False)
    return _squared_norms(Q @ U[:, _counted(S, A.shape)]).clamp_(max=1)


def _whitener(factor: Tensor, m: int, seed: int) -> Tensor:
    """W for which the squared norms of the rows of A W are the scores."""
    scaled = _near_one(factor)
    _, S, Vh = torch.linalg.svd(torch.linalg.qr(scaled, mode="r")[1], full_matrices=False)
    kept = _counted(S, factor.shape)
    W: Tensor = (Vh[kept].mH / S[kept]) * (1 / _scale(factor))
    columns = math.ceil(10.4 * math.log(200 * max(m, 1)))
    if columns >= W.shape[1]:
        return W
    G = random_matrix(W.shape[1], columns, seed=seed, dtype=W.real.dtype, device=W.device)
    projected: Tensor = W @ (G / math.sqrt(columns)).to(W.dtype)
    return projected


def _counted(S: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Which singular values are not zero to rounding."""
    if S.numel() == 0:
        return S > 0
    return torch.gt(S, max(shape) * torch.finfo(S.dtype).eps * S[0])


def _scale(A: Tensor) -> float:
    """A power of two near the largest entry."""
    largest = float(A.abs().amax()) if A.numel() else 0.0
    return math.ldexp(1.0, math.frexp(largest)[1] - 1) if largest else 1.0


def _near_one(A: Tensor) -> Tensor:
    return A * (1 / _scale(A))


def _row_norms(A: Tensor, whitener: Tensor) -> Tensor:
    return _squared_norms(A @ whitener).clamp_(max=1)


def _squared_norms(A: Tensor) -> Tensor:
    return A.abs().square().sum(1)


def _in_blocks(A: Tensor) -> Iterator[Tensor]:
    yield from torch.split(A, max(1, _BLOCK // max(A.shape[1], 1)))


def _check_finite(A: Tensor, first: int = 0) -> None:
    """Name the first entry that is not finite; `first` is the number of the first row."""
    values = A if A.layout == torch.strided else A.values()
    finite = torch.isfinite(values)
    if bool(finite.all()):
        return
    index = finite.logical_not().nonzero()[0]
    value = values[tuple(index.tolist())].item()
    if A.layout == torch.strided:
        row, column = index.tolist()
    else:
        row = int(torch.searchsorted(A.crow_indices(), index[0], right=True)) - 1
        column = int(A.col_indices()[index[0]])
    raise ValueError(f"{_CALLER}: A must be finite, got {value} at index ({row + first}, {column})")
