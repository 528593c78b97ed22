"""Random sketches of a matrix."""

import math
from typing import Any

import torch

from fastlr.linalg._arguments import Seed, as_integer, as_seed
from fastlr.linalg._arrays import adapt


def sketch(A: Any, size: int, *, kind: str = "gaussian", axis: int = 0, seed: Seed = None) -> Any:
    """Compress one axis of a matrix to `size` random combinations of its rows or columns.

    Returns ΩᵀA (``axis=0``, combinations of rows) or AΩ (``axis=1``, combinations of columns),
    where the entries of Ω are independent N(0, 1/size): norms and inner products are kept in
    expectation. Ω is made block by block in cache and never stored.

    Parameters
    ----------
    A : array or Tensor, shape (m, n)
        float16 and bfloat16 are computed in float32. Never written to.
    size : int
        Length of the compressed axis.
    kind : {"gaussian"}
        Distribution of Ω.
    axis : {0, 1}
        The axis of A that is compressed; −1 and −2 count from the end.
    seed : int, torch.Generator or None
        Ω is ``random_matrix(A.shape[axis], size, seed=seed) / sqrt(size)`` for the same seed.

    Returns
    -------
    array or Tensor, shape (size, n) or (m, size)
        Of the kind, dtype and device of A. Differentiable with respect to A.

    Raises
    ------
    ValueError
        Not a matrix, a size below 1, an unknown kind or axis.
    TypeError
        A sparse or complex matrix, a size that is not an integer.

    Notes
    -----
    One pass over A, 2·m·n·size flops. Source: Halko, Martinsson, Tropp, "Finding structure with
    randomness", SIAM Review 53 (2011), section 4.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> A = torch.ones(1000, 3)
    >>> la.sketch(A, 50, seed=0).shape, la.sketch(A, 50, axis=1, seed=0).shape
    (torch.Size([50, 3]), torch.Size([1000, 50]))
    """
    adapted = adapt(A, "sketch")
    size = as_integer(size, "sketch", "size")
    if size < 1:
        raise ValueError(f"sketch: size must be at least 1, got {size}")
    if kind != "gaussian":
        raise ValueError(f"sketch: kind must be 'gaussian', got {kind!r}")
    if axis not in (0, 1, -1, -2):
        raise ValueError(f"sketch: axis must be 0 or 1, got {axis}")
    rows = axis in (0, -2)
    operand = adapted.tensor.mT if rows else adapted.tensor
    product = torch.ops.fastlr.gaussian_product(
        operand, operand.shape[1], size, as_seed(seed, "sketch"), False
    )
    product = product / math.sqrt(size)
    return adapted.restore(product.mT if rows else product)
