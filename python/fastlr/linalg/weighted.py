"""Low-rank approximations in norms that weigh rows and columns."""

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fastlr.linalg._arguments import as_integer, as_out, as_real
from fastlr.linalg._arrays import adapt, restored
from fastlr.linalg._autocast import as_written
from fastlr.linalg._warnings import warn
from fastlr.linalg.results import ConvergenceWarning, WeightedLowRank, WeightedLowRankInfo

_CALLER = "weighted_low_rank"


@as_written
def weighted_low_rank(
    W: Any,
    rank: int | None = None,
    *,
    tol: float | None = None,
    left: Any = None,
    right: Any = None,
    mean: Any = None,
    out: Literal["torch", "numpy"] | None = None,
) -> WeightedLowRank:
    """Find the matrices of low rank nearest to W when rows and columns do not count alike.

    Among all W' of one rank, minimise tr(H·Δ·G·Δᴴ) for Δ = W − W': the weighted error is
    ‖H^½·Δ·G^½‖_F. With G = Σ x·xᴴ over the inputs x of a linear layer and H the identity, it is
    the error ‖Δ·X‖_F of the layer's outputs.

    Parameters
    ----------
    W : array or Tensor, shape (o, i)
        float16 and bfloat16 are computed in float32. Never written to.
    rank : int, optional
        k, between 1 and min(o, i). With `tol`, the most that is returned. With neither, min(o, i):
        all directions, for callers who look at ``S`` and cut.
    tol : float, optional
        Return the smallest rank with a weighted error of at most tol·(weighted norm of W), for
        0 < tol < 1. A W of weighted norm zero has rank 0.
    left : array or Tensor, shape (o, o) or (o,), or a pair, optional
        H, Hermitian positive semidefinite: a matrix, or a vector of non-negative numbers, its
        diagonal, or its eigenvalues and eigenvectors ``(values (o,), vectors (o, o))``, as
        ``linalg.eigh`` returns them, where they serve several W. None is the identity.
    right : array or Tensor, shape (i, i) or (i,), or a pair, optional
        G, the same for the columns. Where o ≤ i, no eigenvectors of G are needed: pass the matrix.
    mean : array or Tensor, shape (i,), optional
        μ = E[x]. Then `right` must be the matrix G = E[x·xᴴ] over the same x, a mean, not a sum:
        it is replaced by the covariance G − μ·μᴴ, and ``bias`` = (W − W')·μ is what has to be added
        to the bias of the layer for its mean output to stay as it is.
    out : {"torch", "numpy"}, optional
        Kind of the results; that of W if None.

    Returns
    -------
    WeightedLowRank
        ``B`` (o, k), ``A`` (k, i), ``S`` (k,), ``bias`` (o,) or None, and ``info``. W' = B @ A, and
        ``B[:, :r] @ A[:r]`` is the optimum of every rank r ≤ k. B and A have the kind, dtype and
        device of W. The columns of B have unit length (or are zero), the largest entry of each is
        real and positive; they are orthonormal where `left` is None; the rows of A are orthogonal
        where `right` is None and `left` is not.
        S is float64 for every W, since it has the scale of the weights: the singular values of
        H^½·W·G^½, descending, exact zeros where they cannot be told from zero.

    Raises
    ------
    ValueError
        A W that is not a matrix (batches are not taken), weights or a mean of other sizes, a
        weight that is not Hermitian or not positive semidefinite to the rounding of float32, `rank`
        or `tol` out of range, `mean` without a matrix `right`, an entry that is not finite (its
        index is named).
    TypeError
        A sparse matrix, complex weights of a real W, complex vectors of weights, tensors on several
        devices, a number of the wrong type.

    Warns
    -----
    ConvergenceWarning
        `tol` was not met, within `rank` or because it is below rounding; ``info.converged`` is
        False.

    Notes
    -----
    With U·diag(S)·Vᴴ the SVD of M = L·W·R, H = Lᴴ·L, G = R·Rᴴ, the optimum is W' = L⁻¹·U·Uᴴ·L·W =
    W·V·Vᴴ·R⁻¹. U consists of eigenvectors of L·W·G·Wᴴ·Lᴴ: R itself is never needed, and no Cholesky
    factor. Without H, W' = U·Uᴴ·W; without G, W' = W·V·Vᴴ; with both, the rows of L⁻¹·U that count
    for much are taken from U, the others from W·R·V·diag(S)⁻¹, which needs no inverse. Where o > i,
    the adjoint problem is solved. H and G may be singular: what they do not see of W comes last, by
    decreasing size, so that W' → W as the rank grows, and ‖W'‖ is bounded: by ‖W‖ where there is
    only one weight, otherwise by ‖W‖ times the root of the condition number of the shorter side's
    weight, what counts as zero left out.

    All in double precision, and by powers of two near 1: the scales of W, H and G change nothing.
    Squares of singular values come from a Gram matrix, with errors of max(o, i)·u·S[0]², u = 2⁻⁵³:
    what is below 1e-7·S[0] or so is not seen. G, itself a sum of squares, is not known better. For
    a W of float64 and weights that are diagonal or None, values below 1e-4·S[0] are taken from an
    SVD of M, to max(o, i)·u·S[0].

    ``info.error`` is measured from B and A as they are returned: tr(H·Δ·G·Δᴴ) with Δ itself; there
    are no differences of norms in it. Where G is a matrix and o ≤ i (or H and o > i), it has an
    error of some u·‖Δ‖²·‖G‖ before the root is taken. With all min(o, i) directions and no `tol`
    only rounding is left, which is estimated from ten fixed random combinations of the rows of Δ.

    With n = min(o, i) and N = max(o, i): 2·n·N² flops for the product with a matrix on the longer
    side, 2·n²·N for a Gram matrix, 9·n³ for its eigenvectors, 11·n³ and 2·n²·N for a matrix on the
    shorter side, 2·n·N·k for the factors, 2·n·N·(N + k) to measure the error, and N³/3 in float32
    to see that the matrix on the longer side is semidefinite. Given `rank` ≤ n/8 and n ≥ 512, a
    random sketch of six products with the Gram matrix, of its own fixed seed, takes the place of
    the eigenvectors (``info.method`` is "randomized"), where the residuals of its Ritz pairs show
    the error to be within 1 % of the optimum; otherwise they are computed after all ("exact").
    Not differentiable.

    Sources: Eckart, Young (1936); Srebro, Jaakkola, "Weighted low-rank approximations", ICML 2003;
    Chen, Yu, Dhillon, Hsieh, "DRONE", NeurIPS 2021; for the mean, Yu, Wu, "Compressing
    transformers: features are low-rank, but weights are not!", AAAI 2023.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> W = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
    >>> result = la.weighted_low_rank(W, 1, right=torch.tensor([1.0, 1.0, 25.0]))
    >>> B, A, S, bias = result
    >>> B @ A  # the last column counts for most
    tensor([[0., 0., 0.],
            [0., 0., 0.],
            [0., 0., 1.]])
    >>> round(S[0].item(), 4), round(result.info.error**2, 4)  # 5² = 25; 3² + 2²
    (5.0, 13.0)
    """
    adapted = adapt(W, _CALLER, "W", complex_=True)
    out = as_out(out, _CALLER)
    B, A, S, bias, numbers = torch.ops.fastlr.weighted_low_rank(
        adapted.tensor,
        *_weight(left, "left"),
        *_weight(right, "right"),
        None if mean is None else _adapted(mean, "mean"),
        None if rank is None else as_integer(rank, _CALLER, "rank"),
        None if tol is None else as_real(tol, _CALLER, "tol"),
    )
    error, norm, randomized, converged = numbers.tolist()
    if not converged:
        warn(
            f"{_CALLER}: the weighted error is {error / norm:.3g} of the norm at rank {len(S)}, "
            f"more than tol = {tol}",
            ConvergenceWarning,
        )
    numpy = adapted.numpy if out is None else out == "numpy"
    B, A, bias = (restored(part, adapted.dtype, numpy=numpy) for part in (B, A, bias))
    return WeightedLowRank(
        B,
        A,
        restored(S, torch.float64, numpy=numpy),
        None if mean is None else bias,
        WeightedLowRankInfo("randomized" if randomized else "exact", error, norm, bool(converged)),
    )


def _weight(given: Any, name: str) -> tuple[Tensor | None, Tensor | None]:
    """A matrix or vector, or eigenvalues and eigenvectors, as the core takes them."""
    if given is None:
        return None, None
    if not isinstance(given, tuple):
        return _adapted(given, name), None
    if len(given) != 2:
        raise ValueError(
            f"{_CALLER}: {name} must be a matrix, a vector or a pair (eigenvalues, eigenvectors), "
            f"got a tuple of {len(given)}"
        )
    values, vectors = _adapted(given[0], name), _adapted(given[1], name)
    if values.ndim != 1:
        raise ValueError(
            f"{_CALLER}: the eigenvalues of {name} must be a vector, "
            f"got shape {tuple(values.shape)}"
        )
    return values, vectors


def _adapted(given: Any, name: str) -> Tensor:
    array = given if isinstance(given, Tensor) else np.asarray(given)
    if array.ndim != 1:
        return adapt(array, _CALLER, name, complex_=True).tensor
    return adapt(array[None], _CALLER, name, complex_=True).tensor[0]
