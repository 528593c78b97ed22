"""Rows drawn together, by the volume that they span: determinantal point processes."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastlr.linalg._arguments import Seed, as_integer, as_seed, at_least
from fastlr.linalg._arrays import Adapted, adapt, as_weights, restored
from fastlr.linalg._autocast import as_written
from fastlr.linalg.random import random_matrix

# Columns of the seed's random matrix, beyond all that sketches draw from.
_OF_PROCESS, _OF_OTHERS, _OF_DIRECTIONS = (2**31 + 1 + column for column in range(3))


@as_written
def projection_dpp(Q: Any, *, seed: Seed = None) -> Any:
    """Draw k rows of an orthonormal basis, with probability abs(det(Q[rows]))².

    The determinantal point process of the projection Q·Qᴴ: row i is among the rows with probability
    ‖Q[i]‖², its leverage score, and rows that are alike exclude each other.

    Parameters
    ----------
    Q : array or Tensor, shape (n, k)
        Real or complex, with orthonormal columns. Computed in float64. Never written to.
    seed : int, torch.Generator or None
        One uniform number is drawn from it for each row.

    Returns
    -------
    array or Tensor of int64, shape (k,)
        Distinct rows, ascending, of the kind and on the device of Q.

    Raises
    ------
    ValueError
        Not a matrix; an entry that is not finite; ‖QᴴQ − I‖_F above 10·√k·u·√n, which is what
        Householder QR keeps.
    TypeError
        A sparse matrix.

    See Also
    --------
    volume_sample : for columns that are not orthonormal, and other numbers of rows.
    leverage_scores

    Notes
    -----
    By the chain rule: each row is drawn with a probability proportional to the squared part of
    ``Q[i]`` that is orthogonal to the rows drawn before, so that no step rejects. Rounding
    changes the probability of each step by some k·u. k reads of Q; 2·n·k² flops, and as many for
    checking Q. Not differentiable.

    Source: Hough, Krishnapur, Peres, Virág, "Determinantal processes and independence", Probability
    Surveys 3 (2006).

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> Q = torch.tensor([[0.6, 0.0], [0.8, 0.0], [0.0, 1.0]], dtype=torch.float64)
    >>> draws = [la.projection_dpp(Q, seed=seed).tolist() for seed in range(1000)]
    >>> draws.count([0, 1]), abs(draws.count([0, 2]) - 360) < 60
    (0, True)
    """
    caller = "projection_dpp"
    number = as_seed(seed, caller)
    adapted = _opened(Q, caller, "Q")
    basis = _double(adapted)
    _check_orthonormal(basis, adapted, caller)
    return adapted.restore(_ascending(_process(basis, number), basis))


@as_written
def volume_sample(A: Any, size: int, *, seed: Seed = None) -> Any:
    """Draw rows of a matrix with a probability proportional to the square of their volume.

    Parameters
    ----------
    A : array or Tensor, shape (n, d)
        Real or complex. Computed in float64. Never written to.
    size : int
        Rows to draw, between 1 and n, with probabilities proportional to

        - det(A[rows]ᴴ·A[rows]) for `size` ≥ d: rows for least squares;
        - det(A[rows]·A[rows]ᴴ) for `size` ≤ d: rows that all others are combinations of, nearly.

        Both are the same for `size` = d.
    seed : int, torch.Generator or None
        For `size` ≥ d, a larger sample of a seed contains the smaller ones.

    Returns
    -------
    array or Tensor of int64, shape (size,)
        Distinct rows, ascending, of the kind and on the device of A.

    Raises
    ------
    ValueError
        Not a matrix, a `size` out of range, an entry that is not finite; a rank of A below both
        `size` and d, where no rows have a volume.
    TypeError
        A sparse matrix, a `size` that is not an integer.

    See Also
    --------
    volume_rescaled_sample : more rows than columns, when some rows count more than others.
    interpolative : rows that are chosen without chance.

    Notes
    -----
    For A of full column rank and `size` ≥ d, the solution x of ``A[rows]·x ≈ b[rows]`` is unbiased,
    E[x] = A⁺·b, and E‖b − A·x‖² ≤ (d + 1)·min‖b − A·x‖², with equality for `size` = d if every d
    rows are independent. For k = `size` ≤ d, the projection P on the space of the rows has
    E‖A − A·P‖_F² = (k + 1)·e_{k+1}/e_k ≤ (k + 1)·‖A − A_k‖_F², where e_j is the elementary
    symmetric polynomial of the squared singular values and A_k the best approximation of rank k.

    `projection_dpp` draws min(size, d) rows, of the left singular vectors of A: of all for `size` ≥
    d, where the other rows are drawn uniformly without replacement; of k of them for `size` < d,
    chosen with probabilities proportional to the products of their squared singular values.
    6·n·d² flops, and 2·n·k² for the rows.

    Sources: Deshpande, Rademacher, Vempala, Wang, "Matrix approximation and projective clustering
    via volume sampling", SODA 2006; Kulesza, Taskar, "k-DPPs: fixed-size determinantal point
    processes", ICML 2011; Dereziński, Warmuth, "Reverse iterative volume sampling for linear
    regression", JMLR 19 (2018). Not differentiable.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> A = torch.ones(1000, 2, dtype=torch.float64)
    >>> A[7, 1] = 5.0  # the only row that differs
    >>> 7 in la.volume_sample(A, 2, seed=0)
    True
    """
    caller = "volume_sample"
    number = as_seed(seed, caller)
    adapted = _opened(A, caller, "A")
    n, d = adapted.tensor.shape
    size = as_integer(size, caller, "size")
    if not 1 <= size <= n:
        raise ValueError(f"{caller}: size must be between 1 and n = {n}, got {size}")
    vectors, values = _singular(_near_one(_double(adapted), by_columns=size >= d), adapted.dtype)
    if len(values) < min(size, d):
        raise ValueError(
            f"{caller}: A must have a rank of at least {min(size, d)} for {size} rows that span a "
            f"volume, got rank {len(values)}"
        )
    if size < len(values):
        vectors = vectors[:, _directions(values, size, number)]
    rows = _process(vectors, number)
    rows += _others(n, rows, size - len(rows), number)
    return adapted.restore(_ascending(rows, vectors))


class RescaledSample(NamedTuple):
    """Rows and their weights in least squares.

    Attributes
    ----------
    rows : array of int64, shape (size,)
        In the order of drawing; some may occur several times.
    weights : array, shape (size,)
        Positive; `lstsq` takes them.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> rows, weights = la.volume_rescaled_sample(torch.ones(100, 1).double(), 4, seed=0)
    >>> [round(weight, 6) for weight in weights.tolist()]
    [25.0, 25.0, 25.0, 25.0]
    """

    rows: Any
    weights: Any


@as_written
def volume_rescaled_sample(
    A: Any, size: int, *, weights: Any = None, seed: Seed = None
) -> RescaledSample:
    """Draw rows and weights for a least-squares problem of which few entries of b are to be known.

    With ``rows, w = la.volume_rescaled_sample(A, size)``, ``la.lstsq(A[rows], b[rows], weights=w)``
    estimates the minimiser of ‖A·x − b‖² without bias, for any b.

    Parameters
    ----------
    A : array or Tensor, shape (n, d)
        Real or complex, of full column rank. Computed in float64. Never written to.
    size : int
        Rows to draw, at least d; with replacement, so that n is no limit.
    weights : array or Tensor, shape (n,), optional
        Non-negative: the problem is to minimise ``Σ weights·abs(A·x − b)²``. All are 1 if None.
    seed : int, torch.Generator or None
        A larger sample of a seed begins with the rows of the smaller ones.

    Returns
    -------
    RescaledSample
        ``rows`` and ``weights``, of the kind and on the device of A; weights in its precision, of
        float32 at least.

    Raises
    ------
    ValueError
        Not a matrix, a rank below d, a `size` below d, an entry that is not finite, a negative
        weight.
    TypeError
        A sparse matrix, a `size` that is not an integer.

    See Also
    --------
    volume_sample : rows that occur once, without weights.
    lstsq

    Notes
    -----
    With ℓ the leverage scores of A, its rows times √weights: d rows by `projection_dpp`, the
    others independently with probabilities ℓ/d; the weight of a row is weights·d/(size·ℓ). So rows
    have the density det(Σ wᵢ·aᵢ·aᵢᴴ) with respect to independent ones. Then

    - E[x] is the minimiser, and Σ wᵢ·aᵢ·aᵢᴴ has the mean that it is to estimate;
    - E‖x − E[x]‖² ≤ C·min‖A·x − b‖², norms with the weights and after A, where C is d at most for
      every `size`, and size·d/((1 − δ)·(size − d))² + d²·exp(−δ²·(size − d)/(2·d)) for any δ < 1:
      about d/size, once `size` is a few times d·ln d.

    6·n·d² flops, and 2·n·d² for the rows. Not differentiable.

    Sources: Nouy, Michel, "Weighted least-squares approximation with determinantal point processes
    and generalized volume sampling", arXiv:2312.14057; Dereziński, Warmuth, Hsu, "Leveraged volume
    sampling for linear regression", NeurIPS 2018.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> t = torch.linspace(-1, 1, 10_000, dtype=torch.float64)
    >>> A = t[:, None] ** torch.arange(6)
    >>> b = torch.exp(t)
    >>> rows, weights = la.volume_rescaled_sample(A, 40, seed=0)
    >>> x = la.lstsq(A[rows], b[rows], weights=weights).x
    >>> bool((A @ x - b).norm() < 1.5 * la.lstsq(A, b).residual.norm())
    True
    """
    caller = "volume_rescaled_sample"
    number = as_seed(seed, caller)
    adapted = _opened(A, caller, "A")
    n, d = adapted.tensor.shape
    if not 1 <= d <= n:
        raise ValueError(f"{caller}: A must have between 1 and n = {n} columns, got {d}")
    size = at_least(size, d, caller, "size")
    measure = _measure(weights, adapted.tensor, caller)
    # Twice: the products are to be neither too large nor too small on the way.
    weighted = _near_one(_double(adapted), by_columns=True) * measure.sqrt()[:, None]
    basis, values = _singular(_near_one(weighted, by_columns=True), adapted.dtype)
    if len(values) < d:
        raise ValueError(f"{caller}: A must have full column rank {d}, got rank {len(values)}")
    rows = _process(basis, number)
    scores = _squared_norms(basis)
    rows += _picked(scores, _uniform(size - d, number, _OF_OTHERS)).tolist()
    drawn = torch.tensor(rows, device=basis.device)
    found = (measure[drawn] * (d / size) / scores[drawn]).to(adapted.tensor.dtype.to_real())
    return RescaledSample(adapted.restore(drawn), restored(found, found.dtype, numpy=adapted.numpy))


def _process(Q: Tensor, seed: int) -> list[int]:
    """Rows of the projection process of orthonormal columns, in the order of drawing."""
    k = Q.shape[1]
    left = _squared_norms(Q)
    span = Q.new_zeros(k, k)
    rows = []
    for step, draw in enumerate(_uniform(k, seed, _OF_PROCESS)):
        row = int(_picked(left, draw))
        before, new = span[:step], Q[row]
        for _ in range(2):  # once more, for what rounding left
            new = new - (before.conj() @ new) @ before
        span[step] = new / torch.linalg.vector_norm(new)
        left = (left - (Q @ span[step].conj()).abs().square()).clamp_(min=0)
        left[row] = 0  # for good: nothing is added to it
        rows.append(row)
    return rows


def _picked(weights: Tensor, draws: Tensor) -> Tensor:
    """The rows at which the sums of the weights reach the draws, which are uniform on (0, 1]."""
    sums = weights.cumsum(0)
    # A draw is not 0: the first sum that reaches it belongs to a row of positive weight.
    return torch.searchsorted(sums, draws.to(sums.device) * sums[-1])


def _others(n: int, rows: list[int], count: int, seed: int) -> list[int]:
    """Further rows, uniformly without replacement: those of the smallest of n numbers."""
    if count == 0:
        return []
    draws = _uniform(n, seed, _OF_OTHERS)
    draws[rows] = math.inf
    found: list[int] = draws.topk(count, largest=False).indices.tolist()
    return found


def _directions(values: Tensor, size: int, seed: int) -> list[int]:
    """Draw `size` singular vectors, with probabilities ∝ the products of their σ²."""
    rank = len(values)
    logs = 2 * values.log().cpu()
    # Logarithms of the elementary symmetric polynomials: row m has those of the first m values.
    sums = torch.full((rank + 1, size + 1), -math.inf, dtype=torch.float64)
    sums[:, 0] = 0
    for m in range(rank):
        sums[m + 1, 1:] = torch.logaddexp(sums[m, 1:], sums[m, :-1] + logs[m])
    table, powers = sums.tolist(), logs.tolist()
    draws = _uniform(rank, seed, _OF_DIRECTIONS).log().tolist()
    chosen: list[int] = []
    for m in reversed(range(rank)):
        left = size - len(chosen)
        if left and draws[m] <= table[m][left - 1] + powers[m] - table[m + 1][left]:
            chosen.append(m)
    return chosen


def _uniform(count: int, seed: int, column: int) -> Tensor:
    """Numbers on (0, 1], each a function of the seed, its index and the column."""
    return random_matrix(
        count, 1, kind="uniform", seed=seed, column_offset=column, dtype=torch.float64
    )[:, 0]


def _singular(A: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Left singular vectors and singular values, those that are not zero to rounding."""
    n, d = A.shape
    Q, R = torch.linalg.qr(A)
    U, S, _ = torch.linalg.svd(R, full_matrices=False)
    # What the entries were rounded to, and what the sums over n rows add.
    relative = 10 * d * torch.finfo(dtype).eps + math.sqrt(n * d) * torch.finfo(A.dtype).eps
    rank = int((relative * S[:1] < S).sum())
    return Q @ U[:, :rank], S[:rank]


