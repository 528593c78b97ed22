"""The best approximation of a weight by one of low rank, seen through the layer's inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import fastlr.linalg as la
from fastlr.nn.compress.gram import Gram, power_of_two_above
from fastlr.nn.modules.dense import high_precision

_ROUNDOFF = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class Truncation:
    """W' = basis @ projected, of rank r.

    Attributes
    ----------
    basis : Tensor of shape (o, r)
        Orthonormal columns, float64.
    projected : Tensor of shape (r, i)
        basisᵀ W, float64.
    relative_error : float
        ‖(W − W')X‖² / ‖WX‖², the energy of the directions that were left out (0 when ‖WX‖ = 0).

    Examples
    --------
    >>> import torch
    >>> from fastlr.nn.compress import solve
    >>> truncation = solve(torch.diag(torch.tensor([1.0, 2.0, 0.0]))).truncate(2)
    >>> truncation.basis.shape, truncation.projected.shape, truncation.relative_error
    (torch.Size([3, 2]), torch.Size([2, 3]), 0.0)
    """

    basis: Tensor
    projected: Tensor
    relative_error: float


@dataclass(frozen=True)
class Solution:
    """All the best approximations of one weight, nested in one ordered basis.

    Attributes
    ----------
    weight : Tensor of shape (o, i)
        W in float64.
    basis : Tensor of shape (o, k), k = min(o, i)
        Orthonormal output directions, by decreasing energy; those without any energy (inputs never
        reach them) follow by decreasing plain weight energy.
    energies : Tensor of shape (k,)
        The share of ‖WX‖² in each direction; they sum to 1 (or to 0 when ‖WX‖ = 0).
    total : float
        ‖WX‖².

    Examples
    --------
    >>> import torch
    >>> from fastlr.nn.compress import solve
    >>> solution = solve(torch.diag(torch.tensor([1.0, 3.0])))
    >>> [round(share, 4) for share in solution.energies.tolist()], round(solution.total, 4)
    ([0.9, 0.1], 10.0)
    """

    weight: Tensor
    basis: Tensor
    energies: Tensor
    total: float

    def relative_error(self, rank: int) -> float:
        """The relative squared output error at `rank`: the sum of the energies beyond it."""
        return float(self.energies[rank:].flip(0).sum())

    def truncate(self, rank: int) -> Truncation:
        """The best approximation of rank `rank`: 2·o·i·r flops.

        Raises
        ------
        ValueError
            If `rank` is not between 1 and min(o, i).
        """
        limit = self.basis.shape[1]
        if not 1 <= rank <= limit:
            raise ValueError(f"truncate: rank must be between 1 and {limit}, got {rank}")
        basis = self.basis[:, :rank].contiguous()
        return Truncation(basis, basis.T @ self.weight, self.relative_error(rank))


def solve(weight: Tensor, gram: Gram | Tensor | None = None) -> Solution:
    """Minimise ‖(W − W')X‖ over all W' of rank r, for every r at once.

    Parameters
    ----------
    weight : Tensor of shape (o, i)
        W, of any float dtype.
    gram : Gram or Tensor of shape (i, i), optional
        G = X Xᵀ, up to a factor; None stands for the identity. It may be singular.

    Returns
    -------
    Solution

    Raises
    ------
    ValueError
        If the shapes do not fit, or `weight` or `gram` has an entry that is not finite.

    Notes
    -----
    The minimiser is W' = U Uᵀ W with U the leading eigenvectors of C = W G Wᵀ, and the error is the
    sum of the eigenvalues left out: principal components of the layer's output [1]_, the same
    optimum that whitening by a Cholesky factor of G gives [2]_, without the factor and without an
    inverse. Where o > i the same U comes from the i × i eigenproblem of (W R)ᵀ W R with G = R Rᵀ,
    R from the eigenvalues of G above i·u·λmax. Directions below the rounding level of C
    (max(o, i)·u·λmax) carry no energy that could be told from zero; they are ranked by ‖uᵀW‖, so
    that W' → W on all inputs as r grows. All in float64: 2·o·i·(o + i) flops and one eigenproblem
    of size o where o ≤ i; two of size i (one shared by the layers that read the same input) where
    o > i.

    References
    ----------
    .. [1] P. Chen, H.-F. Yu, I. Dhillon, C.-J. Hsieh, "DRONE: Data-aware low-rank compression for
       large NLP models", NeurIPS 2021.
    .. [2] X. Wang, Y. Zheng, Z. Wan, M. Zhang, "SVD-LLM: Truncation-aware singular value
       decomposition for large language model compression", ICLR 2025.

    Examples
    --------
    >>> import torch
    >>> from fastlr.nn.compress import solve
    >>> solution = solve(torch.diag(torch.tensor([2.0, 1.0])), torch.diag(torch.tensor([1.0, 9.0])))
    >>> [round(share, 4) for share in solution.energies.tolist()]  # 9·1² against 1·2²
    [0.6923, 0.3077]
    >>> round(solution.truncate(1).relative_error, 4)
    0.3077
    """
    if weight.ndim != 2 or 0 in weight.shape:
        raise ValueError(f"solve: weight must be a non-empty matrix, got {tuple(weight.shape)}")
    if gram is not None and not isinstance(gram, Gram):
        gram = Gram(gram)
    dense = high_precision(weight)
    if gram is not None and len(gram.matrix) != dense.shape[1]:
        raise ValueError(
            f"solve: gram must be {dense.shape[1]}×{dense.shape[1]} for a weight of shape "
            f"{tuple(dense.shape)}, got {tuple(gram.matrix.shape)}"
        )
    require_finite("solve: weight", dense)
    if gram is not None:
        require_finite("solve: gram", gram.matrix)

    # Unit scale: no square of an entry can overflow, and powers of two round nothing.
    scale = power_of_two_above(dense)
    scaled = dense / scale
    find = _from_outputs if dense.shape[0] <= dense.shape[1] else _from_inputs
    basis, values, gram_scale = find(scaled, gram)
    total = float(values.sum())
    energies = values / total if total > 0 else torch.zeros_like(values)
    return Solution(dense, basis, energies, total * gram_scale * scale * scale)


def require_finite(what: str, matrix: Tensor) -> None:
    """Raise ValueError naming the first entry of `matrix` that is not finite."""
    if bool(torch.isfinite(matrix).all()):
        return
    row, column = (int(k) for k in (~torch.isfinite(matrix)).nonzero()[0])
    raise ValueError(
        f"{what} has the value {float(matrix[row, column])} at index ({row}, {column})"
    )


def _from_outputs(weight: Tensor, gram: Gram | None) -> tuple[Tensor, Tensor, float]:
    """Eigenvectors and eigenvalues of W G Wᵀ, descending, for o ≤ i."""
    gram_scale = 1.0
    if gram is None:
        moment = weight @ weight.T
    else:
        gram_scale = gram.scale
        moment = weight @ (gram.matrix / gram_scale) @ weight.T
    values, basis = _descending_eigh(moment)
    silent = _count_silent(values, weight)
    if silent:
        quiet = basis[:, -silent:]
        projected = quiet.T @ weight
        _, rotation = _descending_eigh(projected @ projected.T)
        basis = torch.cat((basis[:, :-silent], quiet @ rotation), 1)
        values = torch.cat((values[:-silent], torch.zeros_like(values[-silent:])))
    return basis, values, gram_scale


def _from_inputs(weight: Tensor, gram: Gram | None) -> tuple[Tensor, Tensor, float]:
    """The same through the i × i problem, for o > i."""
    gram_scale, outputs = 1.0, weight
    if gram is not None:
        gram_scale = gram.scale
        outputs = weight @ _root(gram)
    size = weight.shape[1]
    values, right = _descending_eigh(outputs.T @ outputs)
    loud = len(values) - _count_silent(values, weight)
    basis = weight.new_empty(weight.shape[0], 0)
    if loud:
        values, right = values[:loud], right[:, :loud]
        basis = la.orthonormalize(outputs @ (right / values.sqrt()))
    if loud < size:
        remainder = weight - basis @ (basis.T @ weight)
        strength, rotation = _descending_eigh(remainder.T @ remainder)
        # Columns are brought to unit length, except where that would only blow up rounding errors.
        floor = float(strength[0]) * _ROUNDOFF or 1.0
        quiet = remainder @ (rotation / strength.clamp(min=floor).sqrt())[:, : size - loud]
        basis = la.orthonormalize(torch.cat((basis, quiet), 1))
        values = torch.cat((values[:loud], values.new_zeros(size - loud)))
    return basis, values, gram_scale


def _root(gram: Gram) -> Tensor:
    """R with R Rᵀ = G / scale on the directions above rounding level, i × k."""
    values, vectors = gram.eigen()
    keep = values > values[-1] * len(values) * _ROUNDOFF
    return vectors[:, keep] * values[keep].sqrt()


def _count_silent(values: Tensor, weight: Tensor) -> int:
    """How many of the descending eigenvalues cannot be told from zero."""
    level = values[:1].clamp(min=0) * max(weight.shape) * _ROUNDOFF
    return int((values <= level).sum())


def _descending_eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    return values.flip(0).clamp(min=0), vectors.flip(1)
