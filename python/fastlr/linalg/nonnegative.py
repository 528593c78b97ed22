"""Factorizations with a nonnegative factor, or two."""

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from fastlr.linalg._alternation import (
    Data,
    Right,
    alternate,
    least_squares_step,
    nonnegative_step,
    unit_ball_step,
)
from fastlr.linalg._arguments import Seed, as_out, as_seed, at_least, not_negative
from fastlr.linalg._arrays import adapt
from fastlr.linalg._autocast import as_written
from fastlr.linalg._sources import Matrix, is_scipy_sparse, open_block
from fastlr.linalg._starts import (
    nonnegative_start,
    random_start,
    rotated_start,
    signed_start,
)
from fastlr.linalg._warnings import warn
from fastlr.linalg.results import ConvergenceWarning

Start: TypeAlias = Literal["svd", "random"] | tuple[Any, Any]


@dataclass(frozen=True)
class NMFInfo:
    """How the factors were found, and how far they are from what was asked for.

    Attributes
    ----------
    iterations : int
        Updates of both factors.
    converged : bool
        Whether `kkt_residual` is at most `tol`.
    kkt_residual : float
        ‖P‖_F / ‖A‖_F, where P holds for every entry of the factors (for every direction, if these
        are real) how far a step to its minimum, all others fixed, would move it, in units of A:
        times the length of what it multiplies. Zero if and only if the conditions of Karush, Kuhn
        and Tucker hold; it does not depend on the scales of A and of the components. No bound of
        the distance from a minimum, let alone from the lowest one.
    relative_error : float
        ‖A − W·H‖_F / ‖A‖_F, computed from the factors (before they are rounded to float16 or
        bfloat16).
    objective : tuple of float
        At the start and after each iteration, relative to ½·‖A‖²: (‖A − W·H‖² + 2·λ·ΣW) / ‖A‖².
        The last one is computed, the others are that and what every step gained since, so that
        nothing cancels.
    penalty : float
        λ, in units of A; zero for `nmf`.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> A = torch.rand(60, 8).double() @ torch.rand(8, 40).double()
    >>> info = la.nmf(A, 8, seed=0, max_iters=2000).info
    >>> info.converged, len(info.objective) == info.iterations + 1
    (True, True)
    """

    iterations: int
    converged: bool
    kkt_residual: float
    relative_error: float
    objective: tuple[float, ...]
    penalty: float


class _NMFFields(NamedTuple):
    W: Any
    H: Any


class NMFResult(_NMFFields):
    """A ≈ W @ H, both nonnegative.

    Attributes
    ----------
    W : array, shape (m, k)
        Has the scale of A; columns by descending length.
    H : array, shape (k, n)
        Rows of length 1. A component that is not used is zero in both.
    info : NMFInfo
        Not part of the tuple.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> W, H = la.nmf(torch.ones(4, 9), 1, seed=0)
    >>> torch.allclose(W @ H, torch.ones(4, 9)), torch.allclose(H, torch.tensor(1 / 3))
    (True, True)
    """

    info: NMFInfo

    def __new__(cls, W: Any, H: Any, info: NMFInfo) -> "NMFResult":
        self = super().__new__(cls, W, H)
        self.info = info
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (*self, self.info)


class _SemiNMFFields(NamedTuple):
    codes: Any
    directions: Any


class SemiNMFResult(_SemiNMFFields):
    """A ≈ codes @ directions, the codes nonnegative.

    Attributes
    ----------
    codes : array, shape (m, k)
        Nonnegative: how much of each direction is in each row of A. Columns by descending length.
    directions : array, shape (k, n)
        Real, of length 1. A component that is not used is zero in both.
    info : NMFInfo
        Not part of the tuple.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> codes, directions = la.semi_nmf(torch.tensor([[3.0, -4.0], [6.0, -8.0]]), 1, seed=0)
    >>> [round(entry, 4) for entry in (*codes[:, 0].tolist(), *directions[0].tolist())]
    [5.0, 10.0, 0.6, -0.8]
    """

    info: NMFInfo

    def __new__(cls, codes: Any, directions: Any, info: NMFInfo) -> "SemiNMFResult":
        self = super().__new__(cls, codes, directions)
        self.info = info
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (*self, self.info)


