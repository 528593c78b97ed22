"""Traces of matrices that are known by their products."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from fastlr import _core
from fastlr.linalg._arguments import Seed, as_integer, as_real, as_seed
from fastlr.linalg._autocast import as_written
from fastlr.linalg._sources import open_operator
from fastlr.linalg._warnings import warn
from fastlr.linalg.results import ConvergenceWarning


@dataclass(frozen=True)
class TraceInfo:
    """How a trace was obtained.

    Attributes
    ----------
    method : str
        "Hutch++", or "diagonal" where as many products were allowed as A has columns.
    products : int
        Of A with vectors.
    passes : int
        Products of A with blocks of them.
    converged : bool
        False where `tol` was not met.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> la.hutchpp(torch.eye(500), products=30, seed=0).info
    TraceInfo(method='Hutch++', products=30, passes=2, converged=True)
    """

    method: str
    products: int
    passes: int
    converged: bool


class _TraceFields(NamedTuple):
    value: Any
    std_error: float


class TraceEstimate(_TraceFields):
    """A trace and its standard error.

    Attributes
    ----------
    value : float or complex
        Complex where A is.
    std_error : float
        Standard deviation of `value`, as estimated from the probes, and rounding.
    info : TraceInfo
        Not part of the tuple.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> value, std_error = la.hutchpp(torch.eye(500), products=30, seed=0)
    >>> round(value, 2), std_error < 0.01
    (500.0, True)
    """

    info: TraceInfo

    def __new__(cls, value: Any, std_error: float, info: TraceInfo) -> "TraceEstimate":
        self = super().__new__(cls, value, std_error)
        self.info = info
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (*self, self.info)


@as_written
def hutchpp(
    A: Any, *, products: int | None = None, tol: float | None = None, seed: Seed = None
) -> TraceEstimate:
    """Estimate the trace of a square matrix by Hutch++.

    Parameters
    ----------
    A : array, Tensor, sparse matrix or operator, shape (n, n)
        Symmetric or not, of every kind that `randomized_svd` takes, but no batch: meant for
        operators, as the trace of what has entries is their sum. Only products with A are taken,
        none with its adjoint. Never written to.
    products : int, optional
        Products of A with a vector, at least 6; 120 if neither this nor `tol` is given. With `tol`,
        the most that are taken (n if None). From n on the diagonal is summed.
    tol : float, optional
        Double the number of products until ``std_error <= tol * abs(value)``.
    seed : int, torch.Generator or None
        As in `randomized_svd`.

    Returns
    -------
    TraceEstimate
        ``value``, ``std_error`` and ``info``.

    Raises
    ------
    ValueError
        A matrix that is not square, a batch, `products` or `tol` out of range, an entry that is not
        finite.
    TypeError
        See `randomized_svd`.

    Warns
    -----
    ConvergenceWarning
        `tol` was not met by `products` products.

    Notes
    -----
    A third of the products sketches A, a third gives tr(QᴴAQ) for the basis Q of the sketch, and a
    third probes (I − QQᴴ)A(I − QQᴴ) with vectors uniform on a sphere. Exact but for rounding where
    the rank of A is products/3 at most, and for multiples of the identity; for a positive
    semidefinite A the error falls as 1/products, that of plain probes (Hutchinson) as its root. Two
    passes (two more for every doubling with `tol`), 2·n²·products flops, O(n·products²) besides.

    For a given Q the probes are independent and the estimate is unbiased, so that `std_error`
    (their standard deviation over the root of their number, and the rounding of the first part) is
    an honest one: the estimate lies within 2·std_error in some 95 % of the seeds, a little less
    where few probes are taken. With `tol`, the same numbers decide when to stop.

    Sources: Meyer, Musco, Musco, Woodruff, "Hutch++: optimal stochastic trace estimation", SOSA
    2021; Persson, Cortinovis, Kressner, SIMAX 43 (2022), for `tol`; Epperly, Tropp, Webber, SIMAX
    45 (2024), for the sphere. Not differentiable.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> d = 1 / torch.arange(1.0, 2001.0, dtype=torch.float64)[:, None] ** 2
    >>> A = la.LinearOperator((2000, 2000), lambda X: d * X, lambda Y: d * Y, dtype=d.dtype)
    >>> value, std_error = la.hutchpp(A, products=120, seed=0)
    >>> abs(value - d.sum().item()) < 4 * std_error < 0.04
    True
    """
    caller = "hutchpp"
    matrix = open_operator(A, caller)
    if products is None:
        limit = 120 if tol is None else 2**62
    else:
        limit = as_integer(products, caller, "products")
    value, std_error, taken, passes, converged, exact = _core.hutchpp(
        matrix.data,
        limit,
        None if tol is None else as_real(tol, caller, "tol"),
        as_seed(seed, caller),
    )
    if not converged:
        warn(
            f"{caller}: tol={tol:g} not met by {taken} products; the standard error is "
            f"{std_error:.3g}",
            ConvergenceWarning,
        )
    info = TraceInfo("diagonal" if exact else "Hutch++", taken, passes, converged)
    return TraceEstimate(value if matrix.dtype.is_complex else value.real, std_error, info)
