"""Orthonormal bases."""

from typing import Any

import torch

from fastlr.linalg._arrays import adapt
from fastlr.linalg._autocast import as_written


@as_written
def orthonormalize(Y: Any) -> Any:
    """Return an orthonormal basis whose span holds the columns of a matrix.

    Parameters
    ----------
    Y : array or Tensor, shape (m, k)
        Of any rank and condition number. float16 and bfloat16 are computed in float32. Never
        written to.

    Returns
    -------
    Q : array or Tensor, shape (m, min(m, k))
        ‖QᵀQ − I‖_F ≤ 10·√k·u, where u is the unit roundoff; where Y has dependent or zero columns,
        Q is completed by arbitrary orthonormal ones.

    Raises
    ------
    ValueError
        Not a matrix, or an entry that is not finite (its index is named).
    TypeError
        A sparse or complex matrix.

    Notes
    -----
    CholeskyQR2: two passes over Y and 4·m·k² flops where cond(Y) is below u^(−1/2); a shifted third
    pass below 1/u; Householder QR and a last Cholesky pass where that breaks down. Every exit is
    verified by QᵀQ. Not differentiable. Sources: Yamamoto et al., ETNA 44 (2015); Fukaya et al.,
    SISC 42 (2020).

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> Q = la.orthonormalize(torch.ones(6, 2, dtype=torch.float64))
    >>> torch.allclose(Q.T @ Q, torch.eye(2, dtype=torch.float64), rtol=0, atol=1e-15)
    True
    """
    adapted = adapt(Y, "orthonormalize", "Y")
    return adapted.restore(torch.ops.fastlr.orthonormalize(adapted.tensor))