@as_written
def nmf(
    A: Any,
    rank: int,
    *,
    tol: float = 1e-4,
    max_iters: int = 1000,
    init: Start = "svd",
    seed: Seed = None,
    out: Literal["torch", "numpy"] | None = None,
) -> NMFResult:
    """Approximate a nonnegative matrix by a product of two: minimise ‖A − W·H‖_F over W, H ≥ 0.

    Parameters
    ----------
    A : array, Tensor or sparse matrix, shape (m, n)
        Nonnegative; float32 or float64, float16 and bfloat16 are computed in float32. Sparse data
        (SciPy, torch) stay sparse. Never written to.
    rank : int
        k, at least 1. It may be larger than m or n.
    tol : float
        Of ``info.kkt_residual``.
    max_iters : int
        Updates of both factors at most.
    init : {"svd", "random"} or (array, array)
        Nonnegative parts of leading singular vectors; uniform random rows of H; or W (m × k) and
        H (k × n) to go on from.
    seed : int, torch.Generator or None
        Of the singular vectors and random rows.
    out : {"torch", "numpy"}, optional
        Kind of the results; that of A if None.

    Returns
    -------
    NMFResult
        ``W`` (m, k) and ``H`` (k, n), entrywise nonnegative, of the kind, dtype and device of A,
        and ``info``.

    Raises
    ------
    ValueError
        A negative entry of A or `init`, one that is not finite (its index is named), factors in
        `init` of other shapes, `rank`, `tol` or `max_iters` out of range.
    TypeError
        Complex numbers, an operator, a number of the wrong type.

    Warns
    -----
    ConvergenceWarning
        `tol` was not met; ``info.converged`` is False.

    See Also
    --------
    semi_nmf : for data of both signs, and sparse factors.

    Notes
    -----
    W and H in turns, each by coordinate descent over its entries with the other fixed: a step is
    the exact minimum in one entry. A product A·Hᵀ or Aᵀ·W is used for several passes over the
    entries, until a pass gains less than a hundredth of the first or they have taken half of the
    product's time. So the objective never rises, but for rounding. A component that has become
    zero begins anew with the row that is approximated worst, if that is of use.

    The problem is not convex: what is found is a point where the KKT conditions hold to `tol`, and
    another start may lead to a lower one. Sublinear convergence is usual. With `tol` of 1e-3 the
    objective is within some 0.1 % of its limit where the error is large.

    4·k·nnz(A) flops an iteration for the products and 2·(m + n)·k² for a pass; `init` "svd" costs a
    randomized SVD of rank min(k, m, n), the error one product, or a dense product by blocks of
    rows where A is sparse and the error is below 1e-4. In memory, the factors twice, and the
    transpose of a sparse A. Not differentiable.

    Sources: Cichocki, Phan, "Fast local algorithms for large scale nonnegative matrix and tensor
    factorizations", IEICE Trans. E92-A (2009); Gillis, Glineur, "Accelerated multiplicative updates
    and hierarchical ALS algorithms for nonnegative matrix factorization", Neural Comput. 24 (2012);
    Boutsidis, Gallopoulos, Pattern Recognition 41 (2008), for the start.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> A = torch.tensor([[1.0, 2.0, 0.0], [2.0, 4.0, 0.0], [0.0, 0.0, 5.0]])
    >>> W, H = result = la.nmf(A, 2, seed=0)
    >>> torch.allclose(W @ H, A, atol=1e-5), result.info.relative_error < 1e-6
    (True, True)
    >>> H
    tensor([[0.0000, 0.0000, 1.0000],
            [0.4472, 0.8944, 0.0000]])
    """
    request = _Request("nmf", A, rank, tol, max_iters, init, seed, out, signed=False)
    data = request.data
    if data.norm == 0:
        return NMFResult(*request.zeros(), _INFO_OF_ZERO)
    if isinstance(init, tuple):
        X, V = request.given(init, ("W of init", "H of init"))
    elif init == "svd":
        X, V = nonnegative_start(data.matrix, request.rank, request.seed)
    else:
        X, V = random_start(data.matrix, request.rank, request.seed, "uniform")
    W, H, info = request.solve(X, V, nonnegative_step(data), 0.0)
    return NMFResult(W, H, info)


