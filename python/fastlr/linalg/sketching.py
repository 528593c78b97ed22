"""Random sketches of a matrix."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import InitVar, dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastlr import _core
from fastlr.linalg._arguments import Seed, as_integer, as_seed, at_least
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
from fastlr.linalg._sources import is_scipy_sparse, open_block
from fastlr.linalg.leverage import leverage_scores
from fastlr.linalg.random import random_matrix

# Kinds that do not depend on the data, and all.
OBLIVIOUS_KINDS = ("gaussian", "rademacher", "sparse_sign", "countsketch", "srht", "uniform")
_KINDS = (*OBLIVIOUS_KINDS, "leverage")
# The column of the random matrix of a seed that decides which rows are drawn: no sketch that shares
# the seed has as many rows.
_DRAWS = 1 << 31


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
        - "leverage": rows of the identity drawn with replacement by `probabilities` p, row i times
          1/√(rows·pᵢ) [4]_.
    rows, cols : int
        The shape of S: `cols` is the length that is compressed to `rows`.
    seed : int, torch.Generator or None
    nonzeros : int
        Of a column of "sparse_sign", at most `rows`.
    probabilities : array or Tensor, shape (cols,)
        Of "leverage", and of no other kind: non-negative, their sum does not matter.
        `leverage_scores` of the matrix, or whatever else rows are to be drawn by. Only what is
        drawn is kept.

    Attributes
    ----------
    shape : tuple of int
        (rows, cols).

    Raises
    ------
    ValueError
        An unknown kind; `rows` or `cols` below 1; `nonzeros` not between 1 and `rows`; an "srht"
        with more rows than `cols`, padded to a power of two, has; `probabilities` that are
        missing, of another kind, of another length, negative, not finite or all zero.
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
    2^b rows, and no row is padded. "uniform" and "leverage" copy the rows that they draw and read
    no others. The same sums in the same order for any number of threads, but for "gaussian" and
    "rademacher", whose products are torch's.

    References
    ----------
    .. [1] J. Nelson, H. L. Nguyen, "OSNAP: Faster numerical linear algebra algorithms via sparser
       subspace embeddings", FOCS 2013.
    .. [2] K. L. Clarkson, D. P. Woodruff, "Low-rank approximation and regression in input sparsity
       time", STOC 2013.
    .. [3] J. A. Tropp, "Improved analysis of the subsampled randomized Hadamard transform",
       Advances in Adaptive Data Analysis 3 (2011).
    .. [4] P. Drineas, M. W. Mahoney, S. Muthukrishnan, "Sampling algorithms for l2 regression and
       applications", SODA 2006.

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
    probabilities: InitVar[Any] = None
    _samples: tuple[int, ...] = field(init=False, repr=False)
    _scales: tuple[float, ...] = field(init=False, repr=False)

    def __post_init__(self, probabilities: Any) -> None:
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
        samples, scales = self._drawn(probabilities)
        object.__setattr__(self, "_samples", samples)
        object.__setattr__(self, "_scales", scales)

    def _drawn(self, probabilities: Any) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Which rows are drawn by their probabilities, and what they are multiplied by."""
        if self.kind != "leverage":
            if probabilities is not None:
                raise ValueError(
                    f'SketchOperator: probabilities are for the kind "leverage", got {self.kind!r}'
                )
            return (), ()
        weights = _checked_probabilities(probabilities, self.cols)
        # Draw i is a function of the seed and i alone; uniform on (0, 1], never 0: the first sum
        # that reaches it belongs to a row that can be drawn.
        draws = random_matrix(
            self.rows, 1, kind="uniform", seed=self.seed, column_offset=_DRAWS, dtype=torch.float64
        )[:, 0]
        sums = weights.cumsum(0)
        samples = torch.searchsorted(sums, draws * sums[-1])
        scales = (sums[-1] / (self.rows * weights[samples])).sqrt()
        return tuple(samples.tolist()), tuple(scales.tolist())

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols)."""
        return self.rows, self.cols

    @as_written
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
            if self.kind == "leverage":
                return matrix.restore(self._sampled(matrix.data, first, _dense_rows))
            return matrix.restore(_core.sketch_sparse(matrix.data, *self._arguments(), first))
        adapted = adapt(A, "SketchOperator.apply", batched=True, complex_=True)
        self._check(adapted.tensor.shape[-2], first, "apply")
        return adapted.restore(_over_batch(adapted.tensor, lambda X: self._product(X, first)))

    @as_written
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
            _over_batch(adapted.tensor, lambda X: self._adjoint_product(X, first, wanted))
        )

    @as_written
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
        if self.kind == "leverage":
            return self._sampled(A, first, lambda matrix, rows: matrix.index_select(0, rows))
        found: Tensor = torch.ops.fastlr.sketch_apply(A, *self._arguments(), first)
        return found

    def _adjoint_product(self, Y: Tensor, first: int, count: int) -> Tensor:
        if self.kind != "leverage":
            found: Tensor = torch.ops.fastlr.sketch_adjoint(Y, *self._arguments(), first, count)
            return found
        by, rows, scales = self._drawn_from(first, count, Y)
        return Y.new_zeros(count, Y.shape[1]).index_add(0, rows, Y.index_select(0, by) * scales)

    def _sampled(self, A: Tensor, first: int, pick: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """The drawn rows that are among those of A, a block; zeros for the others."""
        by, rows, scales = self._drawn_from(first, A.shape[0], A)
        chosen = pick(A, rows) * scales
        return chosen.new_zeros(self.rows, A.shape[1]).index_copy(0, by, chosen)

    def _drawn_from(self, first: int, count: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Which rows of S draw one of the `count` rows from `first` on, which, and their scales."""
        samples = torch.tensor(self._samples, device=like.device) - first
        by = ((samples >= 0) & (samples < count)).nonzero()[:, 0]
        scales = torch.tensor(self._scales, dtype=torch.float64, device=like.device)
        return by, samples[by], scales[by, None].to(like.dtype)

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
        As of :class:`SketchOperator`. "leverage" draws by the `leverage_scores` of A (of each
        matrix of a batch), found with the same seed.
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
    One pass over A, and two more for `leverage_scores`; for the flops see :class:`SketchOperator`
    and there. A sketch of a matrix of zeros is zero, whatever is drawn. Source: Halko, Martinsson,
    Tropp, "Finding structure with randomness", SIAM Review 53 (2011), section 4; Martinsson, Tropp,
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
    number = as_seed(seed, "sketch")  # a generator is drawn from once
    if _is_sparse(A):
        turned = A if by_rows else A.t() if isinstance(A, Tensor) else A.T
        product = _operator(turned, kind, size, turned.shape[0], number, nonzeros).apply(turned)
        return product if by_rows else product.T
    source = None if isinstance(A, Tensor) else source_of(A, "sketch")
    if source is not None:
        if not by_rows:
            raise ValueError("sketch: axis must be 0 for data that is read by blocks of rows")
        return _sketch_blocks(A, source, size, kind, number, nonzeros)
    adapted = adapt(A, "sketch", batched=True, complex_=True)
    tensor = adapted.tensor if by_rows else adapted.tensor.mT
    m = tensor.shape[-2]
    if m == 0:
        SketchOperator("uniform" if kind == "leverage" else kind, size, size, number, nonzeros)
        empty = tensor.new_zeros((*tensor.shape[:-2], size, tensor.shape[-1]))
        return adapted.restore(empty if by_rows else empty.mT)
    if kind == "leverage" and tensor.dim() > 2:
        # The matrices have rows drawn by scores of their own.
        product = _each_by_its_own(tensor, size, number)
    else:
        product = _operator(tensor, kind, size, m, number, nonzeros).apply(tensor)
    return adapted.restore(product if by_rows else product.mT)


