"""Truncated SVD of a stream of rows: one pass, and a state that does not grow with their number."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from fastlr import _core
from fastlr.linalg._arguments import Seed, as_out, as_real, as_seed, at_least
from fastlr.linalg._arrays import computed_dtype, restored
from fastlr.linalg._autocast import as_written
from fastlr.linalg._blocks import leaving_a_thread, promoted, source_of, tensors_of
from fastlr.linalg._sources import is_scipy_sparse, open_block
from fastlr.linalg._state import State
from fastlr.linalg.results import ErrorInfo

StreamingMethod: TypeAlias = Literal["one_pass", "frequent_directions"]

# Up to so many columns AᴴA itself is kept: 8 MB, and at most a few times the flops of a sketch.
_EXACT_COLUMNS = 1024


@dataclass(frozen=True)
class StreamingSVDInfo(ErrorInfo):
    """`ErrorInfo` of the rows seen so far: `error` is an upper bound of ‖A − A·Vhᴴ·Vh‖_F.

    Attributes
    ----------
    spectral_error : float
        The same for the spectral norm.
    n_seen : int
        Rows of A.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> la.streaming_svd(torch.eye(50), 3).info.n_seen
    50
    """

    spectral_error: float
    n_seen: int


class _StreamingSVDFields(NamedTuple):
    S: Any
    Vh: Any


class StreamingSVDResult(_StreamingSVDFields):
    """The leading singular values and right singular vectors of a stream of rows.

    The left ones are as long as the stream; ``rows @ Vh.mH / S`` gives them for any rows.

    Attributes
    ----------
    S : array, shape (rank,)
        Singular values, descending, real.
    Vh : array, shape (rank, n_cols)
        Orthonormal rows; the largest entry of each is real and positive.
    info : StreamingSVDInfo
        Not part of the tuple.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> S, Vh = la.streaming_svd(torch.eye(50), 3)
    >>> S, Vh.shape
    (tensor([1., 1., 1.]), torch.Size([3, 50]))
    """

    info: StreamingSVDInfo

    def __new__(cls, S: Any, Vh: Any, info: StreamingSVDInfo) -> "StreamingSVDResult":
        self = super().__new__(cls, S, Vh)
        self.info = info
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (*self, self.info)


class StreamingSVD(State):
    """Truncated SVD of a matrix A whose rows arrive in blocks, in memory that does not grow.

    Parameters
    ----------
    rank : int
        Singular values and vectors that `result` returns.
    n_cols : int, optional
        Columns of A; by default those of the first block.
    method : {"one_pass", "frequent_directions"}
        "one_pass": sums over the rows that give the projection of A on the range of A·Ω, Ω Gaussian
        with ``rank + oversample`` columns, or AᴴA itself where that is as wide as A. They do not
        depend on the order of the rows or on how they are split, but for rounding, and the bounds
        hold with probability. "frequent_directions": deterministic bounds; the state depends on
        the order.
    oversample : int, optional
        Width of the sketch beyond `rank`. By default ``rank + 10``, and with "one_pass" as many as
        A has columns where those are at most 1024, or at most four times the width that follows:
        the result is then that of AᴴA, to rounding.
    decay : float
        In (0, 1]: every row multiplies what came before it by this, so that row i of N has the
        weight ``decay**(N - 1 - i)``. Independent of the split into blocks.
    seed : int, torch.Generator or None
        Of Ω. States that are to be merged need the same one.

    Attributes
    ----------
    n_seen : int
        Rows so far.
    error_bound : float
        See there.

    Raises
    ------
    ValueError, TypeError
        An argument out of range or of the wrong type.

    Notes
    -----
    With w = rank + oversample, "one_pass" keeps w·n numbers and takes 4·n·w flops a row (n² of both
    where w = n_cols); "frequent_directions" keeps 2·w·n and takes some 12·n·w. Both sum in double
    precision. Values below about √u·S[0] are lost in rounding, as they are in every method that
    works with AᴴA: ``error`` and ``error_bound`` include that.

    The dtype, the device and the kind (NumPy or torch) are those of the first block. The state can
    be pickled, copied, saved and moved, see `state_dict`, `save` and `to`.

    Sources: J. A. Tropp, A. Yurtsever, M. Udell, V. Cevher, "Streaming low-rank matrix
    approximation with an application to scientific simulation", SISC 41 (2019), for the model and
    the error estimate; the projection is that of Halko, Martinsson, Tropp, SIAM Review 53 (2011),
    from sums over rows. M. Ghashami, E. Liberty, J. M. Phillips, D. P. Woodruff, "Frequent
    directions: simple and deterministic matrix sketching", SIAM J. Comput. 45 (2016).

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> A = la.random_matrix(1000, 3, seed=0) @ la.random_matrix(3, 80, seed=1)
    >>> stream = la.StreamingSVD(3, seed=0)
    >>> for block in A.split(100):
    ...     stream.update(block)
    >>> S, Vh = result = stream.result()
    >>> Vh.shape, stream.n_seen, bool(torch.dist(A, A @ Vh.T @ Vh) <= result.info.error)
    (torch.Size([3, 80]), 1000, True)
    """

    _FIELDS: ClassVar[tuple[str, ...]] = (
        "rank",
        "n_cols",
        "method",
        "oversample",
        "decay",
        "seed",
        "n_seen",
        "dtype",
        "numpy",
        "sketch",
    )

    def __init__(
        self,
        rank: int,
        n_cols: int | None = None,
        *,
        method: StreamingMethod = "one_pass",
        oversample: int | None = None,
        decay: float = 1.0,
        seed: Seed = None,
    ) -> None:
        caller = "StreamingSVD"
        self._n_cols = None if n_cols is None else at_least(n_cols, 1, caller, "n_cols")
        self._rank = at_least(rank, 1, caller, "rank")
        if self._n_cols is not None:
            self._check_columns(self._n_cols, caller)
        self._oversample = None
        if oversample is not None:
            self._oversample = at_least(oversample, 0, caller, "oversample")
        self._decay = as_real(decay, caller, "decay")
        self._method = method
        if not 0 < self._decay <= 1:
            raise ValueError(f"{caller}: decay must be in (0, 1], got {decay}")
        if method not in ("one_pass", "frequent_directions"):
            raise ValueError(
                f"{caller}: method must be 'one_pass' or 'frequent_directions', got {method!r}"
            )
        self._seed = as_seed(seed, caller)
        self._n_seen = 0
        self._dtype: torch.dtype | None = None
        self._numpy = False
        # What the core keeps; None before the first block.
        self._sketch: tuple[Any, ...] | None = None

    @property
    def n_seen(self) -> int:
        """The number of rows so far, those of merged states included."""
        return self._n_seen

    @property
    def n_cols(self) -> int | None:
        """The number of columns; None where no block has told it yet."""
        return self._n_cols

    @property
    def rank(self) -> int:
        """The size of the result."""
        return self._rank

    @property
    def error_bound(self) -> float:
        """Upper bound of ‖AᴴA − BᴴB‖₂, B the matrix that the state stands for.

        Every ``S[i]**2`` of the result is within it of the squared singular value of A. For
        "frequent_directions" it always holds, and is at most ‖A − A_k‖_F² / (w + 1 − k) for every
        k ≤ w = rank + oversample, but for rounding; for "one_pass" it is measured and holds with
        probability 0.98, always where ``info.failure_probability`` is 0. 0.0 before the first row.
        """
        return 0.0 if self._n_seen == 0 else self._svd()[-1]

    @as_written
    def update(self, rows: Any) -> None:
        """Take in a block of rows.

        Parameters
        ----------
        rows : array, Tensor or sparse matrix, shape (b, n_cols) or (n_cols,)
            Any height, 0 included. Of the dtype and kind of the first block. Never written to.

        Raises
        ------
        ValueError
            Another number of columns; an entry that is not finite, with its index, counted from the
            first row of the stream. The state is then what it was.
        TypeError
            Another dtype or device.
        """
        caller = "StreamingSVD.update"
        block = open_block(rows, caller, "rows", axis=0)
        data = block.data
        height, columns = data.shape
        if self._n_cols is not None and columns != self._n_cols:
            raise ValueError(
                f"{caller}: rows must have {self._n_cols} columns as those before, got {columns}"
            )
        self._check_columns(columns, caller)
        if self._sketch is not None:
            for name, before, now in (
                ("dtype", self._dtype, block.dtype),
                ("device", self._sketch[0].device, data.device),
            ):
                if before != now:
                    raise TypeError(
                        f"{caller}: rows must have the {name} of those before, {before}, got {now}"
                    )
        sketch = self._sketch or self._empty(columns, data)
        if height:
            sketch = self._appended(sketch, data, caller)
        self._n_cols, self._sketch = columns, sketch
        if self._dtype is None:
            self._dtype, self._numpy = block.dtype, block.numpy
        self._n_seen += height

    @as_written
    def merge(self, other: "StreamingSVD") -> None:
        """Take in the rows of another state, as if they came after the rows of this one.

        Parameters
        ----------
        other : StreamingSVD
            Made with the same arguments and seed. Not changed.

        Raises
        ------
        ValueError
            Another rank, width, method, decay, seed, number of columns or dtype.
        TypeError
            No StreamingSVD.
        """
        caller = "StreamingSVD.merge"
        if not isinstance(other, StreamingSVD):
            raise TypeError(f"{caller}: other must be a StreamingSVD, got {type(other).__name__}")
        settings = ["rank", "oversample", "method", "decay", "seed"]
        if other._sketch is not None and self._sketch is not None:
            settings += ["n_cols", "dtype"]
        for name in settings:
            mine, others = getattr(self, "_" + name), getattr(other, "_" + name)
            if mine != others:
                raise ValueError(f"{caller}: other must have {name} {mine}, got {others}")
        if other._sketch is None:
            return
        if self._sketch is None:
            if self._n_cols not in (None, other._n_cols):
                raise ValueError(
                    f"{caller}: other must have n_cols {self._n_cols}, got {other._n_cols}"
                )
            self.load_state_dict(other.state_dict())
            return
        weight = self._decay**other._n_seen
        if self._method == "one_pass":
            self._sketch = _core.sketches_together(self._sketch, weight, other._sketch)
        else:
            self._sketch = _core.merge_frequent_directions(self._sketch, weight, other._sketch)
        self._n_seen += other._n_seen

    @as_written
    def result(self, *, out: Literal["torch", "numpy"] | None = None) -> StreamingSVDResult:
        """Return the truncated SVD of the rows so far; the state goes on from where it was.

        Parameters
        ----------
        out : {"torch", "numpy"}, optional
            Kind of the arrays; by default that of the first block.

        Returns
        -------
        StreamingSVDResult
            ``S, Vh`` and ``.info``.

        Raises
        ------
        ValueError
            No block yet.
        """
        kind = as_out(out, "StreamingSVD.result")
        S, Vh, estimate, upper, spectral, failure, _ = self._svd()
        numpy = self._numpy if kind is None else kind == "numpy"
        dtype = self._dtype
        assert dtype is not None
        return StreamingSVDResult(
            restored(S, dtype, numpy=numpy),
            restored(Vh, dtype, numpy=numpy),
            StreamingSVDInfo(
                method="one pass" if self._method == "one_pass" else "frequent directions",
                passes=1,
                error=upper,
                error_estimate=estimate,
                failure_probability=failure,
                spectral_error=spectral,
                n_seen=self._n_seen,
            ),
        )

    def _svd(self) -> tuple[Tensor, Tensor, float, float, float, float, float]:
        if self._sketch is None or self._dtype is None:
            raise ValueError("StreamingSVD.result: no block of rows has come yet")
        state = self._sketch
        computed = computed_dtype(self._dtype, self._dtype, "StreamingSVD", "rows")[1]
        if self._method == "one_pass":
            return _core.one_pass_svd(state, self._rank, self._seed, self._n_seen, computed)
        return _core.frequent_directions_svd(state, self._rank, computed)

    def _check_columns(self, columns: int, caller: str) -> None:
        if self._rank > columns:
            raise ValueError(f"{caller}: rank must be at most n_cols = {columns}, got {self._rank}")

    def _width(self, columns: int) -> int:
        extra = self._rank + 10 if self._oversample is None else self._oversample
        width = min(self._rank + extra, columns)
        exact = self._method == "one_pass" and self._oversample is None
        return columns if exact and columns <= max(_EXACT_COLUMNS, 4 * width) else width

    def _empty(self, columns: int, like: Tensor) -> tuple[Any, ...]:
        make = _core.empty_sketch if self._method == "one_pass" else _core.empty_frequent_directions
        return make(columns, self._width(columns), like.dtype, like.device)

    def _appended(self, state: tuple[Any, ...], rows: Tensor, caller: str) -> tuple[Any, ...]:
        height, columns = rows.shape
        weights = None
        if self._decay < 1:
            exponents = torch.arange(height - 1, -1, -1, dtype=torch.float64, device=rows.device)
            weights = (self._decay**exponents).to(rows.dtype.to_real())
        before = self._decay**height
        if self._method == "frequent_directions":
            return _core.append_frequent_directions(
                state, before, rows, weights, self._n_seen, caller
            )
        sketch = _core.one_pass_sketch(
            rows, weights, self._n_seen, self._width(columns), self._seed, caller
        )
        return _core.sketches_together(state, before, sketch)


@as_written
def streaming_svd(
    source: Any,
    rank: int,
    *,
    method: StreamingMethod = "one_pass",
    oversample: int | None = None,
    decay: float = 1.0,
    seed: Seed = None,
    progress: Callable[[int, int | None], object] | None = None,
    out: Literal["torch", "numpy"] | None = None,
) -> StreamingSVDResult:
    """Compute a truncated SVD from one read of the rows, in memory independent of their number.

    Parameters
    ----------
    source : array, Tensor, sparse matrix, path, or iterable of them, shape (m, n)
        What `randomized_svd` reads in blocks: memmaps, `.npy` and `.safetensors` files, HDF5 and
        zarr datasets, lists of arrays or paths (shards, one below the other), a directory of such
        files, in the order of their names, iterators of blocks. The next block is read while one is
        multiplied, by a thread for which torch's pool goes without one meanwhile.
    rank, method, oversample, decay, seed
        Those of `StreamingSVD`.
    progress : callable, optional
        Called after every block as ``progress(rows_done, rows_in_all)``; the latter is None where
        it shows only at the end.
    out : {"torch", "numpy"}, optional
        Kind of the arrays; by default that of the source.

    Returns
    -------
    StreamingSVDResult
        ``S, Vh`` and ``.info``. For the left vectors, too, `randomized_svd` with
        ``method="single_pass"`` or with more than one read.

    Raises
    ------
    ValueError, TypeError, OSError
        As `StreamingSVD.update` and the reading of files do.

    Notes
    -----
    One pass; see `StreamingSVD` for the flops and the sources.

    Examples
    --------
    >>> import numpy as np, fastlr.linalg as la
    >>> blocks = (np.full((100, 50), float(i)) for i in range(4))
    >>> seen = []
    >>> S, Vh = la.streaming_svd(blocks, 2, progress=lambda done, total: seen.append(done))
    >>> seen
    [100, 200, 300, 400]
    >>> round(float(S[0]), 2), float(S[1])
    (264.58, 0.0)
    """
    caller = "streaming_svd"
    stream = StreamingSVD(rank, method=method, oversample=oversample, decay=decay, seed=seed)
    kind = as_out(out, caller)
    in_memory = isinstance(source, Tensor) or is_scipy_sparse(source)
    read = None if in_memory else source_of(source, caller)
    if read is None:
        stream.update(source)
        if progress is not None:
            progress(stream.n_seen, stream.n_seen)
        return stream.result(out=kind)
    if kind is None:
        kind = "numpy" if read.device is None else "torch"
    with leaving_a_thread(read):
        for block in tensors_of(read):
            is_exact = not (block.is_floating_point() or block.is_complex())
            stream.update(block.to(promoted(read)) if is_exact else block)
            if progress is not None:
                progress(stream.n_seen, read.shape[0])
    return stream.result(out=kind)
