"""Random sketches of a matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastlr import _core
from fastlr.linalg._arguments import Seed, as_integer, as_seed, at_least
from fastlr.linalg._arrays import adapt, computed_dtype, restored
from fastlr.linalg._blocks import (
    Source,
    count_rows,
    leaving_a_thread,
    promoted,
    source_of,
    tensors_of,
)
from fastlr.linalg._sources import is_scipy_sparse, open_block

_KINDS = ("gaussian", "rademacher", "sparse_sign", "countsketch", "srht", "uniform")


@dataclass(frozen=True)
class SketchOperator:
    """A random matrix S of few rows that keeps the geometry of what it is applied to.

    S is a function of its seed and is never stored: any columns of it can be made alone, so that
    blocks of rows of a matrix, or several machines, each sketch their own part, and the parts add
    up. E[SᵀS] is the identity.

    Parameters
    ----------
    kind : str
        - "gaussian": independent entries N(0, 1/rows).
        - "rademacher": independent entries ±1/√rows.
        - "sparse_sign": `nonzeros` entries ±1/√nonzeros in each column, one in each of as many
          parts of the rows [1]_.
        - "countsketch": one entry ±1 in each column [2]_.
        - "srht": distinct random rows of a Hadamard matrix whose columns have random signs,
          entries ±1/√rows [3]_.
        - "uniform": rows of the identity times √(cols/rows), drawn with replacement.
    rows, cols : int
        The shape of S: `cols` is the length that is compressed to `rows`.
    seed : int, torch.Generator or None
    nonzeros : int
        Of a column of "sparse_sign", at most `rows`.

    Attributes
    ----------
    shape : tuple of int
        (rows, cols).

    Raises
    ------
    ValueError
        An unknown kind; `rows` or `cols` below 1; `nonzeros` not between 1 and `rows`; an "srht"
        with more rows than `cols`, padded to a power of two, has.
    TypeError
        A number that is not an integer.

    See Also
    --------
    sketch : a sketch of a whole matrix of any kind.

    Notes
    -----
    Cost for an m × n block of rows, beside one read of it: 2·m·n·rows flops for "gaussian" and
    "rademacher", 2·m·n·nonzeros for "sparse_sign" (and CountSketch: one), m·n·(b + rows/2^b) for
    "srht" with b at most 10, found to make that least: the Hadamard transform is made of blocks of
    2^b rows, and no row is padded. The same sums in the same order for any number of threads, but
    for "gaussian" and "rademacher", whose products are torch's.

    References
    ----------
    .. [1] J. Nelson, H. L. Nguyen, "OSNAP: Faster numerical linear algebra algorithms via sparser
       subspace embeddings", FOCS 2013.
    .. [2] K. L. Clarkson, D. P. Woodruff, "Low-rank approximation and regression in input sparsity
       time", STOC 2013.
    .. [3] J. A. Tropp, "Improved analysis of the subsampled randomized Hadamard transform",
       Advances in Adaptive Data Analysis 3 (2011).

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> S = la.SketchOperator("sparse_sign", 50, 1000, seed=0)
    >>> A = torch.ones(1000, 3)
    >>> (S @ A).shape, S.adjoint(S @ A).shape
    (torch.Size([50, 3]), torch.Size([1000, 3]))
    >>> parts = S.apply(A[:300]) + S.apply(A[300:], first=300)
    >>> bool((parts - S @ A).abs().max() < 1e-4)
    True
    """

    kind: str
    rows: int
    cols: int
    seed: Seed = None
    nonzeros: int = 8

    def __post_init__(self) -> None:
        caller = "SketchOperator"
        if self.kind not in _KINDS:
            raise ValueError(
                f"{caller}: kind must be one of {', '.join(_KINDS)}, got {self.kind!r}"
            )
        object.__setattr__(self, "rows", at_least(self.rows, 1, caller, "rows"))
        object.__setattr__(self, "cols", at_least(self.cols, 1, caller, "cols"))
        object.__setattr__(self, "seed", as_seed(self.seed, caller))
        nonzeros = (
            1 if self.kind == "countsketch" else as_integer(self.nonzeros, caller, "nonzeros")
        )
        object.__setattr__(self, "nonzeros", nonzeros)
        if self.kind == "sparse_sign" and not 1 <= nonzeros <= self.rows:
            raise ValueError(
                f"{caller}: nonzeros must be between 1 and rows = {self.rows}, got {nonzeros}"
            )
        padded = 1 << (self.cols - 1).bit_length()
        if self.kind == "srht" and self.rows > padded:
            raise ValueError(
                f"{caller}: rows must be at most {padded}, cols padded to a power of two, for an "
                f"srht, got {self.rows}"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols)."""
        return self.rows, self.cols

    def apply(self, A: Any, *, first: int = 0) -> Any:
        """Return S[:, first : first + m] A.

        Parameters
        ----------
        A : array or Tensor, shape (..., m, n); or sparse, (m, n)
            Real or complex; float16 and bfloat16 are computed in float32. Sparse: a torch tensor
            or a SciPy matrix. Never written to.
        first : int
            The first of its rows, in the matrix of which it is a block.

        Returns
        -------
        array or Tensor, shape (..., rows, n)
            Dense, of the kind, dtype and device of A. Differentiable with respect to a dense A.

        Raises
        ------
        ValueError
            The rows are not among `cols`.
        """
        first = self._first(first, "apply")
        if _is_sparse(A):
            matrix = open_block(A, "SketchOperator.apply", "A", axis=0)
            self._check(matrix.data.shape[0], first, "apply")
            return matrix.restore(_core.sketch_sparse(matrix.data, *self._arguments(), first))
        adapted = adapt(A, "SketchOperator.apply", batched=True, complex_=True)
        self._check(adapted.tensor.shape[-2], first, "apply")
        return adapted.restore(_over_batch(adapted.tensor, lambda X: self._product(X, first)))

    def adjoint(self, Y: Any, *, first: int = 0, count: int | None = None) -> Any:
        """Return S[:, first : first + count]ᵀ Y.

        Parameters
        ----------
        Y : array or Tensor, shape (..., rows, n)
        first, count : int
            Which of the `cols` rows of the result; by default all.

        Returns
        -------
        array or Tensor, shape (..., count, n)

        Raises
        ------
        ValueError
            Y has another number of rows, or the window is not among `cols`.
        """
        first = self._first(first, "adjoint")
        wanted = self.cols - first if count is None else at_least(count, 0, "adjoint", "count")
        self._check(wanted, first, "adjoint")
        adapted = adapt(Y, "SketchOperator.adjoint", "Y", batched=True, complex_=True)
        if adapted.tensor.shape[-2] != self.rows:
            raise ValueError(
                f"SketchOperator.adjoint: Y must have {self.rows} rows, got shape "
                f"{tuple(adapted.tensor.shape)}"
            )
        return adapted.restore(
            _over_batch(
                adapted.tensor,
                lambda X: torch.ops.fastlr.sketch_adjoint(X, *self._arguments(), first, wanted),
            )
        )

    def __matmul__(self, A: Any) -> Any:
        return self.apply(A)

    def rows_of(self, start: int, stop: int, *, dtype: torch.dtype | None = None) -> Tensor:
        """Return rows `start` to `stop` of S as a dense tensor.

        Raises
        ------
        ValueError
            The rows are not among those of S.
        """
        if not 0 <= start <= stop <= self.rows:
            raise ValueError(
                f"SketchOperator.rows_of: start and stop must lie in order between 0 and "
                f"{self.rows}, got {start} and {stop}"
            )
        chosen = torch.zeros(self.rows, stop - start, dtype=dtype or torch.get_default_dtype())
        chosen[torch.arange(start, stop), torch.arange(stop - start)] = 1
        dense: Tensor = self.adjoint(chosen).mT.contiguous()
        return dense

    def to_dense(self, *, dtype: torch.dtype | None = None) -> Tensor:
        """Return S as a dense tensor, shape (rows, cols)."""
        return self.rows_of(0, self.rows, dtype=dtype)

    def _arguments(self) -> tuple[str, int, int, Any, int]:
        return self.kind, self.rows, self.cols, self.seed, self.nonzeros

    def _product(self, A: Tensor, first: int) -> Tensor:
        found: Tensor = torch.ops.fastlr.sketch_apply(A, *self._arguments(), first)
        return found

    def _first(self, first: int, method: str) -> int:
        return at_least(first, 0, f"SketchOperator.{method}", "first")

    def _check(self, rows: int, first: int, method: str) -> None:
        if first + rows > self.cols:
            raise ValueError(
                f"SketchOperator.{method}: rows {first} to {first + rows} must be among the "
                f"{self.cols} that the sketch compresses"
            )


