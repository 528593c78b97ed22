"""Matrices known by their products."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastlr.linalg._arguments import as_integer
from fastlr.linalg._arrays import as_tensor, computed_dtype
from fastlr.linalg._autocast import as_written

Product = Callable[[Tensor], Any]


class LinearOperator:
    """A matrix A known by two functions of thin matrices.

    No gradient goes through the functions, nor to tensors that they use.

    Parameters
    ----------
    shape : (int, int)
        m and n.
    matmat : callable
        From a Tensor X of shape (n, k) to A @ X, shape (m, k).
    rmatmat : callable
        From a Tensor Y of shape (m, k) to Aᴴ @ Y, shape (n, k).
    dtype : torch.dtype
        float32, float64, complex64 or complex128, of the operands and of the products.
    device : torch.device, optional
        Where operands and products are.

    Raises
    ------
    ValueError
        A negative size; when called, a product of the wrong shape or device, or not finite.
    TypeError
        Another dtype, something that cannot be called; when called, a product that is no Tensor or
        of another dtype. What the functions raise themselves passes through unchanged.

    Examples
    --------
    >>> import torch, fastlr.linalg as la
    >>> d = torch.arange(1.0, 101.0)[:, None]
    >>> D = la.LinearOperator((100, 100), lambda X: d * X, lambda Y: d * Y, dtype=d.dtype)
    >>> S = la.randomized_svd(D, 2, method="krylov", seed=0).S
    >>> [f"{value:.2f}" for value in S.tolist()]
    ['100.00', '99.00']
    """

    def __init__(
        self,
        shape: tuple[int, int],
        matmat: Product,
        rmatmat: Product,
        *,
        dtype: torch.dtype,
        device: Any = "cpu",
    ) -> None:
        rows, columns = (as_integer(size, "LinearOperator", "shape") for size in shape)
        if rows < 0 or columns < 0:
            raise ValueError(f"LinearOperator: shape must be non-negative, got {(rows, columns)}")
        if computed_dtype(dtype, dtype, "LinearOperator", "dtype")[1] is not dtype:
            raise TypeError(f"LinearOperator: dtype must be one that is computed in, got {dtype}")
        for function, name in ((matmat, "matmat"), (rmatmat, "rmatmat")):
            if not callable(function):
                raise TypeError(f"LinearOperator: {name} must be a function, got {function!r}")
        self.shape = (rows, columns)
        self.dtype = dtype
        self.device = torch.device(device)
        self._matmat = matmat
        self._rmatmat = rmatmat

    @classmethod
    def from_scipy(cls, operator: Any) -> "LinearOperator":
        """Wrap a ``scipy.sparse.linalg.LinearOperator``, which computes in NumPy."""
        dtype = torch.from_numpy(_empty(operator.dtype)).dtype
        dtype = computed_dtype(dtype, torch.float64, "LinearOperator", "operator")[1]
        precision = torch.empty(0, dtype=dtype).numpy().dtype

        def product(function: Callable[[Any], Any]) -> Product:
            return lambda X: as_tensor(function(X.numpy()).astype(precision, copy=False))

        return cls(operator.shape, product(operator.matmat), product(operator.rmatmat), dtype=dtype)

    @as_written
    def matmat(self, X: Tensor) -> Tensor:
        """Return A @ X, checked."""
        return self._checked(self._matmat(X), (self.shape[0], X.shape[1]), "matmat")

    @as_written
    def rmatmat(self, Y: Tensor) -> Tensor:
        """Return Aᴴ @ Y, checked."""
        return self._checked(self._rmatmat(Y), (self.shape[1], Y.shape[1]), "rmatmat")

    def _checked(self, product: Any, shape: tuple[int, int], name: str) -> Tensor:
        if not isinstance(product, Tensor):
            raise TypeError(
                f"LinearOperator: {name} must return a Tensor, got {type(product).__name__}"
            )
        if product.shape != shape:
            raise ValueError(
                f"LinearOperator: {name} must return shape {shape}, got {tuple(product.shape)}"
            )
        if product.dtype != self.dtype:
            raise TypeError(
                f"LinearOperator: {name} must return dtype {self.dtype}, got {product.dtype}"
            )
        if product.device != self.device:
            raise ValueError(
                f"LinearOperator: {name} must return a Tensor on {self.device}, "
                f"got {product.device}"
            )
        if not bool(torch.isfinite(product.detach()).all()):
            row, column = torch.isfinite(product).logical_not().nonzero()[0].tolist()
            raise ValueError(
                f"LinearOperator: {name} must return finite numbers, "
                f"got {product[row, column].item()} at index ({row}, {column})"
            )
        return product.detach()


def _empty(dtype: Any) -> Any:
    import numpy as np

    return np.empty(0, dtype=np.float64 if dtype is None else dtype)
