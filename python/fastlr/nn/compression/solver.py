"""The best approximation of a weight by one of low rank, seen through the layer's inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import fastlr.linalg as la
from fastlr.nn.compression.gram import Gram
from fastlr.nn.modules.dense import high_precision


@dataclass(frozen=True)
class Truncation:
    """W' = basis @ projected, of rank r.

    Attributes
    ----------
    basis : Tensor of shape (o, r)
        Columns of unit length, float64; orthonormal where the outputs have no weight.
    projected : Tensor of shape (r, i)
        float64; basisᵀ W where the outputs have no weight.
    relative_error : float
        ‖(W − W')X‖² / ‖WX‖², the energy of the directions that were left out (0 when ‖WX‖ = 0);
        with weighted outputs, the same for H^½ (W − W')X.

    Examples
    --------
    >>> import torch
    >>> from fastlr.nn.compression import solve
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
        Output directions, by decreasing energy; those without any energy (inputs never reach them)
        follow by decreasing plain weight energy. Orthonormal where the outputs have no weight.
    projected : Tensor of shape (k, i)
        W = basis @ projected.
    energies : Tensor of shape (k,)
        The share of ‖WX‖² (of ‖H^½ W X‖² for weighted outputs) in each direction; they sum to 1
        (or to 0 when there is none).
    total : float
        ‖WX‖² (‖H^½ W X‖²).

    Examples
    --------
    >>> import torch
    >>> from fastlr.nn.compression import solve
    >>> solution = solve(torch.diag(torch.tensor([1.0, 3.0])))
    >>> [round(share, 4) for share in solution.energies.tolist()], round(solution.total, 4)
    ([0.9, 0.1], 10.0)
    """

    weight: Tensor
    basis: Tensor
    projected: Tensor
    energies: Tensor
    total: float

    def relative_error(self, rank: int) -> float:
        """The relative squared output error at `rank`: the sum of the energies beyond it."""
        return float(self.energies[rank:].flip(0).sum())

    def truncate(self, rank: int) -> Truncation:
        """The best approximation of rank `rank`.

        Raises
        ------
        ValueError
            If `rank` is not between 1 and min(o, i).
        """
        limit = self.basis.shape[1]
        if not 1 <= rank <= limit:
            raise ValueError(f"truncate: rank must be between 1 and {limit}, got {rank}")
        basis, projected = self.basis[:, :rank].contiguous(), self.projected[:rank].clone()
        return Truncation(basis, projected, self.relative_error(rank))


def solve(
    weight: Tensor, gram: Gram | Tensor | None = None, *, left: Gram | Tensor | None = None
) -> Solution:
    """Minimise ‖(W − W')X‖, or ‖H^½ (W − W')X‖, over all W' of rank r, for every r at once.

    Parameters
    ----------
    weight : Tensor of shape (o, i)
        W, of any float dtype.
    gram : Gram or Tensor of shape (i, i), optional
        G = X Xᵀ, up to a factor; None stands for the identity. It may be singular.
    left : Gram or Tensor of shape (o, o), optional
        H, how much the outputs count: Σ g gᵀ over the gradients g of a loss with respect to them,
        say. None is the identity. It may be singular.

    Returns
    -------
    Solution

    Raises
    ------
    ValueError
        If the shapes do not fit, `weight`, `gram` or `left` has an entry that is not finite, or
        `gram` or `left` is not symmetric or not positive semidefinite.

    Notes
    -----
    A thin layer over :func:`fastlr.linalg.weighted_low_rank`, which has the mathematics.

    The minimiser is W' = U Uᵀ W with U the leading eigenvectors of C = W G Wᵀ, and the error is the
    sum of the eigenvalues left out: principal components of the layer's output [1]_, the same
    optimum that whitening by a Cholesky factor of G gives [2]_, without the factor and without an
    inverse. Where o > i the same U comes from an i × i eigenproblem and the eigenvalues of G, which
    are shared by the layers that read the same input. Directions below the rounding level of C
    carry no energy that could be told from zero; they are ranked by ‖uᵀW‖, so that W' → W on all
    inputs as r grows. All in float64: 2·o·i·(o + i) flops and one eigenproblem of size min(o, i),
    two where o > i.

    References
    ----------
    .. [1] P. Chen, H.-F. Yu, I. Dhillon, C.-J. Hsieh, "DRONE: Data-aware low-rank compression for
       large NLP models", NeurIPS 2021.
    .. [2] X. Wang, Y. Zheng, Z. Wan, M. Zhang, "SVD-LLM: Truncation-aware singular value
       decomposition for large language model compression", ICLR 2025.

    Examples
    --------
    >>> import torch
    >>> from fastlr.nn.compression import solve
    >>> solution = solve(torch.diag(torch.tensor([2.0, 1.0])), torch.diag(torch.tensor([1.0, 9.0])))
    >>> [round(share, 4) for share in solution.energies.tolist()]  # 9·1² against 1·2²
    [0.6923, 0.3077]
    >>> round(solution.truncate(1).relative_error, 4)
    0.3077
    """
    if weight.ndim != 2 or 0 in weight.shape:
        raise ValueError(f"solve: weight must be a non-empty matrix, got {tuple(weight.shape)}")
    dense = high_precision(weight)
    rows, columns = dense.shape
    inputs = _weight_of("gram", gram, columns, dense)
    outputs = _weight_of("left", left, rows, dense)
    require_finite("solve: weight", dense)
    for name, side in (("gram", inputs), ("left", outputs)):
        if side is not None:
            require_finite(f"solve: {name}", side.matrix)

    # Of the shorter side's weight the eigenvalues are needed, which layers share.
    tall = rows > columns
    basis, projected, values, _ = la.weighted_low_rank(
        dense,
        left=outputs and (outputs.unit if tall else outputs.eigen()),
        right=inputs and (inputs.eigen() if tall else inputs.unit),
    )
    largest = float(values[0])
    squares = (values / largest).square() if largest > 0 else values
    share = float(squares.sum())
    total = largest * largest * share
    for side in (inputs, outputs):
        if side is not None:
            total *= side.scale
    return Solution(dense, basis, projected, squares / share if share > 0 else squares, total)


def _weight_of(name: str, given: Gram | Tensor | None, size: int, dense: Tensor) -> Gram | None:
    """`given` as a Gram matrix that fits one side of the weight."""
    if given is None:
        return None
    side = given if isinstance(given, Gram) else Gram(given)
    if len(side.matrix) != size:
        raise ValueError(
            f"solve: {name} must be {size}×{size} for a weight of shape {tuple(dense.shape)}, "
            f"got {tuple(side.matrix.shape)}"
        )
    return side


def require_finite(what: str, matrix: Tensor) -> None:
    """Raise ValueError naming the first entry of `matrix` that is not finite."""
    if bool(torch.isfinite(matrix).all()):
        return
    row, column = (int(k) for k in (~torch.isfinite(matrix)).nonzero()[0])
    raise ValueError(
        f"{what} has the value {float(matrix[row, column])} at index ({row}, {column})"
    )
