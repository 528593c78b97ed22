"""Random orthogonal and unitary matrices."""

from typing import Any

import torch
from torch import Tensor

from fastlr.linalg._arguments import Seed, as_integer, as_seed, at_least
from fastlr.linalg._arrays import _COMPLEX, _REAL
from fastlr.linalg._autocast import as_written
from fastlr.linalg.random import random_matrix

_CALLER = "random_orthogonal"
# Columns of the seed's random matrix, beyond all that sketches draw from.
_REAL_PART, _IMAGINARY_PART = 3 << 30, (3 << 30) + (1 << 29)


@as_written
def random_orthogonal(
    n: int,
    k: int | None = None,
    *,
    dtype: torch.dtype | None = None,
    device: Any = None,
    seed: Seed = None,
) -> Tensor:
    """Make a random orthogonal (complex: unitary) matrix, or its first k columns.

    The distribution is Haar's: that of Q is that of P·Q and of Q·P for every orthogonal P.

    Parameters
    ----------
    n : int
        Rows.
    k : int, optional
        Columns, n at most; n if None.
    dtype : torch.dtype, optional
        float32 or float64; complex64 or complex128 for a unitary matrix; torch's default dtype if
        None.
    device : torch.device, optional
        The CPU if None.
    seed : int, torch.Generator or None
        For one seed, fewer columns are the first ones of more, and a lower precision is the higher
        one rounded; both but for rounding in float64.

    Returns
    -------
    Tensor, shape (n, k)
        ‖QᴴQ − I‖_F ≤ 10·√k·u, u being the unit roundoff.

    Raises
    ------
    ValueError
        A negative n, k below 0 or above n, a seed beyond 64 bits.
    TypeError
        Another dtype, a number that is not an integer.

    See Also
    --------
    random_matrix : independent entries.

    Notes
    -----
    The factor Q of a Gaussian matrix by Householder QR in float64, with the phases that make the
    diagonal of R positive: with those of the factorization Q is not distributed so. 4·n·k² −
    4/3·k³ flops, four times as many for complex matrices. In float64 Householder's rounding grows
    with n, and `orthonormalize` takes it away, in some six times that time for k = n = 2000; a
    result in lower precision is rounded. Not differentiable.

    Sources: Stewart, "The efficient generation of random orthogonal matrices with an application
    to condition estimators", SINUM 17 (1980); Mezzadri, "How to generate random matrices from the
    classical compact groups", Notices of the AMS 54 (2007).

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> Q = la.random_orthogonal(100, dtype=torch.float64, seed=0)
    >>> torch.allclose(Q.T @ Q, torch.eye(100, dtype=torch.float64), rtol=0, atol=1e-14)
    True
    >>> x = la.random_matrix(100, 1, seed=1, dtype=torch.float64)
    >>> torch.allclose(Q.T @ (Q @ x), x)
    True
    >>> la.random_orthogonal(100, 3, dtype=torch.complex64, seed=0).shape
    torch.Size([100, 3])
    """
    rows = at_least(n, 0, _CALLER, "n")
    columns = rows if k is None else as_integer(k, _CALLER, "k")
    if not 0 <= columns <= rows:
        raise ValueError(f"{_CALLER}: k must be between 0 and n = {rows}, got {columns}")
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if dtype not in (*_REAL, *_COMPLEX):
        raise TypeError(
            f"{_CALLER}: dtype must be float32, float64, complex64 or complex128, got {dtype}"
        )
    G = _gaussian(rows, columns, as_seed(seed, _CALLER), dtype.is_complex, device)
    Q = _columns(G)
    if dtype in (torch.float32, torch.complex64):
        return Q.to(dtype)
    # The rounding of Householder QR grows with n: one more pass takes it away.
    polished: Tensor = torch.ops.fastlr.orthonormalize(Q)
    return polished


def _gaussian(n: int, k: int, seed: int, complex_: bool, device: Any) -> Tensor:
    """Independent rotation-invariant entries; their length does not matter."""
    real, *imaginary = (
        random_matrix(n, k, seed=seed, column_offset=offset, dtype=torch.float64, device=device)
        for offset in (_REAL_PART, _IMAGINARY_PART)[: 1 + complex_]
    )
    return torch.complex(real, *imaginary) if complex_ else real


def _columns(G: Tensor) -> Tensor:
    """The factor Q of G, for a positive diagonal of R, which makes it unique."""
    Q, R = torch.linalg.qr(G)
    diagonal = R.diagonal()
    oriented: Tensor = Q * torch.where(diagonal == 0, 1, diagonal.sgn())
    return oriented