@as_written
def semi_nmf(
    A: Any,
    rank: int,
    *,
    sparsity: float = 0.0,
    tol: float = 1e-4,
    max_iters: int = 1000,
    init: Start = "svd",
    seed: Seed = None,
    out: Literal["torch", "numpy"] | None = None,
) -> SemiNMFResult:
    """Approximate a real matrix by nonnegative, perhaps sparse, codes times real directions.

    The rows of A are samples, such as activations of a layer; a direction is a feature, and the
    codes say how much of it is in each sample. Over codes C ≥ 0 and directions D of length at most
    1, minimise ½·‖A − C·D‖_F² + λ·ΣC, with λ = sparsity·‖A‖_F/√m.

    Parameters
    ----------
    A : array, Tensor or sparse matrix, shape (m, n)
        Real, of both signs; float32 or float64, float16 and bfloat16 are computed in float32.
        Never written to.
    rank : int
        k, at least 1. It may be larger than m or n.
    sparsity : float
        λ relative to the root mean square of the lengths of A's rows: how far along a direction a
        row of that length has to be, beyond what other directions say, to have a code. 0.05 to 0.2
        make features; 1 and more leave little. With 0, only the product counts (see Notes).
    tol, max_iters, seed, out
        As in `nmf`.
    init : {"svd", "random"} or (array, array)
        From leading singular vectors; Gaussian random directions; or codes (m × k, nonnegative) and
        directions (k × n) to go on from.

    Returns
    -------
    SemiNMFResult
        ``codes`` (m, k), entrywise nonnegative and exactly zero where they are sparse,
        ``directions`` (k, n) of unit length, of the kind, dtype and device of A, and ``info``.

    Raises
    ------
    ValueError
        `sparsity` negative or not finite. See `nmf`; A and the directions may be negative.
    TypeError
        See `nmf`.

    Warns
    -----
    ConvergenceWarning
        `tol` was not met; ``info.converged`` is False.

    Notes
    -----
    In the literature, samples are often columns: X ≈ F·Gᵀ with X = Aᵀ, F the directions as columns
    and G the codes. Without the bound on the lengths the penalty would mean nothing, as small codes
    and long directions have the same product.

    Codes by coordinate descent as in `nmf`. Directions by least squares where λ = 0, corrected in
    what the codes determine and left as they are in the rest: the objective never rises, but for
    rounding, whatever the rank. Where λ > 0, one by one: the exact minimum over the ball. A
    direction that no sample uses begins anew with the row that is approximated worst.

    With λ = 0 this is nearly a truncated SVD: its error is between those of the best
    approximations of ranks k and k − 1. A column of ones beside k − 1 shifted singular vectors
    attains the second, and all k of them shifted along a positive vector of their span, if there is
    one, the first; "svd" starts there (up to the error of the randomized SVD). The factors are far
    from unique then. It is the penalty that makes features of directions.

    Flops as for `nmf`: directions cost 2·n·k² a pass, or 2·n·k² and 9·k³ for least squares. Not
    differentiable.

    Sources: Ding, Li, Jordan, "Convex and semi-nonnegative matrix factorizations", IEEE Trans. PAMI
    32 (2010); Gillis, Kumar, "Exact and heuristic algorithms for semi-nonnegative matrix
    factorization", SIMAX 36 (2015), for the relation to the SVD and the start; Mairal, Bach, Ponce,
    Sapiro, "Online learning for matrix factorization and sparse coding", JMLR 11 (2010), for the
    directions.

    Examples
    --------
    Three directions, of which every sample has one.

    >>> import torch, fastlr.linalg as la
    >>> features = torch.tensor([[0.8, -0.6, 0.0], [0.0, 1.0, 0.0], [-0.6, 0.0, -0.8]])
    >>> A = torch.eye(3).repeat(50, 1) @ features
    >>> codes, directions = la.semi_nmf(A, 3, sparsity=0.05, seed=0)
    >>> (codes > 0).sum(1).unique()
    tensor([1])
    >>> torch.allclose((directions @ features.T).max(1).values, torch.ones(3))
    True
    """
    request = _Request("semi_nmf", A, rank, tol, max_iters, init, seed, out, signed=True)
    weight = not_negative(sparsity, "semi_nmf", "sparsity")
    data = request.data
    if data.norm == 0:
        return SemiNMFResult(*request.zeros(), _INFO_OF_ZERO)
    penalty = weight * data.norm / math.sqrt(data.shape[0])
    if isinstance(init, tuple):
        X, V = request.given(init, ("codes of init", "directions of init"))
    elif init == "random":
        X, V = random_start(data.matrix, request.rank, request.seed, "gaussian")
    elif penalty:
        X, V = signed_start(data.matrix, request.rank, request.seed)
    else:
        X = rotated_start(data.matrix, request.rank, request.seed)
        V = data.zeros(data.shape[1], request.rank)
        X, V, _, _ = least_squares_step(X, V, X.mT @ X, data.adjoint @ X)
    step = unit_ball_step(data, penalty) if penalty else least_squares_step
    codes, directions, info = request.solve(X, V, step, penalty)
    return SemiNMFResult(codes, directions, info)


_INFO_OF_ZERO = NMFInfo(0, True, 0.0, 0.0, (0.0,), 0.0)


