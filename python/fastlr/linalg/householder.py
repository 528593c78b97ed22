"""Products of Householder reflectors."""

from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastlr.linalg._arguments import at_least
from fastlr.linalg._arrays import Adapted, adapt
from fastlr.linalg._autocast import as_written

_SIDES = ("left", "right")


class HouseholderVectors(NamedTuple):
    """Vectors whose reflectors multiply to given orthonormal columns.

    Attributes
    ----------
    vectors : array, shape (\\*batch, m, k)
        Unit lower trapezoidal.
    phases : array, shape (\\*batch, k)
        1 or −1, or complex numbers of modulus 1.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> V, phases = la.householder_vectors(torch.eye(3)[:, :2])
    >>> bool((la.householder_product(V, lower=True) * phases == torch.eye(3)[:, :2]).all())
    True
    """

    vectors: Any
    phases: Any


def householder_product(V: Any, columns: int | None = None, *, lower: bool = False) -> Any:
    """Return the first columns of a product of Householder reflectors.

    Q = H₁·H₂·…·H_k, where H_j = I − 2·v_j·v_jᴴ/‖v_j‖² for column j of V, and I where it is zero.

    Parameters
    ----------
    V : array or Tensor, shape (\\*batch, m, k)
        Vectors of any length, real or complex, k at most m. float16 and bfloat16 are computed in
        float32, integers in the default float type. Never written to.
    columns : int, optional
        Of Q that are returned, at most m; k if None.
    lower : bool
        V counts for its lower trapezoid alone: entries above the diagonal are not read and have a
        gradient of 0. All orthonormal columns are such products but for their phases, at a third
        of the cost for k = m.

    Returns
    -------
    Q : array or Tensor, shape (\\*batch, m, columns)
        ‖QᴴQ − I‖₂ ≤ 10·√k·u for any V, u the unit roundoff. Differentiable once.

    Raises
    ------
    ValueError
        No matrix, more reflectors than rows, too many columns, an entry that is not finite (its
        index is named).
    TypeError
        Sparse, or of another type.

    See Also
    --------
    householder_apply : the product of Q with another matrix.
    householder_vectors : the way back.

    Notes
    -----
    4·m·k·columns flops in matrix products, three times as many for the gradient, which keeps Q, V
    and 64 numbers for each of its columns; (4/3)·m³ with `lower` where k = m. A block of 64
    reflectors is I − U·T·Uᴴ with T⁻¹ + T⁻ᴴ = UᴴU. That is unitary as far as this equation holds,
    and an error in it counts as many times as vectors are nearly parallel: so UᴴU, T and U·T are
    found in twice the precision and rounded once. Where a vector is zero there is no derivative,
    and its gradient is 0.

    Sources: Schreiber, Van Loan, "A storage-efficient WY representation for products of Householder
    transformations", SISSC 10 (1989); Ozaki, Ogita, Oishi, Rump, "Error-free transformations of
    matrix multiplication by using fast routines", Numer. Algorithms 59 (2012).

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> V = torch.tensor([[1.0, 0.0], [1.0, 2.0], [0.0, 0.0]])
    >>> la.householder_product(V)
    tensor([[ 0.,  1.],
            [-1.,  0.],
            [ 0.,  0.]])
    """
    caller = "householder_product"
    adapted = _vectors(V, caller)
    m, k = adapted.tensor.shape[-2:]
    count = k if columns is None else at_least(columns, 0, caller, "columns")
    if count > m:
        raise ValueError(f"{caller}: columns must be at most the rows of V, {m}, got {count}")
    return adapted.restore(torch.ops.fastlr.householder_product(adapted.tensor, count, lower)[0])


