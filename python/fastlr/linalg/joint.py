"""Matrices that are approximated together: how well, and which of them."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fastlr.linalg._arguments import Seed, as_integer, as_seed, as_tolerance
from fastlr.linalg._arrays import Adapted, adapt
from fastlr.linalg._autocast import as_written

Bound = Literal["weyl", "residual", "estimate"]

# The first guess of a rank that is to be found.
_FIRST_RANK = 10


@dataclass(frozen=True)
class JointSVDBounds:
    """Upper bounds of the error of a joint truncated SVD; returned by `joint_svd_bounds`.

    Attributes
    ----------
    weyl, residual, estimate : float
        Bounds of ‖A − A_rank‖_F / ‖A‖_F, each at most the one before.
    norm : float
        ‖A‖_F of all matrices side by side.
    rank : int

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> bounds = la.joint_svd_bounds([torch.eye(4)[:, :2], torch.eye(4)[:, 2:]], 2, seed=0)
    >>> round(bounds.estimate, 4), bounds.norm
    (0.7071, 2.0)
    """

    weyl: float
    residual: float
    estimate: float
    norm: float
    rank: int


@dataclass(frozen=True)
class MatrixClusters:
    """Groups of matrices, each with a basis that its members share; returned by `cluster_matrices`.

    Attributes
    ----------
    labels : array of int64, shape (N,)
        The cluster of each matrix. Clusters are numbered in the order of their first members.
    clusters : list of list of int
        The members of each cluster, ascending.
    bases : list of array, shape (m, rank) or, with ``axis=0``, (rank, n)
        Of each cluster, orthonormal columns (rows with ``axis=0``).
    coefficients : list of array, shape (rank, n_j) or, with ``axis=0``, (m_j, rank)
        Of each matrix: ``matrices[j] ≈ bases[labels[j]] @ coefficients[j]``, or with ``axis=0``
        ``coefficients[j] @ bases[labels[j]]``.
    predicted_errors : list of float
        The bound for each cluster, by which it was decided: of the Frobenius norm of the error of
        the best approximation of this rank, relative to that of the cluster.
    errors : list of float
        The errors that these bases and coefficients do have, measured.
    rank : int
    bound : str

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> a, b = torch.eye(6)[:, :2], torch.eye(6)[:, 2:]
    >>> found = la.cluster_matrices([a, b, 2 * a, a + a.flip(1)], 0.1, rank=2, seed=0)
    >>> found.clusters
    [[0, 2, 3], [1]]
    >>> bool(torch.dist(found.bases[0] @ found.coefficients[2], 2 * a) < 1e-5)
    True
    """

    labels: Any
    clusters: list[list[int]]
    bases: list[Any]
    coefficients: list[Any]
    predicted_errors: list[float]
    errors: list[float]
    rank: int
    bound: str


@as_written
def joint_svd_bounds(
    matrices: Iterable[Any],
    rank: int,
    *,
    axis: int = 1,
    oversample: int = 10,
    power_iters: int = 2,
    seed: Seed = None,
) -> JointSVDBounds:
    """Bound the error of one truncated SVD for several matrices, from one small factor of each.

    Parameters
    ----------
    matrices : sequence of array or Tensor
        A₁ … A_N, of one kind and dtype, with the same number of rows (of columns with ``axis=0``).
        float16 and bfloat16 are computed in float32. Never written to.
    rank : int
        Of the joint approximation, between 1 and the smaller dimension of all matrices together.
    axis : {0, 1}
        How the matrices lie in A, as in ``numpy.concatenate``: 1 side by side, 0 one below the
        other; −1 and −2 count from the end.
    oversample : int
        Columns of the factors beyond `rank`.
    power_iters : int
        Subspace iterations behind each factor. The bounds hold for any factors; better ones make
        them tighter.
    seed : int, torch.Generator or None
        Of the sketches.

    Returns
    -------
    JointSVDBounds
        ``weyl``, ``residual`` and ``estimate``: upper bounds of ‖A − A_rank‖_F / ‖A‖_F for
        A = [A₁ … A_N] and its best approximation A_rank, each at most the one before. 0.0 for zero
        matrices.

    Raises
    ------
    ValueError
        No matrices, unequal heights, a rank out of range, a negative `oversample` or
        `power_iters`, an entry that is not finite (its matrix and index are named).
    TypeError
        Matrices of several kinds, dtypes or devices, a number that is not an integer.

    Notes
    -----
    With w = rank + oversample, every A_j is replaced by B_j = A_j·V_j of w columns, V_j
    orthonormal, and ρ_j = ‖A_j − B_j·V_jᴴ‖_F, so that A·Aᴴ = Σ B_j·B_jᴴ plus something
    semidefinite of trace Σ ρ_j². What rank `rank` captures of B is captured of A, for any V_j:

    - ``weyl``: σ_k(B) ≥ max_j σ_k(B_j), from the singular values of each matrix alone;
    - ``residual``: what B has outside the leading left singular vectors of one B_i, for the best i;
    - ``estimate``: the singular values of B.

    All are computed as sums of positive terms, never as ‖A‖² − captured, and 20·√w·u is added for
    rounding: they hold for exactly low-rank matrices too.

    Cost: 2·power_iters + 4 passes over each matrix, 2·m·n_j·w flops each, in parallel; then N·w
    operations for ``weyl``, 4·m·rank·w·N² flops for ``residual`` and O(m·N·w·min(m, N·w)) for
    ``estimate``. Not differentiable.

    Source: Shamrai, "Concatenated matrix SVD: compression bounds, incremental approximation, and
    error-constrained clustering", arXiv:2601.11626 (2026).

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> shared = la.random_matrix(80, 3, seed=0)
    >>> matrices = [shared @ la.random_matrix(3, 50, seed=j) for j in range(1, 6)]
    >>> bounds = la.joint_svd_bounds(matrices, 3, seed=0)
    >>> bounds.estimate < 1e-5, bounds.weyl > 0.8
    (True, True)
    """
    caller = "joint_svd_bounds"
    family = _open(matrices, axis, caller)
    rank = family.checked_rank(rank)
    oversample = _non_negative(oversample, caller, "oversample")
    iterations = _non_negative(power_iters, caller, "power_iters")
    factors = family.factors(rank + oversample, iterations, as_seed(seed, caller))
    bounds = torch.ops.fastlr.joint_bounds(*factors, min(rank, family.height), family.roundoff)
    weyl, residual, estimate = bounds.tolist()
    return JointSVDBounds(weyl, residual, estimate, math.hypot(*factors[3].tolist()), rank)


@as_written
def cluster_matrices(
    matrices: Iterable[Any],
    tol: float,
    *,
    bound: Bound = "estimate",
    rank: int | None = None,
    axis: int = 1,
    oversample: int = 10,
    power_iters: int = 2,
    seed: Seed = None,
) -> MatrixClusters:
    """Find the matrices that can share the basis of one truncated SVD within a tolerance.

    Parameters
    ----------
    matrices : sequence of array or Tensor
        As for `joint_svd_bounds`.
    tol : float
        Clusters are merged only while the bound of their joint error, relative to their norm, is
        `tol` at most; 0 < tol < 1.
    bound : {"estimate", "residual", "weyl"}
        The bound that decides, see Notes. Loose ones merge less, never wrongly.
    rank : int, optional
        Of the approximation of every cluster. If None, the largest of the ranks with which the
        matrices meet `tol` alone, so that each of them does.
    axis, oversample, power_iters, seed
        As for `joint_svd_bounds`.

    Returns
    -------
    MatrixClusters
        ``labels``, ``clusters``, the ``bases`` and ``coefficients`` of the approximations, of the
        kind, dtype and device of the matrices, their ``predicted_errors`` and measured ``errors``.
        The error of a cluster of several matrices is `tol` at most; that of a single one may be
        larger where `rank` is given.

    Raises
    ------
    ValueError
        A `tol` or `bound` out of range; see `joint_svd_bounds` for all else.
    TypeError
        See `joint_svd_bounds`.

    Notes
    -----
    Of all pairs of clusters the one with the smallest predicted error is merged, the first one
    among equals, until no prediction is within `tol`. Every merge saves the m·rank numbers of one
    basis.

    - "weyl" compares singular values: O(N²·w) in all. The error of a union cannot look smaller than
      the smaller of two matrices, even where they are equal: it merges what is small beside
      something large.
    - "residual" projects on the basis of each matrix: 4·m·rank·w·N² flops once. It merges what lies
      in the space of one of the members.
    - "estimate" keeps a factor of w columns for each cluster, that of a union is the truncated SVD
      of two; what is dropped stays in the bound. Candidates are ranked by the eigenvalues of a
      2w × 2w Gram matrix, which do not see errors below 1e-7, and a union is confirmed by the
      singular values themselves: O(m·w²) flops a merge, 2·m·w² + O(w³) a pair.

    One more pass over the matrices makes the coefficients, another one measures the errors. With
    ``rank=None`` factors of 10, 20, 40, … columns are computed until all matrices meet `tol`.

    Source: Shamrai, arXiv:2601.11626 (2026).

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> spaces = [la.random_matrix(60, 4, seed=0), la.random_matrix(60, 4, seed=1)]
    >>> matrices = [spaces[j % 2] @ la.random_matrix(4, 30, seed=2 + j) for j in range(6)]
    >>> found = la.cluster_matrices(matrices, 0.05, seed=0)
    >>> found.clusters, found.rank
    ([[0, 2, 4], [1, 3, 5]], 4)
    >>> max(found.errors) < 1e-5
    True
    """
    caller = "cluster_matrices"
    family = _open(matrices, axis, caller)
    tol = as_tolerance(tol, caller)
    if bound not in ("weyl", "residual", "estimate"):
        raise ValueError(f'{caller}: bound must be "weyl", "residual" or "estimate", got {bound!r}')
    oversample = _non_negative(oversample, caller, "oversample")
    iterations = _non_negative(power_iters, caller, "power_iters")
    key = as_seed(seed, caller)
    rank = family.rank_for(tol, iterations, key) if rank is None else family.checked_rank(rank)
    factors = family.factors(rank + oversample, iterations, key)
    labels, predicted, bases = torch.ops.fastlr.cluster_matrices(
        *factors, min(rank, family.height), tol, family.roundoff, bound
    )
    owners = labels.tolist()
    clusters = [
        [j for j, owner in enumerate(owners) if owner == label] for label in range(len(predicted))
    ]
    bases = bases.to(family.tensors[0].dtype)
    coefficients = [
        bases[label].mH.resolve_conj() @ A for label, A in zip(owners, family.tensors, strict=True)
    ]
    norms = factors[3].tolist()
    return MatrixClusters(
        labels=family.first.restore(labels),
        clusters=clusters,
        bases=[family.restore(basis) for basis in bases],
        coefficients=[family.restore(part) for part in coefficients],
        predicted_errors=predicted.tolist(),
        errors=[
            family.error(members, bases[label], coefficients, norms)
            for label, members in enumerate(clusters)
        ],
        rank=rank,
        bound=bound,
    )


@dataclass(frozen=True)
class _Family:
    """Matrices of one type and height, side by side."""

    tensors: list[Tensor]
    first: Adapted
    stacked: bool  # transposed, to lie side by side
    caller: str

    @property
    def height(self) -> int:
        return self.tensors[0].shape[0]

    @property
    def roundoff(self) -> float:
        return torch.finfo(self.tensors[0].dtype).eps / 2

    def checked_rank(self, rank: int) -> int:
        rank = as_integer(rank, self.caller, "rank")
        width = sum(A.shape[1] for A in self.tensors)
        most = min(self.height, width)
        if not 1 <= rank <= max(most, 1):
            raise ValueError(
                f"{self.caller}: rank must be between 1 and min(m, n) = {most} of all matrices "
                f"together, got {rank}"
            )
        return rank

    def factors(self, width: int, power_iters: int, seed: int) -> tuple[Tensor, ...]:
        """U, S, rest and norm of each matrix: see `JointFactors` of the core."""
        factors: tuple[Tensor, ...] = torch.ops.fastlr.joint_factors(
            self.tensors, width, power_iters, seed, self.caller
        )
        return factors

    def rank_for(self, tol: float, power_iters: int, seed: int) -> int:
        """Return the smallest rank with which each matrix alone is within the tolerance."""
        width = _FIRST_RANK
        while True:
            _, S, rest, _ = self.factors(width, power_iters, seed)
            left = torch.cat([rest[:, None], S.flip(1)], 1).square().cumsum(1).sqrt()
            # left[:, k]: what is outside of the leading width − k triplets.
            most_dropped = int((left <= tol).sum(1).min()) - 1
            if most_dropped >= 0 or width >= self.height:
                return max(1, S.shape[1] - max(most_dropped, 0))
            width *= 2

    def error(
        self, members: list[int], basis: Tensor, coefficients: list[Tensor], norms: list[float]
    ) -> float:
        """Measure what is left of some of the matrices, relative to their norm."""
        left = [
            norms[j] * _norm((self.tensors[j] - basis @ coefficients[j]) / norms[j])
            for j in members
            if norms[j] > 0
        ]
        return math.hypot(*left) / math.hypot(*(norms[j] for j in members)) if left else 0.0

    def restore(self, result: Tensor) -> Any:
        return self.first.restore(result.mT if self.stacked else result)


def _norm(A: Tensor) -> float:
    wide = torch.complex128 if A.is_complex() else torch.float64
    return float(torch.linalg.vector_norm(A, dtype=wide))


def _non_negative(value: Any, caller: str, name: str) -> int:
    number = as_integer(value, caller, name)
    if number < 0:
        raise ValueError(f"{caller}: {name} must be non-negative, got {number}")
    return number


def _open(matrices: Iterable[Any], axis: int, caller: str) -> _Family:
    if axis not in (0, 1, -1, -2):
        raise ValueError(f"{caller}: axis must be 0 or 1, got {axis}")
    stacked = axis in (0, -2)
    parts = [adapt(A, caller, f"matrices[{j}]", complex_=True) for j, A in enumerate(matrices)]
    if not parts:
        raise ValueError(f"{caller}: matrices must not be empty")
    first = parts[0]
    for j, part in enumerate(parts):
        _check_agreement(part, first, f"{caller}: matrices[{j}]", stacked)
    tensors = [part.tensor.detach().resolve_conj() for part in parts]
    return _Family([A.mT if stacked else A for A in tensors], first, stacked, caller)


def _check_agreement(part: Adapted, first: Adapted, what: str, stacked: bool) -> None:
    shared, size = ("columns", 1) if stacked else ("rows", 0)
    if part.tensor.shape[size] != first.tensor.shape[size]:
        raise ValueError(
            f"{what} must have the {first.tensor.shape[size]} {shared} of matrices[0], "
            f"got {part.tensor.shape[size]}"
        )
    of_part, of_first = (
        (each.dtype, "NumPy" if each.numpy else each.tensor.device) for each in (part, first)
    )
    if of_part != of_first:
        raise TypeError(
            f"{what} must be of the dtype and kind of matrices[0], {of_first[0]} and "
            f"{of_first[1]}, got {of_part[0]} and {of_part[1]}"
        )