class _Request:
    """Checked arguments."""

    def __init__(
        self,
        caller: str,
        A: Any,
        rank: Any,
        tol: Any,
        max_iters: Any,
        init: Any,
        seed: Seed,
        out: Any,
        *,
        signed: bool,
    ) -> None:
        self.caller, self.signed = caller, signed
        self.out = as_out(out, caller)
        self.rank = at_least(rank, 1, caller, "rank")
        self.tol = not_negative(tol, caller, "tol")
        self.max_iters = at_least(max_iters, 1, caller, "max_iters")
        if not (isinstance(init, tuple) and len(init) == 2) and init not in ("svd", "random"):
            raise ValueError(
                f'{caller}: init must be "svd", "random" or a pair of factors, got {init!r}'
            )
        self.seed = as_seed(seed, caller)
        self.matrix = _open(A, caller)
        self.data = Data(self.matrix.data, _largest(self.matrix.data, caller, "A", signed=signed))

    def zeros(self) -> tuple[Any, Any]:
        """The factors of a matrix that is zero or empty."""
        m, n = self.data.shape
        left, right = self.data.zeros(m, self.rank), self.data.zeros(self.rank, n)
        return self._restored(left), self._restored(right)

    def given(self, init: tuple[Any, Any], names: tuple[str, str]) -> tuple[Tensor, Tensor]:
        """Factors to begin with, checked."""
        m, n = self.data.shape
        shapes = (m, self.rank), (self.rank, n)
        factors = []
        for factor, name, shape, signed in zip(
            init, names, shapes, (False, self.signed), strict=True
        ):
            tensor = adapt(factor, self.caller, name).tensor.detach()
            if tensor.shape != shape:
                raise ValueError(
                    f"{self.caller}: {name} must have shape {shape}, got {tuple(tensor.shape)}"
                )
            _largest(tensor, self.caller, name, signed=signed)
            factors.append(tensor.to(self.data.matrix))
        X, V = factors[0] / self.data.power, factors[1].mT
        # Squares of lengths are in range then.
        sizes = V.abs().amax(0)
        return X * sizes, V / torch.where(sizes > 0, sizes, 1)

    def solve(self, X: Tensor, V: Tensor, right: Right, penalty: float) -> tuple[Any, Any, NMFInfo]:
        """Alternate from X and V; the factors as the caller wants them."""
        found = alternate(
            self.data,
            X,
            V,
            right,
            penalty=penalty,
            signed=self.signed,
            tol=self.tol,
            max_iters=self.max_iters,
        )
        info = NMFInfo(
            found.iterations,
            found.kkt_residual <= self.tol,
            found.kkt_residual,
            found.relative_error,
            found.objective,
            penalty * self.data.power,
        )
        if not info.converged:
            warn(
                f"{self.caller}: the KKT residual is {info.kkt_residual:.3g} after "
                f"{info.iterations} iterations, more than tol = {self.tol:g}",
                ConvergenceWarning,
            )
        left, right_ = found.X * self.data.power, found.V.mT.contiguous()
        return self._restored(left), self._restored(right_), info

    def _restored(self, factor: Tensor) -> Any:
        return self.matrix.restore(factor, self.out)


def _open(A: Any, caller: str) -> Matrix:
    """A dense tensor or one of layout CSR, real, without a gradient."""
    if is_scipy_sparse(A) or (isinstance(A, Tensor) and A.layout != torch.strided):
        matrix = open_block(A, caller, "A", axis=0)
        if matrix.data.is_complex():
            raise TypeError(f"{caller}: A must be real, got {matrix.dtype}")
        return matrix
    adapted = adapt(A, caller)
    return Matrix(adapted.tensor.detach(), adapted.numpy, adapted.dtype)


def _largest(A: Tensor, caller: str, name: str, *, signed: bool) -> float:
    """The largest magnitude; an entry that is not finite, or that is negative, is an error."""
    entries = A if A.layout == torch.strided else A.values()
    if entries.numel() == 0:
        return 0.0
    least, most = (float(bound) for bound in entries.aminmax())
    if not math.isfinite(least) or not math.isfinite(most):
        _refuse(A, torch.isfinite(entries).logical_not(), caller, f"{name} must be finite")
    if least < 0 and not signed:
        _refuse(A, entries < 0, caller, f"{name} must be non-negative")
    return max(-least, most)


def _refuse(A: Tensor, bad: Tensor, caller: str, what: str) -> None:
    """Name the first entry that is bad."""
    index = tuple(bad.nonzero()[0].tolist())
    if A.layout == torch.strided:
        value = A[index].item()
    else:
        value, at = A.values()[index].item(), index[0]
        row = int((A.crow_indices() > at).nonzero()[0]) - 1
        index = (row, int(A.col_indices()[at]))
    raise ValueError(f"{caller}: {what}, got {value} at index {index}")