def _operator(A: Any, kind: str, size: int, m: int, seed: int, nonzeros: int) -> SketchOperator:
    """The sketch of this kind; the scores of A are found where rows are drawn by them."""
    if kind != "leverage":
        return SketchOperator(kind, size, m, seed, nonzeros)
    scores = torch.as_tensor(leverage_scores(A, seed=seed))
    # Of zeros no row counts more than another.
    return SketchOperator(
        kind, size, m, seed, probabilities=scores if scores.any() else torch.ones(m)
    )


def _each_by_its_own(A: Tensor, size: int, seed: int) -> Tensor:
    *batch, m, n = A.shape
    matrices = A.reshape(math.prod(batch), m, n)
    products = [_operator(each, "leverage", size, m, seed, 1).apply(each) for each in matrices]
    stacked = torch.stack(products) if products else A.new_empty(0, size, n)
    return stacked.reshape(*batch, size, n)


def _sketch_blocks(A: Any, source: Source, size: int, kind: str, seed: int, nonzeros: int) -> Any:
    """The sketch of what is read once, by blocks of rows."""
    rows = source.shape[0]
    if rows is None and kind in ("srht", "uniform", "leverage"):
        rows = count_rows(source)
    dtype, computed = computed_dtype(source.dtype, promoted(source), "sketch", source.name)
    # Of the other kinds no column depends on how many there are.
    cols = (1 << 62) if rows is None else max(rows, 1)
    operator = _operator(A, kind, size, cols, seed, nonzeros)
    total = torch.zeros(size, source.shape[1], dtype=computed, device=source.device)
    first = 0
    with leaving_a_thread(source), torch.no_grad():
        for block in tensors_of(source):
            total += operator._product(block.to(computed), first)
            first += block.shape[0]
    return restored(total, dtype, numpy=source.device is None)


def _checked_probabilities(given: Any, cols: int) -> Tensor:
    """Probabilities in double precision."""
    if given is None:
        raise ValueError('SketchOperator: the kind "leverage" needs probabilities, got None')
    weights = torch.as_tensor(given).detach().to("cpu", torch.float64)
    if weights.shape != (cols,):
        raise ValueError(
            f"SketchOperator: probabilities must have shape ({cols},), got {tuple(weights.shape)}"
        )
    wrong = (~torch.isfinite(weights) | (weights < 0)).nonzero()
    if len(wrong):
        index = int(wrong[0])
        raise ValueError(
            f"SketchOperator: probabilities must be finite and non-negative, got "
            f"{weights[index].item()} at index {index}"
        )
    if not bool(weights.any()):
        raise ValueError("SketchOperator: probabilities must not all be zero")
    return weights / weights.max()


def _dense_rows(A: Tensor, rows: Tensor) -> Tensor:
    """Some rows of a CSR matrix, in this order."""
    starts = A.crow_indices().to(torch.int64)
    counts = starts.diff()[rows]
    owners = torch.arange(len(rows), device=rows.device).repeat_interleave(counts)
    before = counts.cumsum(0) - counts
    places = torch.arange(len(owners), device=rows.device) + (starts[rows] - before)[owners]
    columns = A.col_indices().to(torch.int64)[places]
    values = A.values()[places]
    # Entries that are given twice are added up.
    return values.new_zeros(len(rows), A.shape[1]).index_put((owners, columns), values, True)


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
