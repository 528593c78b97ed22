"""The best weight with given zeros, and where the zeros should be, in a two-sided norm."""

from __future__ import annotations

import numpy as np
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


def ascending_values(scores: Tensor) -> Tensor:
    """All entries, sorted, on the CPU."""
    if scores.device.type != "cpu":
        return scores.flatten().sort().values.cpu()
    # On a processor torch's sort takes some fifteen times as long as NumPy's.
    return torch.from_numpy(np.sort(scores.numpy(), axis=None))


def mask_of_largest(scores: Tensor, count: int) -> Tensor:
    """True at the `count` largest entries; of equal ones, at the first in row-major order."""
    mask = torch.zeros_like(scores, dtype=torch.bool).flatten()
    if count:
        flat = scores.flatten()
        least = flat.kthvalue(len(flat) - count + 1).values
        mask |= flat > least
        ties = (flat == least).nonzero().squeeze(1)
        mask[ties[: count - int(mask.sum())]] = True
    return mask.view(scores.shape)


def fit_on_mask(
    target: Tensor, mask: Tensor, left: Tensor | None, right: Tensor | None, *, most: int = 12
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
    Conjugate gradients on the entries that are kept, from W there, with rows and columns scaled so
    that H and G have diagonals of ones: every iteration takes 2·o·i·(o + i) flops and lowers the
    error. They end where one of them lowers it by less than 1 %: what is left then are directions
    that hardly count.
    """
    kept = mask.to(target.dtype)
    if left is None and right is None:
        return target * kept
    missing = target * (1 - kept)
    gradient = weighted(missing, left, right)
    error = _dot(gradient, missing)
    return target * kept + descent(gradient, error, kept, left, right, most=most)


def descent(
    gradient: Tensor,
    error: float,
    kept: Tensor,
    left: Tensor | None,
    right: Tensor | None,
    *,
    most: int,
) -> Tensor:
    """What to add to a matrix on its mask for nearly the least tr(H Δ G Δᵀ), see ``fit_on_mask``.

    `gradient` is H Δ G and `error` its product with Δ, both before; `kept` is the mask as numbers.
    """
    left, rows = _unit_diagonal(left, gradient.shape[0], gradient)
    right, columns = _unit_diagonal(right, gradient.shape[1], gradient)
    scales = rows[:, None] * columns[None, :]

    residual = gradient / scales * kept
    added = torch.zeros_like(residual)
    direction = residual.clone()
    square = _dot(residual, residual)
    for _ in range(most):
        image = weighted(direction, left, right).mul_(kept)
        along = _dot(direction, image)
        if not (square > 0 and along > 0):
            break
        step = square / along
        added.add_(direction, alpha=step)
        error -= step * square
        if step * square < _WORTHWHILE * error:
            break
        residual.sub_(image, alpha=step)
        following = _dot(residual, residual)
        direction.mul_(following / square).add_(residual)
        square = following
    return added / scales


def weighted(matrix: Tensor, left: Tensor | None, right: Tensor | None) -> Tensor:
    """H M G, None standing for the identity."""
    product = matrix if left is None else left @ matrix
    return product if right is None else product @ right


def _unit_diagonal(matrix: Tensor | None, size: int, like: Tensor) -> tuple[Tensor | None, Tensor]:
    """The matrix between the inverses of the roots of its diagonal, and these roots."""
    if matrix is None:
        return None, like.new_ones(size)
    roots = matrix.diagonal().sqrt()
    # A row of zeros counts for nothing, at any scale.
    roots = torch.where(roots > 0, roots, 1)
    return matrix / torch.outer(roots, roots), roots


def _dot(first: Tensor, second: Tensor) -> float:
    return float(torch.dot(first.flatten(), second.flatten()))
