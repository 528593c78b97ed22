"""Adapt NumPy and torch inputs to the core's types, and its results back to the caller's."""

import warnings
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array: TypeAlias = npt.NDArray[Any] | Tensor

_HALF = (torch.float16, torch.bfloat16)
_COMPUTED = (torch.float32, torch.float64)


@dataclass(frozen=True)
class Adapted:
    """A matrix in a type that the core computes in, and the way back to the caller's type."""

    tensor: Tensor
    numpy: bool
    dtype: torch.dtype

    def restore(self, result: Tensor) -> Any:
        """Give a result of the core the dtype and the kind of the input."""
        if result.is_floating_point():
            result = result.to(self.dtype)
        return result.numpy() if self.numpy else result


def adapt(A: Any, caller: str, name: str = "A") -> Adapted:
    """Turn A into a float32 or float64 matrix, never written to by the core.

    float16 and bfloat16 are computed in float32; integers are promoted to the default float type
    of their library.
    """
    if isinstance(A, Tensor):
        return _adapt_tensor(A, caller, name, numpy=False, promoted=torch.get_default_dtype())
    return _adapt_tensor(
        _from_numpy(A, caller, name), caller, name, numpy=True, promoted=torch.float64
    )


def _adapt_tensor(
    A: Tensor, caller: str, name: str, *, numpy: bool, promoted: torch.dtype
) -> Adapted:
    if A.layout != torch.strided:
        raise TypeError(f"{caller}: {name} must be a dense matrix, got layout {A.layout}")
    if A.dim() != 2:
        raise ValueError(f"{caller}: {name} must have 2 dimensions, got shape {tuple(A.shape)}")
    if A.is_complex():
        raise TypeError(f"{caller}: {name} must be real, got {A.dtype}")
    dtype = A.dtype if A.is_floating_point() else promoted
    if dtype not in (*_HALF, *_COMPUTED):
        raise TypeError(f"{caller}: {name} must be a float16 to float64 matrix, got {A.dtype}")
    return Adapted(A.to(torch.float32 if dtype in _HALF else dtype), numpy, dtype)


def _from_numpy(A: Any, caller: str, name: str) -> Tensor:
    array = np.asarray(A)
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise TypeError(
            f"{caller}: {name} must be a real NumPy array or torch tensor, "
            f"got {type(A).__name__} of dtype {array.dtype}"
        )
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if any(stride < 0 or stride % array.itemsize for stride in array.strides):
        array = np.ascontiguousarray(array)
    with warnings.catch_warnings():
        # The core only reads its inputs, so a read-only array is as good as any.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)
