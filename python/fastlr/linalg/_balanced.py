"""What the nearest matrices of a structure have in common: the leading triplets of a rearrangement.

The structures are those of which a fixed rearrangement of the entries has low rank. It keeps the
Frobenius norm, so that its truncated SVD is the nearest matrix.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastlr.linalg._arrays import number_or_batch
from fastlr.linalg.results import ConvergenceWarning
from fastlr.linalg.svd import randomized_svd

# A dense SVD takes a second for 1000 × 1000 entries, a Krylov space half of that for few triplets
# of the flattest spectrum, and less and less beyond.
_DENSE = 512
_FEW = 16


@dataclass(frozen=True)
class ProjectionInfo:
    """How a nearest matrix of a structure was obtained and how far it is from A.

    Attributes
    ----------
    method : {"dense SVD", "block Krylov"}
        A Krylov space is taken for few leading triplets of large matrices, until its residuals are
        below 1e-10 of the largest singular value (float64), and is followed by a dense SVD if they
        are not.
    error : float
        ‖A − approximation‖_F, measured from the factors as they were returned: rounding to their
        dtype is in it.
    norm : float
        ‖A‖_F.

    Of a batch, `error` and `norm` are arrays of the batch's shape.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> info = la.nearest_kronecker(torch.diag(torch.tensor([3.0, 3.0, 4.0, 0.0])), (2, 2)).info
    >>> info.method, round(info.norm**2, 4)
    ('dense SVD', 34.0)
    """

    method: str
    error: Any
    norm: Any


def check_finite(A: Tensor, caller: str, name: str) -> None:
    """Raise ValueError naming the first entry that is not finite."""
    finite = torch.isfinite(A)
    if not bool(finite.all()):
        index = tuple(finite.logical_not().nonzero()[0].tolist())
        raise ValueError(f"{caller}: {name} must be finite, got {A[index].item()} at index {index}")


def power_of_two(A: Tensor) -> Tensor:
    """For each matrix the power of two at or below its largest entry (1 for zeros), … × 1 × 1."""
    if not A.numel():
        return A.abs().sum((-2, -1), keepdim=True) + 1
    largest = A.abs().amax((-2, -1), keepdim=True)
    mantissa = torch.frexp(largest).mantissa
    return torch.where(largest > 0, largest / (2 * mantissa), torch.ones_like(largest))


def balanced_factors(R: Tensor, rank: int) -> tuple[Tensor, Tensor, str]:
    """U·√S and √S·Vh of the leading triplets, and how they were found.

    Parameters
    ----------
    R : Tensor, shape (…, p, q)
        Scaled so that squares are in range.
    rank : int
        Where it is above min(p, q), the factors are filled up with zeros.
    """
    fewer = min(rank, *R.shape[-2:])
    U, S, Vh, method = _leading(R, fewer)
    root = S.sqrt()
    left, right = U * root[..., None, :], root[..., :, None] * Vh
    if fewer < rank:
        left = torch.nn.functional.pad(left, (0, rank - fewer))
        right = torch.nn.functional.pad(right, (0, 0, 0, rank - fewer))
    return left, right, method


def _leading(R: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor, str]:
    least = min(R.shape[-2:])
    if least > _DENSE and _FEW * rank <= least:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            found = randomized_svd(R, rank, method="krylov", seed=0)
        if found.info.converged:
            return *found, found.info.method
    U, S, Vh = torch.linalg.svd(R, full_matrices=False)
    U, Vh = signed(U[..., :rank], Vh[..., :rank, :])
    return U, S[..., :rank], Vh, "dense SVD"


def signed(U: Tensor, Vh: Tensor) -> tuple[Tensor, Tensor]:
    """The same triplets with the largest entry of each left vector real and positive."""
    if not U.numel():
        return U, Vh
    phases = torch.sgn(U.gather(-2, U.abs().argmax(-2, keepdim=True)))
    return U * phases.conj(), phases.mT * Vh


def measured(R: Tensor, left: Any, right: Any, root: Tensor) -> tuple[Tensor, Tensor]:
    """‖R − left·right/root²‖_F and ‖R‖_F, in float64, for each matrix.

    `left` and `right` are the factors as they are returned, in half precision or in NumPy.
    """
    wide = torch.complex128 if R.is_complex() else torch.float64
    R = R.to(wide)
    left, right = (torch.as_tensor(factor, device=R.device).to(wide) for factor in (left, right))
    difference = R - (left / root) @ (right / root)
    return torch.linalg.matrix_norm(difference), torch.linalg.matrix_norm(R)


def info_of(method: str, error: Tensor, norm: Tensor, power: Tensor) -> ProjectionInfo:
    """The info of matrices that were divided by `power`, … × 1 × 1."""
    power = power[..., 0, 0].double()
    return ProjectionInfo(method, number_or_batch(error * power), number_or_batch(norm * power))
