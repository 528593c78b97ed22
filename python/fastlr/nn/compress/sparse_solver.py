"""The best weight with given zeros, and where the zeros should be, in a two-sided norm."""

from __future__ import annotations

import torch
from torch import Tensor

# The decrease of the error, relative to what is left of it, at which a step is the last.
_WORTHWHILE = 0.01


def inverse_diagonal(matrix: Tensor | None, size: int) -> Tensor:
    """The diagonal of the inverse of a positive definite matrix (None: the identity), float64.

    Raises
    ------
    torch.linalg.LinAlgError
        If the matrix is not positive definite.
    """
    if matrix is None:
        return torch.ones(size, dtype=torch.float64)
    return torch.cholesky_inverse(torch.linalg.cholesky(matrix)).diagonal()


def saliency(weight: Tensor, left_inverse: Tensor, right_inverse: Tensor) -> Tensor:
    """What it costs to make each entry of `weight` alone zero, the others making up for it.

    w² / ([H⁻¹]_oo [G⁻¹]_ii), the least tr(H Δ G Δᵀ) with Δ_oi = w, from the diagonals of the
    inverses [1]_.

    References
    ----------
    .. [1] B. Hassibi, D. G. Stork, "Second order derivatives for network pruning: Optimal brain
       surgeon", NIPS 1992.
    """
    left_inverse, right_inverse = left_inverse.to(weight.device), right_inverse.to(weight.device)
    return weight.square() / (left_inverse[:, None] * right_inverse[None, :])


def fit_on_mask(
    target: Tensor, mask: Tensor, left: Tensor | None, right: Tensor | None, *, most: int = 30
) -> Tensor:
    """The matrix W', zero outside of `mask`, with nearly the least tr(H (W − W') G (W − W')ᵀ).

    Parameters
    ----------
    target : Tensor of shape (o, i)
        W, of the dtype in which all is computed.
    mask : Tensor of shape (o, i), bool
    left, right : Tensor of shape (o, o) and (i, i), optional
        H and G, positive definite; None stands for the identity.
    most : int
        The most iterations.

    Returns
    -------
    Tensor of shape (o, i)

    Notes
    -----
    Conjugate gradients on the entries that are kept, preconditioned by the diagonal H_oo·G_ii,
    from W there: every iteration takes 2·o·i·(o + i) flops and lowers the error. They end where one
    of them lowers it by less than 1 %: what is left are directions that hardly count.
    """
    kept = mask.to(target.dtype)
    solution = target * kept
    if left is None and right is None:
        return solution

    def curvature(matrix: Tensor) -> Tensor:
        product = matrix if left is None else left @ matrix
        return product if right is None else product @ right

    diagonal = target.new_ones(target.shape)
    if left is not None:
        diagonal = diagonal * left.diagonal()[:, None]
    if right is not None:
        diagonal = diagonal * right.diagonal()[None, :]
    difference = target - solution
    gradient = curvature(difference)
    error = float((gradient * difference).sum())
    residual = gradient * kept
    scaled = residual / diagonal
    direction, product = scaled, float((residual * scaled).sum())
    for _ in range(most):
        if not product > 0:
            break
        image = curvature(direction) * kept
        along = float((direction * image).sum())
        if not along > 0:
            break
        step = product / along
        solution = solution + step * direction
        decrease = step * product
        error -= decrease
        if decrease < _WORTHWHILE * max(error, 0.0):
            break
        residual = residual - step * image
        scaled = residual / diagonal
        following = float((residual * scaled).sum())
        direction = scaled + following / product * direction
        product = following
    return solution
