"""The leading eigenvector of a stream of rows, read once."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fastlr import _core
from fastlr.linalg._arguments import Seed, as_seed, at_least
from fastlr.linalg._arrays import adapt, computed_dtype, restored
from fastlr.linalg._autocast import as_written
from fastlr.linalg._blocks import promoted, source_of, tensors_of

Method = Literal["random_order", "oja"]


@dataclass(frozen=True)
class TopEigenvectorInfo:
    """How a leading eigenvector was obtained, and what was seen of its error.

    Attributes
    ----------
    method : str
    rows : int
        Read, once.
    singular_value : float
        √eigenvalue, in range where the eigenvalue is not.
    converged : bool
        For "oja", whether the vector has grown as much as the method asks for. For "random_order",
        whether all rows were kept that had to be.
    blocks : int
        Steps of the power iteration ("random_order").
    heavy_rows : int
        Those that had to be kept, and are ("random_order").
    residual : float
        ‖M·v − ρ·v‖ / ρ, with M·v and ρ estimated from the last block, which v had not seen;
        sampling noise included ("random_order"; NaN for "oja").
    std_error : float
        Of the eigenvalue, relative to it, from the spread over the rows of that block; means
        something for rows in random order only ("random_order"; NaN for "oja"). Both are NaN where
        there was one block only.
    growth, rate : float
        Logarithm of the growth of the vector, and its rate times ‖A‖_F² ("oja"; NaN for
        "random_order").

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> info = la.top_eigenvector_stream(torch.eye(3)[[0, 0, 1]], seed=0).info
    >>> info.method, info.rows, info.heavy_rows
    ('random_order', 3, 3)
    """

    method: str
    rows: int
    singular_value: float
    converged: bool
    blocks: int
    heavy_rows: int
    residual: float
    std_error: float
    growth: float
    rate: float


class _TopEigenvectorFields(NamedTuple):
    vector: Any
    eigenvalue: float


class TopEigenvector(_TopEigenvectorFields):
    """The leading eigenvector of AᴴA and an estimate of its eigenvalue.

    Attributes
    ----------
    vector : array, shape (n,)
        Of norm 1; its largest entry is real and positive.
    eigenvalue : float
        Infinite where that is out of range: see ``info.singular_value``.
    info : TopEigenvectorInfo
        Not part of the tuple.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> vector, eigenvalue = la.top_eigenvector_stream(torch.tensor([[3.0, 4.0]]), seed=0)
    >>> vector, round(eigenvalue, 4)
    (tensor([0.6000, 0.8000]), 25.0)
    """

    info: TopEigenvectorInfo

    def __new__(cls, vector: Any, eigenvalue: float, info: TopEigenvectorInfo) -> "TopEigenvector":
        self = super().__new__(cls, vector, eigenvalue)
        self.info = info
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (*self, self.info)


@as_written
def top_eigenvector_stream(
    rows: Any,
    *,
    method: Method = "random_order",
    heavy_rows: int = 256,
    seed: Seed = None,
) -> TopEigenvector:
    """Approximate the leading eigenvector of AᴴA while the rows of A go by once.

    Parameters
    ----------
    rows : array, Tensor, file or source of rows, shape (m, n)
        What `randomized_svd` reads in blocks of rows, iterators included. Never written to.
    method : {"random_order", "oja"}
        "random_order" for rows in uniformly random order (shuffled data, independent samples): the
        more accurate one. "oja" for any order.
    heavy_rows : int
        The most rows that "random_order" keeps apart, at least 1.
    seed : int, torch.Generator or None
        Of the first vector.

    Returns
    -------
    TopEigenvector
        ``vector`` of norm 1 with its largest entry real and positive, of the kind, dtype and device
        of the rows, an estimate of the ``eigenvalue`` and ``info``. Zero or no rows: a vector that
        is as good as any other, and an eigenvalue of 0.0.

    Raises
    ------
    ValueError
        No columns, an unknown `method`, `heavy_rows` below 1, an entry that is not finite (its
        index is named), blocks that do not fit each other.
    TypeError
        Sparse matrices and operators, whose rows do not go by; a number that is not an integer.

    Notes
    -----
    Let R = λ₁/λ₂ be the gap of AᴴA.

    "random_order" multiplies v by the blocks of the stream, each of which has the mass of all that
    went before: v ← BᴴB·v, some log₂(m) of them. Rows of squared norm ‖A‖_F²/(n·log₂n) and more, of
    which a block may have any share, are kept, the `heavy_rows` largest ones, and added to every
    product. For a constant R the correlation with the eigenvector is 1 − O(1/√R) or better, which
    no method has for adversarial orders in that memory. Up to `heavy_rows` rows are all kept, and
    the answer is exact. 4·n flops a row, n·(heavy_rows + 512) numbers.

    "oja" runs v ← v + η·aᴴ·(a·v) for all rates η = 2^j from 1/(16·F²) to 4·n·(2·log n + 4)/F²,
    F² = ‖A‖_F² of the rows so far, and takes the slowest of those whose vector has grown by
    2·log n + 4 (natural logarithms). That is right in any order for R = Ω(log² n), where one rate
    that is fixed beforehand is not. O(n·log n) flops a row and numbers. No part of it shows its
    error; the eigenvalue is from the growths of two rates, and rough.

    Rows are multiplied in float64. Not differentiable.

    Sources: Kacham, Woodruff, "Approximating the top eigenvector in random order streams", NeurIPS
    2024; Price, Xun, "Spectral guarantees for adversarial streaming PCA", FOCS 2024.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> A = la.random_matrix(4000, 50, seed=0)
    >>> A[:, 7] *= 3
    >>> vector, eigenvalue = la.top_eigenvector_stream(iter(A.split(100)), seed=0)
    >>> bool(vector[7] > 0.95), bool(abs(eigenvalue / 36000 - 1) < 0.2)
    (True, True)
    """
    caller = "top_eigenvector_stream"
    if method not in ("random_order", "oja"):
        raise ValueError(f'{caller}: method must be "random_order" or "oja", got {method!r}')
    most = at_least(heavy_rows, 1, caller, "heavy_rows")
    stream = _open(rows, caller)
    if stream.columns == 0:
        raise ValueError(f"{caller}: rows must have at least one column")
    vector, singular_value, std_error, residual, growth, rate, count, blocks, heavy, converged = (
        _core.top_eigenvector(
            stream.columns,
            stream.computed,
            stream.device,
            stream.read,
            most if method == "random_order" else None,
            as_seed(seed, caller),
        )
    )
    info = TopEigenvectorInfo(
        method=method,
        rows=count,
        singular_value=singular_value,
        converged=converged,
        blocks=blocks,
        heavy_rows=heavy,
        residual=residual,
        std_error=std_error,
        growth=growth,
        rate=rate,
    )
    result = restored(vector, stream.dtype, numpy=stream.numpy)
    return TopEigenvector(result, singular_value * singular_value, info)


@dataclass(frozen=True)
class _Stream:
    read: Any  # begins to yield tensors
    columns: int
    dtype: torch.dtype
    computed: torch.dtype
    device: torch.device
    numpy: bool


def _open(rows: Any, caller: str) -> _Stream:
    source = None if isinstance(rows, Tensor) else source_of(rows, caller)
    if source is None:
        adapted = adapt(rows, caller, "rows", complex_=True)
        tensor = adapted.tensor.detach().resolve_conj()
        return _Stream(
            lambda: iter([tensor]),
            tensor.shape[1],
            adapted.dtype,
            tensor.dtype,
            tensor.device,
            adapted.numpy,
        )
    dtype, computed = computed_dtype(source.dtype, promoted(source), caller, source.name)

    def read() -> Iterator[Tensor]:
        return (block.to(computed) for block in tensors_of(source))

    device = source.device or torch.device("cpu")
    return _Stream(read, source.shape[1], dtype, computed, device, source.device is None)