def sketch(
    A: Any,
    size: int,
    *,
    kind: str = "gaussian",
    axis: int = 0,
    seed: Seed = None,
    nonzeros: int = 8,
) -> Any:
    """Compress one axis of a matrix to `size` random combinations of its rows or columns.

    Returns S A (``axis=0``, combinations of rows) or A Sᵀ (``axis=1``, combinations of columns)
    with the :class:`SketchOperator` S of this kind and seed: norms and inner products are kept in
    expectation. S is made where it is needed and never stored.

    Parameters
    ----------
    A : array, Tensor or sparse matrix, shape (..., m, n); or data larger than memory, (m, n)
        float16 and bfloat16 are computed in float32. With ``axis=0`` also whatever can be read by
        blocks of rows: a path of a ``.npy`` or ``.safetensors`` file or a directory of them, a
        memmap, an HDF5 or zarr dataset, an iterable of blocks (only "gaussian", "rademacher",
        "sparse_sign" and "countsketch" of an iterator, whose rows are not known before). Never
        written to.
    size : int
        Length of the compressed axis.
    kind : str
        As of :class:`SketchOperator`.
    axis : {0, 1}
        The axis of A that is compressed; −1 and −2 count from the end.
    seed : int, torch.Generator or None
        "gaussian" is ``random_matrix(A.shape[axis], size, seed=seed).T / sqrt(size)`` for the same
        seed.
    nonzeros : int
        Of a column of "sparse_sign".

    Returns
    -------
    array or Tensor, shape (..., size, n) or (..., m, size)
        Of the kind, dtype and device of A. Differentiable with respect to a dense A.

    Raises
    ------
    ValueError
        Not a matrix, a size below 1 or beyond what the kind admits, an unknown kind or axis.
    TypeError
        A size that is not an integer.

    Notes
    -----
    One pass over A; for the flops see :class:`SketchOperator`. Source: Halko, Martinsson, Tropp,
    "Finding structure with randomness", SIAM Review 53 (2011), section 4; Martinsson, Tropp,
    "Randomized numerical linear algebra: Foundations and algorithms", Acta Numerica 29 (2020),
    section 9.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> A = torch.ones(1000, 3)
    >>> la.sketch(A, 50, seed=0).shape, la.sketch(A, 50, axis=1, seed=0).shape
    (torch.Size([50, 3]), torch.Size([1000, 50]))
    >>> la.sketch(A, 50, kind="sparse_sign", seed=0).shape
    torch.Size([50, 3])
    """
    if axis not in (0, 1, -1, -2):
        raise ValueError(f"sketch: axis must be 0 or 1, got {axis}")
    size = at_least(size, 1, "sketch", "size")
    by_rows = axis in (0, -2)
    if _is_sparse(A):
        operator = SketchOperator(kind, size, A.shape[axis], seed, nonzeros)
        if by_rows:
            return operator.apply(A)
        return operator.apply(A.T if not isinstance(A, Tensor) else A.t()).T
    source = None if isinstance(A, Tensor) else source_of(A, "sketch")
    if source is not None:
        if not by_rows:
            raise ValueError("sketch: axis must be 0 for data that is read by blocks of rows")
        return _sketch_blocks(source, size, kind, seed, nonzeros)
    adapted = adapt(A, "sketch", batched=True, complex_=True)
    tensor = adapted.tensor if by_rows else adapted.tensor.mT
    if tensor.shape[-2] == 0:
        SketchOperator(kind, size, size, seed, nonzeros)  # its checks
        empty = tensor.new_zeros((*tensor.shape[:-2], size, tensor.shape[-1]))
        return adapted.restore(empty if by_rows else empty.mT)
    operator = SketchOperator(kind, size, tensor.shape[-2], seed, nonzeros)
    product = operator.apply(tensor)
    return adapted.restore(product if by_rows else product.mT)


