"""Equality-constrained Newton systems by sketch and project."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastlr import _core
from fastlr.linalg._arguments import Seed, as_out, as_real, as_seed, at_least
from fastlr.linalg._arrays import adapt
from fastlr.linalg._autocast import as_written
from fastlr.linalg._sources import is_scipy_sparse, open_operator
from fastlr.linalg._warnings import warn
from fastlr.linalg.results import ConvergenceWarning

_CALLER = "solve_kkt"
_METHODS = ("sketch and project", "LU", "eigenvalues")  # in the order of the core's KktMethod


@dataclass(frozen=True)
class KKTInfo:
    """How a KKT system was solved.

    Attributes
    ----------
    method : str
        "sketch and project"; "LU" where the dense matrix was factored, the sketches having cost as
        much as that; "eigenvalues" where that matrix is singular, or nearly so.
    iterations : int
        Sketches that were projected on.
    products : int
        Of H with vectors, for all purposes but to make the dense matrix.
    residual : float
        ‖b − K·z‖ / ‖b‖ of the solution that is returned, computed from it, not by a recursion; with
        rows scaled to like norms if that is more.
    converged : bool
        Whether `residual` is at most `tol`.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> info = la.solve_kkt(torch.eye(2), torch.ones(1, 2), torch.ones(2), torch.ones(1)).info
    >>> info.method, info.converged
    ('sketch and project', True)
    """

    method: str
    iterations: int
    products: int
    residual: float
    converged: bool


class _KKTFields(NamedTuple):
    x: Any
    multipliers: Any


class KKTSolution(_KKTFields):
    """The solution of an equality-constrained Newton system.

    Attributes
    ----------
    x : array, shape (n,)
    multipliers : array, shape (m,)
        λ.
    info : KKTInfo
        Not part of the tuple.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> x, multipliers = la.solve_kkt(
    ...     torch.eye(2), torch.ones(1, 2), torch.zeros(2), torch.ones(1), seed=0
    ... )
    >>> [round(entry, 4) for entry in (*x.tolist(), *multipliers.tolist())]
    [0.5, 0.5, -0.5]
    """

    info: KKTInfo

    def __new__(cls, x: Any, multipliers: Any, info: KKTInfo) -> "KKTSolution":
        self = super().__new__(cls, x, multipliers)
        self.info = info
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (*self, self.info)


@as_written
def solve_kkt(
    H: Any,
    A: Any,
    f: Any,
    c: Any,
    *,
    tol: float | None = None,
    max_iters: int = 1000,
    seed: Seed = None,
    out: Literal["torch", "numpy"] | None = None,
) -> KKTSolution:
    """Solve the system of an equality-constrained Newton step by randomized sketch and project.

    With K = [[H, Aᵀ], [A, 0]], find K·(x, λ) = (f, c): where H is positive definite on the null
    space of A, x minimises ½·xᵀHx − fᵀx subject to A·x = c, and λ has the multipliers.

    Parameters
    ----------
    H : array, Tensor, sparse matrix or operator, shape (n, n)
        Symmetric, definite or not, of every kind that `randomized_svd` takes, but no batch; real.
        Only products are taken, unless the dense matrix is needed (see Notes). Never written to.
    A : array, Tensor, sparse matrix or operator, shape (m, n), m ≤ n
        m = 0 is allowed. Of the dtype and device of H.
    f : array or Tensor, shape (n,)
        Of any real dtype, taken in that of H.
    c : array or Tensor, shape (m,)
        The same.
    tol : float, optional
        Of the residual: ‖b − K·z‖ ≤ tol·‖b‖ with b = (f, c) and z = (x, λ), and where K is badly
        scaled the same with its rows scaled to like norms. u^⅔ if None: 2.3e-11 in float64, 1.5e-5
        in float32, u being the unit roundoff.
    max_iters : int
        Sketches at most.
    seed : int, torch.Generator or None
        As in `randomized_svd`.
    out : {"torch", "numpy"}, optional
        Kind of the results; that of H if None.

    Returns
    -------
    KKTSolution
        ``x`` (n,), ``multipliers`` (m,), of the kind, dtype and device of H, and ``info``.

    Raises
    ------
    ValueError
        H not square, more constraints than unknowns, sizes that do not fit, a batch, an entry that
        is not finite (its index is named), `tol` or `max_iters` out of range.
    TypeError
        Complex numbers, H and A of different dtypes. See `randomized_svd`.
    torch.linalg.LinAlgError
        H is not symmetric, as seen from a few random vectors. Or K is singular, and nothing leaves
        a residual below √u. (A singular K above order 16384 is not told from one that is
        ill-conditioned: a warning.)

    Warns
    -----
    ConvergenceWarning
        `tol` was not met; ``info.converged`` is False. Nothing meets a `tol` below
        u·‖K‖·‖z‖/‖b‖ or so.

    Notes
    -----
    K is equilibrated by a diagonal of powers of two, found from random products. The constraints
    are solved by an orthogonal factorization of Aᵀ, so that M = P·H·P is left, P the projection on
    the null space of A. Every iteration draws a sketch S of 4 columns (as many as M has dimensions,
    up to 64), and takes from all combinations of the sketches so far the one of least residual,
    which is the projection of the solution in the norm ‖M·z‖. The first sketch is random but for
    one column, the residual; the next are the residual and images of the last: block Krylov spaces.
    For κ = cond(M) some ½·√κ·log(2/tol) iterations where H is positive definite on the null space
    of A, κ·log(2/tol) elsewhere; fewer by far where only a few eigenvalues are large or small.
    At the end the residual is computed anew, and what is left of it, if too much, solved for.

    4·n·m² flops once, and 4·(2·n² + 8·n·m + 8·n·k) an iteration with k columns so far, which are
    kept; for a sparse H its nonzeros instead of n². When that has taken the time of an LU
    factorization of the dense K, ⅔·(n + m)³ flops at four times the rate, it is done instead, up to
    order n + m = 16384: the whole takes some twice the better of the two at most, and
    ``info.method`` tells. Above, a new basis is begun at 2²⁷ entries. Where n·m is above 2²⁷, A is
    not factored, and M is K.

    Where K is singular but the system has solutions, one of them is found. Not differentiable.

    Sources: Gower, Richtárik, "Randomized iterative methods for linear systems", SIMAX 36 (2015);
    Hong, Na, Mahoney, Kolar, "Constrained optimization via exact augmented Lagrangian and
    randomized iterative sketching", ICML 2023; Eisenstat, Elman, Schultz, SINUM 20 (1983), and
    O'Leary, "The block conjugate gradient algorithm and related methods", Linear Algebra Appl. 29
    (1980), for sketches that follow the residual.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> H = torch.diag(torch.linspace(1, 9, 1000, dtype=torch.float64))
    >>> A = torch.ones(1, 1000, dtype=torch.float64)
    >>> f, c = torch.zeros(1000, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    >>> rough = la.solve_kkt(H, A, f, c, tol=0.1, seed=0)
    >>> rough.info.method, rough.info.residual < 0.1, round(rough.x.sum().item(), 8)
    ('sketch and project', True, 1.0)
    >>> x, multipliers = la.solve_kkt(H, A, f, c, seed=0)
    >>> torch.allclose(x, -multipliers / H.diagonal())
    True
    """
    hessian, jacobian = open_operator(H, _CALLER, "H"), open_operator(A, _CALLER, "A")
    out = as_out(out, _CALLER)
    dtype = torch.float64 if hessian.dtype == torch.float64 else torch.float32
    x, multipliers, info = solve_operators(
        hessian.data,
        jacobian.data,
        _vector(f, "f").to(dtype),
        _vector(c, "c").to(dtype),
        tol=default_tol(dtype) if tol is None else as_real(tol, _CALLER, "tol"),
        max_iters=at_least(max_iters, 1, _CALLER, "max_iters"),
        seed=as_seed(seed, _CALLER),
        entries=_entries(H, len(f)),
    )
    if not info.converged:
        warn(
            f"{_CALLER}: the residual is {info.residual:.3g} of the norm of (f, c) after "
            f"{info.iterations} sketches ({info.method}), more than tol",
            ConvergenceWarning,
        )
    return KKTSolution(hessian.restore(x, out), hessian.restore(multipliers, out), info)


def solve_operators(
    H: _core.Operator,
    A: _core.Operator,
    f: Tensor,
    c: Tensor,
    *,
    tol: float,
    max_iters: int,
    seed: int,
    entries: int,
) -> tuple[Tensor, Tensor, KKTInfo]:
    """The same for operators of the core, without a warning; a product reads `entries` of H."""
    x, multipliers, method, iterations, products, residual, converged = _core.solve_kkt(
        H, A, f, c, tol, max_iters, seed, entries
    )
    info = KKTInfo(_METHODS[method], iterations, products, residual, converged)
    return x, multipliers, info


def default_tol(dtype: torch.dtype) -> float:
    """u^⅔, u the unit roundoff: what systems of condition numbers up to u^-⅓ meet with ease."""
    return float((torch.finfo(dtype).eps / 2) ** (2 / 3))


def _entries(H: Any, n: int) -> int:
    """What a product goes through: of an operator it is not known, and taken to be little."""
    if is_scipy_sparse(H):
        return int(H.nnz)
    if isinstance(H, Tensor) and H.layout != torch.strided:
        return H._nnz()
    return n if hasattr(H, "matmat") else n * n


def _vector(b: Any, name: str) -> Tensor:
    array = b if isinstance(b, Tensor) else np.asarray(b)
    if array.ndim != 1:
        raise ValueError(f"{_CALLER}: {name} must be a vector, got shape {tuple(array.shape)}")
    return adapt(array[None], _CALLER, name).tensor[0].detach()