def _near_one(A: Tensor, *, by_columns: bool) -> Tensor:
    """A with its columns, or the whole, times powers of two: volumes change by a factor at most."""
    largest = A.abs().amax(0)
    exponents = torch.frexp(largest if by_columns else largest.amax()).exponent
    # Neither the factor nor its inverse overflows.
    return A * torch.exp2(-exponents.clamp(-1022, 1022).to(torch.float64))


def _squared_norms(Q: Tensor) -> Tensor:
    return Q.abs().square().sum(1)


def _ascending(rows: list[int], like: Tensor) -> Tensor:
    return torch.tensor(sorted(rows), dtype=torch.int64, device=like.device)


def _opened(A: Any, caller: str, name: str) -> Adapted:
    adapted = adapt(A.detach() if isinstance(A, Tensor) else A, caller, name, complex_=True)
    finite = torch.isfinite(adapted.tensor)
    if not bool(finite.all()):
        index = tuple(finite.logical_not().nonzero()[0].tolist())
        value = adapted.tensor[index].item()
        raise ValueError(f"{caller}: {name} must be finite, got {value} at index {index}")
    return adapted


def _double(adapted: Adapted) -> Tensor:
    """In float64: probabilities are differences, and ranks those of the data."""
    A = adapted.tensor.resolve_conj()
    return A.to(torch.complex128 if A.is_complex() else torch.float64)


def _measure(weights: Any, like: Tensor, caller: str) -> Tensor:
    n = len(like)
    if weights is None:
        return torch.ones(n, dtype=torch.float64, device=like.device)
    return as_weights(weights, n, caller).to(like.device, torch.float64)


def _check_orthonormal(Q: Tensor, given: Adapted, caller: str) -> None:
    n, k = Q.shape
    error = float(torch.linalg.matrix_norm(Q.mH @ Q - torch.eye(k, dtype=Q.dtype, device=Q.device)))
    # Half types were computed in float32, and rounded once.
    unit = max(
        torch.finfo(given.dtype).eps, math.sqrt(max(n, 1)) * torch.finfo(given.tensor.dtype).eps
    )
    allowed = 5 * math.sqrt(k) * unit
    if error > allowed:
        raise ValueError(
            f"{caller}: Q must have orthonormal columns, to {allowed:.1e} in the Frobenius norm of "
            f"QᴴQ − I, got {error:.1e}"
        )
