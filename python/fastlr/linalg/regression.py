"""Linear least squares."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastlr import _core
from fastlr.linalg._arguments import Seed, as_out, as_seed, at_least, not_negative
from fastlr.linalg._arrays import as_tensor, as_weights, computed_dtype
from fastlr.linalg._autocast import as_written
from fastlr.linalg._blocks import Source, source_of, tensors_of
from fastlr.linalg._lstsq_gradient import DifferentiableSolution
from fastlr.linalg._sources import Matrix, is_scipy_sparse, open_operator
from fastlr.linalg._warnings import warn
from fastlr.linalg.operators import LinearOperator
from fastlr.linalg.results import ConvergenceWarning
from fastlr.linalg.sketching import OBLIVIOUS_KINDS, SketchOperator

Method = Literal[
    "auto", "sketch_and_solve", "precondition", "iterative", "refined", "direct", "lsqr"
]

# In the order of the core's enumeration.
_METHODS = (
    "auto",
    "sketch_and_solve",
    "precondition",
    "iterative",
    "refined",
    "direct",
    "lsqr",
)
# Of guarantee="linf".
_FAILURE_PROBABILITY = 0.01


@dataclass(frozen=True)
class LstsqInfo:
    """How a least-squares problem was solved, and how well.

    Attributes
    ----------
    method : str
        The method whose result this is.
    recovered : bool
        ``method="auto"`` found that its first choice had not reached `tol`, and factored A.
    rank : int
        Of A with `damp`, as the sketch sees it: singular values below 30·u times the largest count
        as zero, after columns (rows, if A has more columns than rows) were scaled to unit length.
    condition : float
        Estimate of the condition number of A, so scaled, on the space of its rows; NaN for "lsqr",
        which has none.
    backward_error : float or array of float64, shape (k,)
        Estimate of the relative change of A and b for which x would be the exact solution: within a
        small factor of the least one in the Frobenius norm, with columns of A scaled to unit
        length. For "lsqr" and where A has more columns than rows, an upper bound.
    sketch_rows : int
        Of the sketch; 0 where A itself was factored.
    iterations, passes : int
        Steps of the iterative solver, and products with A or its adjoint.
    converged : bool
        Whether `backward_error` is at most `tol`; always for "sketch_and_solve" without a `tol`.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> info = la.lstsq(torch.eye(3).double(), torch.ones(3).double()).info
    >>> info.method, info.rank, info.converged
    ('direct', 3, True)
    """

    method: str
    recovered: bool
    rank: int
    condition: float
    backward_error: Any
    sketch_rows: int
    iterations: int
    passes: int
    converged: bool


class _LstsqFields(NamedTuple):
    x: Any
    residual: Any


class LstsqResult(_LstsqFields):
    """A solution and what it leaves, with `info` about how it was found.

    Attributes
    ----------
    x : array, shape (n,) or (n, k)
    residual : array, shape (m,) or (m, k)
        ``b - A @ x``.
    info : LstsqInfo
        Not part of the tuple.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> x, residual = la.lstsq(torch.tensor([[1.0], [1.0]]), torch.tensor([1.0, 3.0]))
    >>> [round(value, 4) for value in [*x.tolist(), *residual.tolist()]]
    [2.0, -1.0, 1.0]
    """

    info: LstsqInfo

    def __new__(cls, x: Any, residual: Any, info: LstsqInfo) -> "LstsqResult":
        self = super().__new__(cls, x, residual)
        self.info = info
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (*self, self.info)


@as_written
def lstsq(
    A: Any,
    b: Any,
    *,
    damp: float = 0.0,
    weights: Any = None,
    method: Method = "auto",
    sketch: str | SketchOperator = "sparse_sign",
    guarantee: Literal["linf"] | None = None,
    tol: float | None = None,
    max_iters: int | None = None,
    seed: Seed = None,
    out: Literal["torch", "numpy"] | None = None,
) -> LstsqResult:
    """Minimise ‖A·x − b‖² + damp²·‖x‖², for tall matrices by a random sketch of A.

    Of several minimisers the shortest is returned: A may have fewer rows than columns, and need not
    be of full rank.

    Parameters
    ----------
    A : array, Tensor, sparse matrix, operator or data larger than memory, shape (m, n)
        Of every kind that `randomized_svd` takes, but no batch. float16 and bfloat16 are computed
        in float32. A sparse matrix is made dense only where "direct" is chosen. Never written to.
    b : array or Tensor, shape (m,) or (m, k)
        One or more right-hand sides. Never written to.
    damp : float
        Ridge regression: Tikhonov's parameter, non-negative.
    weights : array or Tensor, shape (m,), optional
        Non-negative; minimises ``Σ weights·abs(A·x − b)² + damp²·‖x‖²``. A is copied for that
        where it is dense or sparse.
    method : str
        - "refined": conjugate gradients in the coordinates of a sketch, a correction from a new
          residual until the backward error is that of QR [1]_. Two or three corrections.
        - "direct": QR; out of core, of one block of rows after the other.
        - "precondition": LSQR in the coordinates of a sketch [2]_ [3]_ [4]_.
        - "iterative": iterative sketching with damping and momentum [5]_.
        - "sketch_and_solve": the solution of the sketched problem, whose residual is larger by a
          factor of 1/√(1 − n/rows) or so. One pass.
        - "lsqr": LSQR with scaled columns, and no sketch of n columns: for large sparse n.
        - "auto": "direct" out of core if m ≥ n. Elsewhere "refined", if one side is at least 16
          times the other, which is at most 4096, and if it is less work than "direct" by a count of
          flops and reads, as it is for dense matrices from some 200 columns on. Then "direct" for
          dense matrices and for others of at most 64 million numbers, and "lsqr" for what is left.
          Where "refined" or "lsqr" does not reach `tol`, A is factored after all, if it is of one
          of the kinds that "direct" is chosen for.
    sketch : str or SketchOperator
        The kind of the sketch, as in `sketch`; or the sketch itself, whose `cols` are the longer
        side of A and whose `rows` are between the two. By default its rows are chosen by counting:
        between 4 and 16 times the shorter side of A.
    guarantee : {"linf"}, optional
        ``|x − x*| ≤ tol/√n · ‖A·x* − b‖₂ · ‖A⁺‖₂`` for every entry of x, with probability 0.99: a
        dense sketch, a randomized Hadamard transform, with tol⁻²·n·ln³(100·m) rows [6]_; where that
        is no fewer than m, the problem is solved as by ``method="auto"``. A CountSketch has no such
        guarantee. Needs m ≥ n and `tol`, below 1.
    tol : float, optional
        The backward error to reach (see `LstsqInfo`); by default 8·u with u = 2⁻⁵³ or 2⁻²⁴, and
        u^(2/3) for "lsqr".
    max_iters : int, optional
        200 by default; for "lsqr" 4·min(m, n), at least 1000.
    seed : int, torch.Generator or None
        As in `randomized_svd`.
    out : {"torch", "numpy"}, optional
        Kind of the results; that of A by default.

    Returns
    -------
    LstsqResult
        ``x``, ``residual`` and ``info``. Differentiable once with respect to `b` and a dense
        tensor A, as the exact solution at constant rank, by up to three more solutions.

    Raises
    ------
    ValueError
        Shapes that do not go together, an entry that is not finite, a negative `damp`, `tol` or
        weight, a sketch with more rows than A or fewer than columns, an unknown method or
        guarantee, a `b` that requires grad beside what is no dense tensor.
    TypeError
        Operands whose dtypes do not go together.

    Warns
    -----
    ConvergenceWarning
        `tol` was not reached; ``info.backward_error`` says how far it is.

    See Also
    --------
    randomized_svd, sketch

    Notes
    -----
    For a dense m × n matrix, m ≥ n: one read and 16·m·n flops for the sketch of c·n rows, 2·c·n³
    for its triangle, and 4·m·n flops in one read of A for each of some 20/log₁₀ c iterations.
    "direct" takes 2·m·n² flops in one read, and one more read for the backward error.

    With R the triangle of the sketch, the iterations are about A·D⁻¹·R⁻¹, D the lengths of the
    columns, whose condition number is (1 + √(1/c))/(1 − √(1/c)) or so whatever that of A is. Where
    that of the sketch passes 1/(30·u), directions of smaller singular values are left out, and the
    shortest solution is found in the space of the rows of A. The backward error is the estimate of
    Karlson and Waldén with the sketch in place of A [1]_: it does not rely on the sketch being good
    for x, so that a bad seed shows.

    References
    ----------
    .. [1] E. N. Epperly, M. Meier, Y. Nakatsukasa, "Fast randomized least-squares solvers can be
       just as accurate and stable as classical direct solvers", Comm. Pure Appl. Math. (2025).
    .. [2] V. Rokhlin, M. Tygert, "A fast randomized algorithm for overdetermined linear
       least-squares regression", PNAS 105 (2008).
    .. [3] H. Avron, P. Maymounkov, S. Toledo, "Blendenpik: supercharging LAPACK's least-squares
       solver", SIAM J. Sci. Comput. 32 (2010).
    .. [4] X. Meng, M. A. Saunders, M. W. Mahoney, "LSRN: a parallel iterative solver for strongly
       over- or underdetermined systems", SIAM J. Sci. Comput. 36 (2014).
    .. [5] E. N. Epperly, "Fast and forward stable randomized algorithms for linear least-squares
       problems", SIAM J. Matrix Anal. Appl. 45 (2024).
    .. [6] Z. Song, M. Ye, J. Yin, L. Zhang, "A nearly-optimal bound for fast regression with ℓ∞
       guarantee", ICML 2023.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> A = la.random_matrix(40000, 10, seed=0, dtype=torch.float64)
    >>> x, residual = la.lstsq(A, A @ torch.arange(1.0, 11.0).double(), seed=0)
    >>> [round(value, 6) for value in x.tolist()]
    [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0]
    """
    caller = "lstsq"
    out = as_out(out, caller)
    damp = not_negative(damp, caller, "damp")
    if tol is not None:
        tol = not_negative(tol, caller, "tol")
    if max_iters is not None:
        max_iters = at_least(max_iters, 0, caller, "max_iters")
    A, matrix, right = _open(A, _right_hand_side(b, caller), caller)
    _check_rows(right, matrix.data.shape[0], caller)
    tracked = _tracked(A, right.tensor, caller)
    kind, rows, nonzeros, key = _sketch_arguments(sketch, matrix, as_seed(seed, caller), caller)
    reached = tol
    if guarantee is not None:
        method, kind, rows = _guaranteed(guarantee, method, sketch, tol, matrix.data.shape)
        reached = None
    B, weighted = right.tensor, matrix
    if weights is not None:
        roots = _roots_of(weights, B, caller)
        B, weighted = B * roots, open_operator(_with_weights(A, roots, caller), caller)
    x, residual, *numbers = _core.lstsq(
        weighted.data, B.detach(), method, kind, rows, nonzeros, damp, reached, max_iters, key
    )
    info = _info(numbers, right, matrix.reads, reached)
    if weights is not None:
        residual = right.tensor - matrix.data.matmat(x)
        info = replace(info, passes=info.passes + 1)
    if tracked is not None:
        left = tracked if weights is None else tracked * roots
        x = DifferentiableSolution.apply(left, B, x, damp, info.rank)  # type: ignore[no-untyped-call]
        residual = right.tensor - tracked @ x
    if not info.converged:
        warn(
            f"{caller}: the backward error is {np.max(info.backward_error):.3g}, above tol (see "
            "info)",
            ConvergenceWarning,
        )
    return LstsqResult(
        matrix.restore(right.shaped(x), out), matrix.restore(right.shaped(residual), out), info
    )


@dataclass(frozen=True)
class _Right:
    """Right-hand sides as columns; those of a complex b and a real A by two columns each."""

    tensor: Tensor
    vector: bool
    parts: bool = False

    def shaped(self, result: Tensor) -> Tensor:
        if self.parts:
            result = torch.view_as_complex(result.reshape(result.shape[0], -1, 2).contiguous())
        return result.squeeze(1) if self.vector else result


def _right_hand_side(b: Any, caller: str) -> _Right:
    tensor = b if isinstance(b, Tensor) else as_tensor(np.asarray(b))
    if tensor.layout != torch.strided or tensor.dim() not in (1, 2):
        raise ValueError(
            f"{caller}: b must be a dense vector or matrix, got shape {tuple(tensor.shape)} and "
            f"layout {tensor.layout}"
        )
    promoted = torch.get_default_dtype() if isinstance(b, Tensor) else torch.float64
    tensor = tensor.to(computed_dtype(tensor.dtype, promoted, caller, "b")[1])
    vector = tensor.dim() == 1
    return _Right(tensor[:, None] if vector else tensor, vector)


def _info(numbers: list[Any], right: _Right, reads: int, tol: float | None) -> LstsqInfo:
    errors, condition, rank, sketch_rows, iterations, passes, method, recovered, met = numbers
    worst = errors.reshape(-1, 2).amax(1) if right.parts else errors
    name = _METHODS[method]
    return LstsqInfo(
        method=name,
        recovered=recovered,
        rank=rank,
        condition=condition,
        backward_error=worst.item() if right.vector else worst.numpy(),
        sketch_rows=sketch_rows,
        iterations=iterations,
        passes=passes + reads,
        converged=met or (name == "sketch_and_solve" and tol is None),
    )


def _open(A: Any, right: _Right, caller: str) -> tuple[Any, Matrix, _Right]:
    """A and b in one type; a complex column beside a real A becomes two real ones."""
    matrix = open_operator(A, caller)
    computed = computed_dtype(matrix.dtype, matrix.dtype, caller, "A")[1]
    wanted = right.tensor.dtype
    real = torch.promote_types(computed.to_real(), wanted.to_real())
    if real != computed.to_real():
        A = _widened(A, real.to_complex() if computed.is_complex else real, caller)
        matrix = open_operator(A, caller)
        computed = computed_dtype(matrix.dtype, matrix.dtype, caller, "A")[1]
    if wanted.is_complex and not computed.is_complex:
        parts = torch.view_as_real(right.tensor.resolve_conj().contiguous())
        return A, matrix, _Right(parts.reshape(len(parts), -1).to(real), right.vector, parts=True)
    return A, matrix, replace(right, tensor=right.tensor.to(computed))


def _tracked(A: Any, b: Tensor, caller: str) -> Tensor | None:
    """A, where a gradient is wanted."""
    dense = isinstance(A, Tensor) and A.layout == torch.strided
    wanted = b.requires_grad or (dense and A.requires_grad)
    if not (wanted and torch.is_grad_enabled()):
        return None
    if not dense:
        raise ValueError(
            f"{caller}: b must not require grad: gradients go through dense tensors A only; detach "
            "it"
        )
    tensor: Tensor = A.to(b.dtype)
    return tensor


def _widened(A: Any, dtype: torch.dtype, caller: str) -> Any:
    if isinstance(A, Tensor):
        return A.to(dtype)
    if is_scipy_sparse(A) or (isinstance(A, np.ndarray) and not isinstance(A, np.memmap)):
        return A.astype(torch.empty(0, dtype=dtype).numpy().dtype)
    raise TypeError(
        f"{caller}: b must not be of a wider type than A, which is read or called as it is, "
        f"got one that needs {dtype}"
    )


def _check_rows(right: _Right, m: int, caller: str) -> None:
    if right.tensor.shape[0] != m:
        raise ValueError(f"{caller}: b must have the {m} rows of A, got {right.tensor.shape[0]}")


def _roots_of(weights: Any, like: Tensor, caller: str) -> Tensor:
    tensor = as_weights(weights, len(like), caller)
    return tensor.to(like.device, like.dtype.to_real()).sqrt()[:, None]


def _with_weights(A: Any, roots: Tensor, caller: str) -> Any:
    """A with its rows times `roots`: a copy of what is in memory, else as it is read or called."""
    if isinstance(A, Tensor) and A.layout != torch.strided:
        csr = A.to_sparse_csr()
        starts, columns, values = csr.crow_indices(), csr.col_indices(), csr.values()
        scales = torch.repeat_interleave(roots[:, 0], starts.diff())
        return torch.sparse_csr_tensor(
            starts, columns, values * scales, size=csr.shape, check_invariants=False
        )
    if is_scipy_sparse(A):
        rows = A.tocsr()
        of_entries = np.repeat(roots[:, 0].numpy(), np.diff(rows.indptr))
        return type(rows)((rows.data * of_entries, rows.indices, rows.indptr), shape=rows.shape)
    if not isinstance(A, LinearOperator) and hasattr(A, "matmat"):
        A = LinearOperator.from_scipy(A)
    if isinstance(A, LinearOperator):
        inner = A
        return LinearOperator(
            A.shape,
            lambda X: roots * inner.matmat(X),
            lambda Y: inner.rmatmat(roots * Y),
            dtype=A.dtype,
            device=A.device,
        )
    source = None if isinstance(A, Tensor) else source_of(A, caller)
    if source is not None:
        return _WeightedRows(source, roots)
    return A * roots if isinstance(A, Tensor) else np.asarray(A) * roots.numpy()


class _WeightedRows:
    """Blocks of rows, each times its weights: read from the beginning every time."""

    def __init__(self, source: Source, roots: Tensor) -> None:
        self._source = source
        self._roots = roots

    def __iter__(self) -> Iterator[Any]:
        row = 0
        for block in tensors_of(self._source):
            rows = self._roots[row : row + len(block)]
            row += len(block)
            scaled = block.to(rows.dtype if not block.is_complex() else block.dtype) * rows
            yield scaled if self._source.device is not None else scaled.numpy()


def _sketch_arguments(
    sketch: str | SketchOperator, matrix: Matrix, seed: int, caller: str
) -> tuple[str, int | None, int, int]:
    if isinstance(sketch, str):
        if sketch not in OBLIVIOUS_KINDS:
            raise ValueError(
                f"{caller}: sketch must be one of {', '.join(OBLIVIOUS_KINDS)}, got {sketch!r}"
            )
        return sketch, None, 8, seed
    if not isinstance(sketch, SketchOperator):
        raise TypeError(
            f"{caller}: sketch must be the name of a kind or a SketchOperator, got {sketch!r}"
        )
    longer = max(matrix.data.shape)
    if sketch.cols != longer:
        raise ValueError(
            f"{caller}: sketch must have {longer} cols, the longer side of A, got {sketch.cols}"
        )
    return sketch.kind, sketch.rows, sketch.nonzeros, as_seed(sketch.seed, caller)


def _guaranteed(
    guarantee: str, method: str, sketch: str | SketchOperator, tol: float | None, shape: Any
) -> tuple[Method, str, int | None]:
    """The method, kind and rows that keep the guarantee."""
    caller, (m, n) = "lstsq", shape
    if guarantee != "linf":
        raise ValueError(f'{caller}: guarantee must be "linf" or None, got {guarantee!r}')
    if method != "auto" or sketch != "sparse_sign":
        raise ValueError(f"{caller}: guarantee chooses method and sketch: give neither")
    if m < n or tol is None or not 0 < tol < 1:
        raise ValueError(
            f'{caller}: guarantee="linf" needs a matrix with no fewer rows than columns and tol '
            f"between 0 and 1, got shape {(m, n)} and tol={tol}"
        )
    rows = math.ceil(n * math.log(m / _FAILURE_PROBABILITY) ** 3 / tol**2)
    return ("sketch_and_solve", "srht", rows) if rows < m else ("auto", "sparse_sign", None)