def _sketch_blocks(source: Source, size: int, kind: str, seed: Seed, nonzeros: int) -> Any:
    """The sketch of what is read once, by blocks of rows."""
    rows = source.shape[0]
    if rows is None and kind in ("srht", "uniform"):
        rows = count_rows(source)
    dtype, computed = computed_dtype(source.dtype, promoted(source), "sketch", source.name)
    # Of the other kinds no column depends on how many there are.
    operator = SketchOperator(
        kind, size, (1 << 62) if rows is None else max(rows, 1), seed, nonzeros
    )
    total = torch.zeros(size, source.shape[1], dtype=computed, device=source.device)
    first = 0
    with leaving_a_thread(source), torch.no_grad():
        for block in tensors_of(source):
            total += operator._product(block.to(computed), first)
            first += block.shape[0]
    return restored(total, dtype, numpy=source.device is None)


def _over_batch(A: Tensor, product: Any) -> Tensor:
    """A product with the rows of every matrix of a batch: with all of their columns at once."""
    if A.dim() == 2:
        found: Tensor = product(A)
        return found
    batch, (rows, columns) = A.shape[:-2], A.shape[-2:]
    beside = A.movedim(-2, 0).reshape(rows, -1)
    result: Tensor = product(beside).reshape(-1, *batch, columns).movedim(0, -2)
    return result


def _is_sparse(A: Any) -> bool:
    return (isinstance(A, Tensor) and A.layout != torch.strided) or is_scipy_sparse(A)
