"""The nearest Monarch matrix."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlr.linalg._arguments import as_integer
from fastlr.linalg._arrays import adapt
from fastlr.linalg._autocast import as_written
from fastlr.linalg._balanced import (
    ProjectionInfo,
    balanced_factors,
    check_finite,
    info_of,
    measured,
    power_of_two,
)

_CALLER = "monarch_project"


class _MonarchFields(NamedTuple):
    left: Any
    right: Any


class MonarchResult(_MonarchFields):
    """W ≈ P·diag(left)·P'·diag(right), block diagonal matrices between two permutations.

    With b blocks, h = ⌈o/b⌉ and w = ⌈i/b⌉, entry (q·b + l, k·w + j) is Σ_s left[l, q, k·rank + s] ·
    right[k, s·b + l, j].

    Attributes
    ----------
    left : array, shape (…, b, h, b·rank)
    right : array, shape (…, b, rank·b, w)
    info : ProjectionInfo
        Not part of the tuple.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> result = la.monarch_project(torch.ones(6, 4), 2)
    >>> left, right = result
    >>> left.shape, right.shape, result.info.error < 1e-5
    (torch.Size([2, 3, 2]), torch.Size([2, 2, 2]), True)
    """

    info: ProjectionInfo

    def __new__(cls, left: Any, right: Any, info: ProjectionInfo) -> "MonarchResult":
        self = super().__new__(cls, left, right)
        self.info = info
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (*self, self.info)


@as_written
def monarch_project(W: Any, blocks: int, *, rank: int = 1) -> MonarchResult:
    """Find the Monarch matrix that is nearest to a matrix in the Frobenius norm.

    Parameters
    ----------
    W : array or Tensor, shape (…, o, i)
        Real or complex, leading dimensions are a batch. float16 and bfloat16 are computed in
        float32, integers in the default float type. Never written to.
    blocks : int
        b, between 1 and min(o, i): of each of the two block diagonal matrices. Sizes that b does
        not divide are filled up by zeros, which costs no accuracy.
    rank : int
        Between 1 and min(h, w), h = ⌈o/b⌉ and w = ⌈i/b⌉, which is enough for any W.

    Returns
    -------
    MonarchResult
        ``left`` (…, b, h, b·rank) and ``right`` (…, b, rank·b, w), of the kind, dtype and device of
        W, and ``info``.

    Raises
    ------
    ValueError
        `blocks` or `rank` out of range, an entry that is not finite (its index is named).
    TypeError
        Sparse, or of another type.

    See Also
    --------
    nearest_kronecker : another structure with products as fast.

    Notes
    -----
    Slice (l, k) of W consists of the rows l, l + b, l + 2b, … in the columns of block k. A matrix
    is a Monarch matrix if each of its b² slices, h × w, has rank 1 (`rank`). So the nearest one is
    made of the truncated SVDs of the slices, and its error is the norm of all singular values that
    are left out. In the original definition o = i = b² and the rank is 1; for b = 1 this is the
    truncated SVD of W.

    b² dense SVDs, some 20·o·i·min(h, w) flops; Krylov spaces for few triplets of large slices, as
    in `nearest_kronecker`. The error is measured in float64. Source: T. Dao, B. Chen, N. Sohoni, A.
    Desai, M. Poli, J. Grogan, A. Liu, A. Rao, A. Rudra, C. Ré, "Monarch: expressive structured
    matrices for efficient and accurate training", ICML 2022. Not differentiable.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> F = torch.fft.fft(torch.eye(16, dtype=torch.complex128))
    >>> reversed_digits = F.unflatten(1, (4, 4)).mT.flatten(1)  # of the inputs' numbers, base 4
    >>> la.monarch_project(reversed_digits, 4).info.error < 1e-12
    True
    """
    adapted = adapt(W, _CALLER, "W", batched=True, complex_=True)
    given = adapted.tensor.detach()
    o, i = given.shape[-2:]
    b = _between(blocks, "blocks", "min(o, i)", min(o, i))
    h, w = -(-o // b), -(-i // b)
    rank = _between(rank, "rank", "min(⌈o/blocks⌉, ⌈i/blocks⌉)", min(h, w))
    check_finite(given, _CALLER, "W")
    power = power_of_two(given)
    R = slices(given / power, b)
    left, right, method = balanced_factors(R, rank)
    root = power.double().sqrt()[..., None, None]
    scale = root.to(power.dtype)
    of_left, of_right = (adapted.restore(factor) for factor in (left * scale, right * scale))
    norms = measured(R, of_left, of_right, root)
    error, norm = (torch.linalg.matrix_norm(of_slices) for of_slices in norms)
    return MonarchResult(
        _left_blocks(of_left), _right_blocks(of_right), info_of(method, error, norm, power)
    )


def slices(W: Tensor, b: int) -> Tensor:
    """The slices of W, filled up by zeros: … × b (of rows) × b (of columns) × h × w."""
    o, i = W.shape[-2:]
    h, w = -(-o // b), -(-i // b)
    padded = F.pad(W, (0, b * w - i, 0, b * h - o))
    return padded.reshape(*W.shape[:-2], h, b, b, w).movedim(-4, -2)


def composed(left: Tensor, right: Tensor, o: int, i: int) -> Tensor:
    """The Monarch matrix of these factors, o × i."""
    b, h, w = left.shape[0], left.shape[1], right.shape[2]
    by_slice = torch.unflatten(left, 2, (b, -1)), torch.unflatten(right, 1, (-1, b))
    return torch.einsum("lqks,kslj->qlkj", *by_slice).reshape(h * b, b * w)[:o, :i]


def _left_blocks(factors: Any) -> Any:
    """From l, k, q, s to l, q, (k, s)."""
    *batch, b, _, h, rank = factors.shape
    return factors.swapaxes(-3, -2).reshape(*batch, b, h, b * rank)


def _right_blocks(factors: Any) -> Any:
    """From l, k, s, j to k, (s, l), j."""
    *batch, b, _, rank, w = factors.shape
    return factors.swapaxes(-4, -3).swapaxes(-3, -2).reshape(*batch, b, rank * b, w)


def _between(value: Any, name: str, of: str, limit: int) -> int:
    # Of an empty matrix there is one empty block.
    number = as_integer(value, _CALLER, name)
    if not 1 <= number <= max(1, limit):
        raise ValueError(
            f"{_CALLER}: {name} must be between 1 and {of} = {max(1, limit)}, got {number}"
        )
    return number