def householder_apply(
    V: Any,
    X: Any,
    *,
    adjoint: bool = False,
    side: Literal["left", "right"] = "left",
    lower: bool = False,
) -> Any:
    """Multiply by a product of Householder reflectors, Q = H₁·H₂·…·H_k.

    Parameters
    ----------
    V : array or Tensor, shape (\\*batch, m, k)
        As for `householder_product`.
    X : array or Tensor, shape (\\*batch, m, n), or (\\*batch, n, m) for the right side; or (m,)
        Of the dtype of V. Batches are broadcast against each other.
    adjoint : bool
        Multiply by Qᴴ.
    side : {"left", "right"}
        Q·X, or X·Q.
    lower : bool
        As for `householder_product`.

    Returns
    -------
    array or Tensor
        Of the shape of X, and of the broadcast batch. Differentiable once.

    Raises
    ------
    ValueError
        Shapes that do not match, more reflectors than rows, another side, an entry that is not
        finite.
    TypeError
        Different dtypes, NumPy and torch mixed, sparse.

    Notes
    -----
    4·m·k·n flops, and for the blocks some 2·m·k·64 in float64, or 12·m·k·64 for V in float64.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> V = torch.tensor([[1.0], [1.0]])
    >>> la.householder_apply(V, torch.tensor([3.0, 4.0]))
    tensor([-4., -3.])
    """
    caller = "householder_apply"
    of_V = _vectors(V, caller)
    if side not in _SIDES:
        raise ValueError(f'{caller}: side must be "left" or "right", got {side!r}')
    if isinstance(X, Tensor) is of_V.numpy:
        raise TypeError(f"{caller}: V and X must be both of NumPy or both of torch")
    vector, right = X.ndim == 1, side == "right"
    as_matrix = (X[None] if right else X[:, None]) if vector else X
    of_X = adapt(as_matrix, caller, "X", batched=True, complex_=True)
    if of_X.dtype != of_V.dtype:
        raise TypeError(f"{caller}: X must have the dtype of V, {of_V.dtype}, got {of_X.dtype}")
    reflectors, matrix = of_V.tensor, of_X.tensor.mH if right else of_X.tensor
    m = reflectors.shape[-2]
    if matrix.shape[-2] != m:
        raise ValueError(
            f"{caller}: X must have {m} {'columns' if right else 'rows'}, as V has rows, got shape "
            f"{tuple(X.shape)}"
        )
    try:
        batch = np.broadcast_shapes(reflectors.shape[:-2], matrix.shape[:-2])
    except ValueError:
        raise ValueError(
            f"{caller}: batches of V and X must match, got shapes {tuple(V.shape)} and "
            f"{tuple(X.shape)}"
        ) from None
    result, *_ = torch.ops.fastlr.householder_apply(
        reflectors.expand(*batch, *reflectors.shape[-2:]),
        matrix.expand(*batch, *matrix.shape[-2:]),
        adjoint != right,  # X·Q is the adjoint of Qᴴ·Xᴴ
        lower,
    )
    found = result.mH if right else result
    return of_X.restore(found.squeeze(-2 if right else -1) if vector else found)


@as_written
def householder_vectors(Q: Any) -> HouseholderVectors:
    """Return vectors whose Householder reflectors multiply to orthonormal columns.

    Parameters
    ----------
    Q : array or Tensor, shape (\\*batch, m, k)
        Orthonormal columns, real or complex.

    Returns
    -------
    HouseholderVectors
        ``vectors`` V and ``phases`` d with Q = householder_product(V, lower=True)·diag(d).

    Raises
    ------
    ValueError
        No matrix, more columns than rows, columns that are not orthonormal to √u, an entry that is
        not finite.
    TypeError
        Sparse, or of another type.

    Notes
    -----
    V is the unit lower factor of the LU factorization, without pivoting, of Q − diag(d), where each
    d is minus the sign of its pivot, so that no pivot is below 1: m·k² flops. The phases belong in
    a buffer next to a parameter V. Not differentiable.

    Source: Ballard, Demmel, Grigori, Jacquelin, Knight, Nguyen, "Reconstructing Householder vectors
    from tall-skinny QR", JPDC 85 (2015).

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> Q = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)
    >>> V, phases = la.householder_vectors(Q)
    >>> bool((la.householder_product(V, lower=True) * phases - Q).norm() < 1e-15)
    True
    """
    caller = "householder_vectors"
    adapted = _vectors(Q, caller, "Q")
    matrix = adapted.tensor.detach()
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    departure = float((matrix.mH @ matrix - eye).abs().max()) if matrix.numel() else 0.0
    if departure > torch.finfo(matrix.dtype).eps ** 0.5:
        raise ValueError(
            f"{caller}: Q must have orthonormal columns, got an entry of QᴴQ − I of {departure:.2g}"
        )
    vectors, phases = torch.ops.fastlr.householder_vectors(matrix)
    return HouseholderVectors(adapted.restore(vectors), adapted.restore(phases))


def _vectors(V: Any, caller: str, name: str = "V") -> Adapted:
    adapted = adapt(V, caller, name, batched=True, complex_=True)
    m, k = adapted.tensor.shape[-2:]
    if k > m:
        raise ValueError(
            f"{caller}: {name} must have at most as many columns as rows, got shape "
            f"{tuple(adapted.tensor.shape)}"
        )
    return adapted
