"""Norms and ranks, as intervals."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from fastlr import _core
from fastlr.linalg._arguments import Seed, as_integer, as_real, as_seed
from fastlr.linalg._autocast import as_written
from fastlr.linalg._sources import open_operator
from fastlr.linalg._warnings import warn
from fastlr.linalg.results import ConvergenceWarning

# In the order of the core's enumeration.
_METHODS = ("dense singular values", "entries", "block Lanczos", "Gaussian probes")


@dataclass(frozen=True)
class EstimateInfo:
    """How a number was obtained.

    Attributes
    ----------
    method : str
        The algorithm that ran.
    passes : int
        Products with A or its adjoint, and scans of it.
    failure_probability : float
        With which the interval may not hold; 0.0 where nothing was left to chance.
    converged : bool
        False where a limit was met before the criterion.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> la.estimate_norm(torch.eye(3), "fro").info
    EstimateInfo(method='entries', passes=1, failure_probability=0.0, converged=True)
    """

    method: str
    passes: int
    failure_probability: float
    converged: bool


class _NormFields(NamedTuple):
    value: float
    lower: float
    upper: float


class NormEstimate(_NormFields):
    """A norm and an interval that holds it.

    Attributes
    ----------
    value, lower, upper : float
        The best guess, and bounds of the norm.
    info : EstimateInfo
        Not part of the tuple.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> value, lower, upper = la.estimate_norm(torch.eye(500), seed=0)
    >>> lower <= 1.0 <= upper
    True
    """

    info: EstimateInfo

    def __new__(
        cls, value: float, lower: float, upper: float, info: EstimateInfo
    ) -> "NormEstimate":
        self = super().__new__(cls, value, lower, upper)
        self.info = info
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (*self, self.info)


@as_written
def estimate_norm(
    A: Any,
    ord: Literal[2, "fro"] = 2,
    *,
    rtol: float = 0.05,
    failure_probability: float = 0.01,
    seed: Seed = None,
) -> NormEstimate:
    """Estimate the spectral or the Frobenius norm of a matrix.

    Parameters
    ----------
    A : array, Tensor, sparse matrix or operator, shape (m, n)
        Of every kind that `randomized_svd` takes, but no batch. Never written to.
    ord : {2, "fro"}
        The largest singular value, or the root of the sum of all squares.
    rtol : float
        Width of the interval of the spectral norm: ``upper`` is ``lower``·(1 + rtol) but for
        rounding. The number of passes grows as 1/√rtol.
    failure_probability : float
        With which the norm may be outside of the interval.
    seed : int, torch.Generator or None
        As in `randomized_svd`.

    Returns
    -------
    NormEstimate
        ``value``, ``lower``, ``upper`` and ``info``.

    Raises
    ------
    ValueError
        Another `ord`, an `rtol` or `failure_probability` out of range, a batch, an entry that is
        not finite.
    TypeError
        See `randomized_svd`.

    Notes
    -----
    ``ord=2``: a block Krylov space of AᴴA (or AAᴴ, the smaller one) from four random vectors, fully
    orthogonalised. Its largest Ritz value is attained, so that ``value`` = ``lower`` but for
    rounding (10·√max(m, n)·u, which widens the interval on both sides). That the norm is above
    (1 + rtol)·``value`` has probability (1.648·√N·exp(−√ε·(2k − 1)))⁴ at most after k steps, with
    N = min(m, n) (twice that for complex A) and ε = 1 − (1 + rtol)⁻², whatever the spectrum: the
    number of steps follows from the arguments alone. 2·k + 1 passes with four vectors; 19 for a
    matrix of order 1000 by default. ``value`` is usually far closer to the norm than the interval
    says. A matrix that is smaller than that is decomposed.

    ``ord="fro"``: where entries can be seen, the sum over them, in double precision. For an
    operator 64 Gaussian vectors in one pass, (Σ‖A·ω‖²/64)^½, whose square is unbiased, with the
    quantiles of chi-squared for a matrix of rank one, the worst case: 0.81 and 1.29 times `value`.

    Sources: Kuczyński, Woźniakowski, "Estimating the largest eigenvalue by the power and Lanczos
    algorithms with a random start", SIMAX 13 (1992), theorem 4.2; Roosta-Khorasani, Székely,
    Ascher, SIAM/ASA J. Uncertainty Quantification 3 (2015). Not differentiable.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> A = torch.diag(torch.arange(1.0, 1001.0))
    >>> value, lower, upper = la.estimate_norm(A, seed=0)
    >>> lower <= 1000 <= upper, upper / lower < 1.051
    (True, True)
    >>> f"{la.estimate_norm(A, 'fro').value:.1f}"
    '18271.1'
    """
    caller = "estimate_norm"
    if ord not in (2, "fro"):
        raise ValueError(f'{caller}: ord must be 2 or "fro", got {ord!r}')
    matrix = open_operator(A, caller)
    rtol = as_real(rtol, caller, "rtol")
    failure = as_real(failure_probability, caller, "failure_probability")
    key = as_seed(seed, caller)
    if ord == 2:
        numbers = _core.spectral_norm(matrix.data, rtol, failure, key)
    else:
        numbers = _core.frobenius_norm(matrix.data, failure, key)
    value, lower, upper, failure, passes, method = numbers
    return NormEstimate(value, lower, upper, EstimateInfo(_METHODS[method], passes, failure, True))


@dataclass(frozen=True)
class RankInfo(EstimateInfo):
    """`EstimateInfo` of a rank.

    Attributes
    ----------
    norm : float
        The largest singular value found.
    residual : float
        Upper bound of the spectral norm of what the sketch has not captured; it holds with the
        same probability.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> info = la.estimate_rank(torch.ones(200, 100), seed=0).info
    >>> info.converged, bool(info.residual < 1e-3 * info.norm)
    (True, True)
    """

    norm: float
    residual: float


class _RankFields(NamedTuple):
    rank: int
    lower: int
    upper: int


class RankEstimate(_RankFields):
    """A numerical rank and an interval that holds it.

    Attributes
    ----------
    rank, lower, upper : int
        Singular values found above the threshold, and bounds of the number that there are.
    info : RankInfo
        Not part of the tuple.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> rank, lower, upper = la.estimate_rank(torch.eye(100), 0.5, seed=0)
    >>> rank, lower, upper
    (100, 100, 100)
    """

    info: RankInfo

    def __new__(cls, rank: int, lower: int, upper: int, info: RankInfo) -> "RankEstimate":
        self = super().__new__(cls, rank, lower, upper)
        self.info = info
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (*self, self.info)


@as_written
def estimate_rank(
    A: Any, tol: float | None = None, *, most: int | None = None, seed: Seed = None
) -> RankEstimate:
    """Count the singular values above ``tol * ‖A‖₂``, from sketches that grow until none is left.

    Parameters
    ----------
    A : array, Tensor, sparse matrix or operator, shape (m, n)
        Of every kind that `randomized_svd` takes, but no batch. Never written to.
    tol : float, optional
        Relative to the largest singular value, between 0 and 1; max(m, n)·2·u if None, as in
        `torch.linalg.matrix_rank`.
    most : int, optional
        Stop at a sketch of so many columns, for operators of huge order.
    seed : int, torch.Generator or None
        As in `randomized_svd`.

    Returns
    -------
    RankEstimate
        ``rank``, ``lower``, ``upper`` and ``info``. The three are equal unless a singular value
        lies within the tolerance band.

    Raises
    ------
    ValueError
        A `tol` or `most` out of range, a batch, an entry that is not finite.
    TypeError
        See `randomized_svd`.

    Warns
    -----
    ConvergenceWarning
        `most` columns did not capture all above the threshold: ``upper`` is min(m, n).

    Notes
    -----
    Blocks of a QB factorization, two subspace iterations each (6 passes a block, of a width that
    grows by half), until ten probes say that ‖A − QB‖₂ is below tol·‖A‖₂/2. The singular values sᵢ
    of B are lower bounds of those of A, and √(sᵢ² + ‖A − QB‖₂²) are upper bounds: the band
    within which a singular value is counted by chance is [0.87, 1]·tol·‖A‖₂, and rounding of
    10·√rank·u·‖A‖_F. `lower` and `upper` count with both; `upper` holds but for
    ``info.failure_probability``. Where the sketch would reach two thirds of min(m, n), the dense
    singular values are counted.

    Sources: Meier, Nakatsukasa, "Fast randomized numerical rank estimation for numerically low-rank
    matrices", Linear Algebra Appl. 686 (2024); Yu, Gu, Li, SIMAX 39 (2018). Not differentiable.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> A = la.random_matrix(400, 7, seed=0) @ la.random_matrix(7, 300, seed=1)
    >>> la.estimate_rank(A, seed=0).rank
    7
    >>> la.estimate_rank(torch.diag(2.0 ** -torch.arange(100)), 1.5e-3, seed=0).rank
    10
    """
    caller = "estimate_rank"
    matrix = open_operator(A, caller)
    rank, lower, upper, norm, residual, failure, passes, converged, dense = _core.estimate_rank(
        matrix.data,
        None if tol is None else as_real(tol, caller, "tol"),
        None if most is None else as_integer(most, caller, "most"),
        as_seed(seed, caller),
    )
    method = _METHODS[0] if dense else "blocked QB"
    if not converged:
        warn(
            f"{caller}: most={most} columns did not capture all singular values above the "
            f"threshold; the rank is {lower} at least",
            ConvergenceWarning,
        )
    info = RankInfo(method, passes, failure, converged, norm=norm, residual=residual)
    return RankEstimate(rank, lower, upper, info)
