"""Named tuples that unpack as usual and carry `.info`."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch


class ConvergenceWarning(UserWarning):
    """A tolerance was not met: ``info.converged`` is False, and ``info.error`` says how far it is.

    Examples
    --------
    >>> import warnings, torch, fastlr.linalg as la
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("error", la.ConvergenceWarning)
    ...     S = la.randomized_svd(torch.eye(50), tol=0.5, seed=0).S
    >>> len(S)
    38
    """


@dataclass(frozen=True)
class ErrorInfo:
    """How a result was obtained and how far it may be from A, in the Frobenius norm.

    Attributes
    ----------
    method : str
        The algorithm that ran.
    passes : int
        Products with A or its transpose, and scans of it.
    error : float
        Upper estimate of ‖A − approximation‖_F; it holds with probability
        ``1 - failure_probability``.
    error_estimate : float
        Estimate of the same norm whose square is unbiased.
    failure_probability : float
        0.0 where the error is known from the full spectrum.
    """

    method: str
    passes: int
    error: float
    error_estimate: float
    failure_probability: float


@dataclass(frozen=True)
class SVDInfo(ErrorInfo):
    """`ErrorInfo` of an SVD.

    Attributes
    ----------
    spectral_error : float
        Upper estimate of the spectral norm ‖A − U·diag(S)·Vh‖₂; it holds with the same probability.
    power_iters : int
        Subspace iterations carried out (a block's, in tolerance mode), or blocks of the Krylov
        space beyond the first.
    converged : bool
        False where a limit was met before `tol`, before the Krylov space's residuals had their
        size, or before ``power_iters="auto"`` saw the singular values settle.
    precision : torch.dtype
        In which the range finder ran: all steps but the last one, which is taken in the precision
        of the factors.

    Of a batch, `error`, `error_estimate` and `spectral_error` are arrays of the batch's shape;
    `passes` and `power_iters` are the largest, and `converged` holds for all matrices.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> info = la.randomized_svd(torch.eye(50), 3, power_iters=1, seed=0).info
    >>> info.method, info.passes, info.power_iters, info.failure_probability
    ('subspace iteration', 4, 1, 0.01)
    """

    spectral_error: float
    power_iters: int
    converged: bool
    precision: torch.dtype


@dataclass(frozen=True)
class InterpolativeInfo(ErrorInfo):
    """`ErrorInfo` of an interpolative decomposition.

    Attributes
    ----------
    rank : int
        The number of rows or columns that were chosen.
    converged : bool
        False where the most of them did not meet `tol`.

    Of a batch, `error` and `error_estimate` are arrays of the batch's shape, and `passes` is the
    largest.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> info = la.interpolative(torch.eye(4), 4, axis=0).info
    >>> info.rank, info.error, info.converged
    (4, 0.0, True)
    """

    rank: int
    converged: bool


class _SVDFields(NamedTuple):
    U: Any
    S: Any
    Vh: Any


class SVDResult(_SVDFields):
    """A ≈ U @ diag(S) @ Vh, with `info` about how it was obtained.

    Attributes
    ----------
    U : array, shape (…, m, rank)
        Orthonormal columns; the largest entry of each is real and positive.
    S : array, shape (…, rank)
        Singular values, descending, real.
    Vh : array, shape (…, rank, n)
        Orthonormal rows.
    info : SVDInfo
        Not part of the tuple.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> result = la.randomized_svd(torch.eye(50), 3, seed=0)
    >>> U, S, Vh = result
    >>> len(result), result.info.converged
    (3, True)
    """

    info: SVDInfo

    def __new__(cls, U: Any, S: Any, Vh: Any, info: SVDInfo) -> "SVDResult":
        self = super().__new__(cls, U, S, Vh)
        self.info = info
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (*self, self.info)


class _InterpolativeFields(NamedTuple):
    indices: Any
    coefficients: Any


class InterpolativeResult(_InterpolativeFields):
    """Chosen rows or columns and the coefficients of all others in them.

    Attributes
    ----------
    indices : array of int64, shape (…, rank)
        The chosen rows (``axis=0``) or columns (``axis=1``), most important first.
    coefficients : array, shape (…, m, rank) or (…, rank, n)
        At most 2 in magnitude, the identity at `indices`:
        ``A ≈ coefficients @ A[indices]`` or ``A ≈ A[:, indices] @ coefficients``.
    info : InterpolativeInfo
        Not part of the tuple.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> result = la.interpolative(torch.eye(4)[:, :2], 2, axis=0)
    >>> rows, coefficients = result
    >>> sorted(rows.tolist()), result.info.passes
    ([0, 1], 2)
    """

    info: InterpolativeInfo

    def __new__(
        cls, indices: Any, coefficients: Any, info: InterpolativeInfo
    ) -> "InterpolativeResult":
        self = super().__new__(cls, indices, coefficients)
        self.info = info
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (*self, self.info)


@dataclass(frozen=True)
class WeightedLowRankInfo:
    """How a weighted approximation was obtained and how far it is from W.

    Attributes
    ----------
    method : {"exact", "randomized"}
        Whether the singular vectors come from an eigen-solver or from a random sketch, which was
        checked to be within 1 % of the optimum.
    error : float
        The weighted norm of W − B @ A, measured from B and A as they were returned; where nothing
        was cut off, an estimate of the rounding, from ten random probes.
    norm : float
        The weighted norm of W.
    converged : bool
        False where the error is more than `tol` of the norm.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> info = la.weighted_low_rank(torch.diag(torch.tensor([3.0, 4.0])), 1).info
    >>> info.method, round(info.error, 4), round(info.norm, 4)
    ('exact', 3.0, 5.0)
    """

    method: str
    error: float
    norm: float
    converged: bool


class _WeightedFields(NamedTuple):
    B: Any
    A: Any
    S: Any
    bias: Any


class WeightedLowRank(_WeightedFields):
    """W ≈ B @ A in a weighted norm; ``B[:, :r] @ A[:r]`` is the optimum of every rank r.

    Attributes
    ----------
    B : array, shape (o, k)
        Columns of unit length; orthonormal where the rows have no weight.
    A : array, shape (k, i)
    S : array of float64, shape (k,)
        The weighted singular values, descending.
    bias : array, shape (o,), or None
        What makes the mean output exact; None without a mean.
    info : WeightedLowRankInfo
        Not part of the tuple.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> result = la.weighted_low_rank(torch.diag(torch.tensor([3.0, 4.0])))
    >>> B, A, S, bias = result
    >>> S.tolist(), bias is None, result.info.converged
    ([4.0, 3.0], True, True)
    """

    info: WeightedLowRankInfo

    def __new__(
        cls, B: Any, A: Any, S: Any, bias: Any, info: WeightedLowRankInfo
    ) -> "WeightedLowRank":
        self = super().__new__(cls, B, A, S, bias)
        self.info = info
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (*self, self.info)
