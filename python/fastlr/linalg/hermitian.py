"""Leading eigenpairs of Hermitian matrices."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import Tensor

from fastlr import _core
from fastlr.linalg._arguments import Seed, as_integer, as_out, as_power_iters, as_seed
from fastlr.linalg._autocast import as_written
from fastlr.linalg._sources import Matrix, open_operator
from fastlr.linalg._warnings import warn
from fastlr.linalg.results import ConvergenceWarning, ErrorInfo

# In the order of the core's enumeration.
_METHODS = ("dense eigendecomposition", "Nyström", "block Lanczos")


@dataclass(frozen=True)
class EighInfo(ErrorInfo):
    """`ErrorInfo` of an eigendecomposition.

    Attributes
    ----------
    spectral_error : float
        Upper estimate of the spectral norm ‖A − V·diag(λ)·Vᴴ‖₂; it holds with the same probability.
    residuals : array, shape (rank,), or None
        ‖A·v − λ·v‖ of every pair, with its rounding: within that distance of every λ lies an
        eigenvalue of A, without a chance of failure. None for `nystrom`, which does not see them.
    power_iters : int
        Blocks of the Krylov space beyond the first.
    converged : bool
        False where a limit was met before the residuals had their size.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> info = la.randomized_eigh(torch.diag(torch.arange(200.0)), 3, seed=0).info
    >>> info.method, info.converged, bool(info.residuals.max() < 0.1)
    ('block Lanczos', True, True)
    """

    spectral_error: float
    residuals: Any
    power_iters: int
    converged: bool


class _EighFields(NamedTuple):
    eigenvalues: Any
    eigenvectors: Any


class EighResult(_EighFields):
    """A ≈ V @ diag(λ) @ Vᴴ, with `info` about how it was obtained.

    Attributes
    ----------
    eigenvalues : array, shape (rank,)
        Real, by descending magnitude.
    eigenvectors : array, shape (n, rank)
        Orthonormal columns; the largest entry of each is real and positive.
    info : EighInfo
        Not part of the tuple.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> result = la.nystrom(torch.eye(50), 3, seed=0)
    >>> eigenvalues, eigenvectors = result
    >>> eigenvalues.shape, eigenvectors.shape, result.info.passes
    (torch.Size([3]), torch.Size([50, 3]), 1)
    """

    info: EighInfo

    def __new__(cls, eigenvalues: Any, eigenvectors: Any, info: EighInfo) -> "EighResult":
        self = super().__new__(cls, eigenvalues, eigenvectors)
        self.info = info
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (*self, self.info)


@as_written
def nystrom(
    A: Any,
    rank: int,
    *,
    oversample: int | None = None,
    seed: Seed = None,
    out: Literal["torch", "numpy"] | None = None,
) -> EighResult:
    """Approximate a positive semidefinite matrix by its leading eigenpairs, from one pass over it.

    Parameters
    ----------
    A : array, Tensor, sparse matrix or operator, shape (n, n)
        Hermitian and positive semidefinite, of every kind that `randomized_svd` takes, but no
        batch. No product with the adjoint is taken. Never written to.
    rank : int
        Number of pairs, between 1 and n.
    oversample : int, optional
        Columns of the random sketch beyond `rank`; ``rank + 10`` if None: there is no second look
        at A.
    seed, out
        As in `randomized_svd`.

    Returns
    -------
    EighResult
        Eigenvalues, never negative, descending, and orthonormal eigenvectors. Eigenvalues below
        some 4·√n·u of the largest are rounding noise and returned as exact zeros; the others may
        be low by some √n·u of the largest.

    Raises
    ------
    torch.linalg.LinAlgError
        The sketch shows that A is not Hermitian (relatively by 100·√n·u or more) or not positive
        semidefinite. A negative eigenvalue too small to be seen there is not found, but belongs to
        what ``info.error`` estimates.
    ValueError
        A matrix that is not square, a batch, a `rank` or `oversample` out of range, an entry that
        is not finite.
    TypeError
        See `randomized_svd`.

    Notes
    -----
    One pass over A: 2·n²·(l + 10) flops with l = rank + oversample, the product with an orthonormal
    Q of l columns and with ten probes for the error; O(n·l²) besides, in double precision. The
    approximation AQ·(QᴴAQ)⁻¹·(AQ)ᴴ is computed for A + ν·I with ν = √l·u·‖AQ‖₂ (more where rounding
    makes QᴴAQ indefinite), and ν is subtracted from the eigenvalues. Its expected error is at most
    (1 + rank/(oversample − 1)) times the sum of the eigenvalues that are left out, in the nuclear
    norm, before the truncation to `rank`: good where they decay. `randomized_eigh` takes more
    passes and is accurate. Where l reaches n, one dense eigendecomposition is computed instead.

    Sources: Tropp, Yurtsever, Udell, Cevher, "Fixed-rank approximation of a positive-semidefinite
    matrix from streaming data", NeurIPS 2017; Frangella, Tropp, Udell, "Randomized Nyström
    preconditioning", SIMAX 44 (2023). Not differentiable.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> X = la.random_matrix(200, 4, seed=0, dtype=torch.float64)
    >>> K = X @ X.T
    >>> eigenvalues, V = result = la.nystrom(K, 4, seed=0)
    >>> bool(torch.dist(V * eigenvalues @ V.T, K) < 1e-10)
    True
    >>> result.info.passes
    1
    """
    caller = "nystrom"
    matrix = open_operator(A, caller)
    rank = as_integer(rank, caller, "rank")
    extra = rank + 10 if oversample is None else as_integer(oversample, caller, "oversample")
    out = as_out(out, caller)
    return _result(matrix, _core.nystrom(matrix.data, rank, extra, as_seed(seed, caller)), out)


@as_written
def randomized_eigh(
    A: Any,
    rank: int,
    *,
    oversample: int = 10,
    power_iters: int | Literal["auto"] = "auto",
    seed: Seed = None,
    out: Literal["torch", "numpy"] | None = None,
) -> EighResult:
    """Compute the eigenpairs of largest magnitude of a Hermitian matrix.

    Parameters
    ----------
    A : array, Tensor, sparse matrix or operator, shape (n, n)
        Hermitian, definite or not, of every kind that `randomized_svd` takes, but no batch. No
        product with the adjoint is taken. Never written to.
    rank : int
        Number of pairs, between 1 and n.
    oversample : int
        Columns of a block beyond `rank`.
    power_iters : int or "auto"
        Blocks of the Krylov space beyond the first. "auto" goes on until all residuals ‖A·v − λ·v‖
        are below 1e-10 (or 40·√(rank + oversample)·u) of the largest magnitude; 0 to 4 are fast,
        for an approximation of A.
    seed, out
        As in `randomized_svd`.

    Returns
    -------
    EighResult
        Eigenvalues by descending magnitude (not ascending as those of `torch.linalg.eigh`: the
        first `k` are the best approximation of rank k) and orthonormal eigenvectors. Eigenvalues
        that are rounding noise are exact zeros. ``info.residuals`` bounds the distance of each from
        an eigenvalue of A.

    Raises
    ------
    torch.linalg.LinAlgError
        The sketch shows that A is not Hermitian, relatively by 100·√n·u or more.
    ValueError
        A matrix that is not square, a batch, a `rank`, `oversample` or `power_iters` out of range,
        an entry that is not finite.
    TypeError
        See `randomized_svd`.

    Warns
    -----
    ConvergenceWarning
        ``power_iters="auto"`` gave up after 300 blocks.

    Notes
    -----
    With l = rank + oversample: 2 + power_iters passes over A, each 2·n²·l flops, and O(n·l²) for
    every pair of blocks; n·l·(power_iters + 2) numbers of memory, 5·n·l for "auto", which restarts.
    Rayleigh–Ritz in a block Krylov space sees A itself, not its square, so that a pair ±λ gives two
    eigenvectors and no mixture; a multiple eigenvalue is found as often as it occurs within the
    leading `rank`. Where the space would reach n, one dense eigendecomposition is computed instead.

    ``info.error`` is an upper estimate of ‖A − V·diag(λ)·Vᴴ‖_F, from ten random probes that share
    the first pass over A.

    Sources: Halko, Martinsson, Tropp, "Finding structure with randomness", SIAM Review 53 (2011),
    section 5.3; Musco, Musco, NeurIPS 2015; Wu, Simon, "Thick-restart Lanczos method for large
    symmetric eigenvalue problems", SIMAX 22 (2000). Not differentiable.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> A = torch.diag(torch.tensor([3.0, -3.0, 2.0, -1.0] + 196 * [0.1], dtype=torch.float64))
    >>> eigenvalues, V = la.randomized_eigh(A, 4, seed=0)
    >>> sorted(round(value, 6) for value in eigenvalues.tolist())
    [-3.0, -1.0, 2.0, 3.0]
    """
    caller = "randomized_eigh"
    matrix = open_operator(A, caller)
    rank = as_integer(rank, caller, "rank")
    oversample = as_integer(oversample, caller, "oversample")
    iterations = as_power_iters(power_iters, caller)
    out = as_out(out, caller)
    found = _core.randomized_eigh(matrix.data, rank, oversample, iterations, as_seed(seed, caller))
    result = _result(matrix, found, out)
    if not result.info.converged:
        warn(
            f"{caller}: the residuals did not reach their size in {result.info.power_iters} blocks;"
            f" the largest is {float(result.info.residuals.max()):.3g} (see info)",
            ConvergenceWarning,
        )
    return result


def _result(
    matrix: Matrix,
    found: tuple[Tensor, Tensor, Tensor | None, list[float]],
    out: str | None,
) -> EighResult:
    values, vectors, residuals, numbers = found
    method, passes, error, estimate, failure, spectral, blocks, converged = numbers
    info = EighInfo(
        method=_METHODS[int(method)],
        passes=int(passes),
        error=error,
        error_estimate=estimate,
        failure_probability=failure,
        spectral_error=spectral,
        residuals=None if residuals is None else matrix.restore(residuals, out),
        power_iters=int(blocks),
        converged=bool(converged),
    )
    return EighResult(matrix.restore(values, out), matrix.restore(vectors, out), info)
