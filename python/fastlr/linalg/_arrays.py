"""Adapt NumPy and torch inputs to the core's types, and its results back to the caller's."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array: TypeAlias = npt.NDArray[Any] | Tensor

_HALF = (torch.float16, torch.bfloat16)
_REAL = (torch.float32, torch.float64)
_COMPLEX = (torch.complex64, torch.complex128)


@dataclass(frozen=True)
class Adapted:
    """A matrix in a type that the core computes in, and the way back to the caller's type."""

    tensor: Tensor
    numpy: bool
    dtype: torch.dtype

    def restore(self, result: Tensor) -> Any:
        """Give a result of the core the dtype and the kind of the input."""
        return restored(result, self.dtype, numpy=self.numpy)


def restored(result: Tensor, dtype: torch.dtype, *, numpy: bool) -> Any:
    """Give a result of the core the dtype of the input (its real type, for a real result).

    NumPy has no bfloat16: its results stay in float32.
    """
    if result.is_floating_point() and not (numpy and dtype == torch.bfloat16):
        result = result.to(dtype.to_real() if dtype.is_complex else dtype)
    return result.detach().cpu().numpy() if numpy else result


def adapt(
    A: Any, caller: str, name: str = "A", *, batched: bool = False, complex_: bool = False
) -> Adapted:
    """Turn A into a dense matrix of a type that the core computes in; the core never writes to it.

    float16 and bfloat16 are computed in float32; integers are promoted to the default float type
    of their library. `batched` admits leading dimensions, `complex_` complex entries.
    """
    if isinstance(A, Tensor):
        tensor, numpy, promoted = A, False, torch.get_default_dtype()
    else:
        tensor, numpy, promoted = _from_numpy(A, caller, name), True, torch.float64
    if tensor.layout != torch.strided:
        raise TypeError(f"{caller}: {name} must be a dense matrix, got layout {tensor.layout}")
    if tensor.dim() < 2 or (tensor.dim() > 2 and not batched):
        least = "at least 2" if batched else "2"
        raise ValueError(
            f"{caller}: {name} must have {least} dimensions, got shape {tuple(tensor.shape)}"
        )
    if tensor.is_complex() and not complex_:
        raise TypeError(f"{caller}: {name} must be real, got {tensor.dtype}")
    dtype, computed = computed_dtype(tensor.dtype, promoted, caller, name)
    return Adapted(tensor.to(computed), numpy, dtype)


def computed_dtype(
    dtype: torch.dtype, promoted: torch.dtype, caller: str, name: str
) -> tuple[torch.dtype, torch.dtype]:
    """Return the dtype of the results for an input of `dtype`, and the one they are computed in."""
    if not (dtype.is_floating_point or dtype.is_complex):
        dtype = promoted
    if dtype in _HALF:
        return dtype, torch.float32
    if dtype not in (*_REAL, *_COMPLEX):
        raise TypeError(
            f"{caller}: {name} must be a float16 to float64 or complex64 to complex128 matrix, "
            f"got {dtype}"
        )
    return dtype, dtype


def torch_dtype(dtype: npt.DTypeLike, caller: str, name: str, kind: str) -> torch.dtype:
    """Return torch's name of a NumPy type of numbers; `kind` is what has it."""
    numbers = np.dtype(dtype)
    if numbers.kind not in "biufc" or numbers.itemsize > (16 if numbers.kind == "c" else 8):
        raise TypeError(
            f"{caller}: {name} must be a NumPy array or torch tensor of numbers, "
            f"got {kind} of dtype {numbers}"
        )
    return as_tensor(np.empty(0, numbers)).dtype


def _from_numpy(A: Any, caller: str, name: str) -> Tensor:
    array = np.asarray(A)
    torch_dtype(array.dtype, caller, name, type(A).__name__)
    return as_tensor(array)


def check_one_matrix(shape: Sequence[int], caller: str) -> None:
    """Refuse a batch where a tolerance is to be met."""
    if len(shape) > 2:
        raise ValueError(
            f"{caller}: tol takes one matrix, since ranks differ within a batch; got shape "
            f"{tuple(shape)}"
        )


def number_or_batch(values: Tensor) -> Any:
    """Return a Python number for one matrix, and an array for a batch."""
    return values if values.dim() else values.item()


def as_weights(weights: Any, count: int, caller: str) -> Tensor:
    """Return non-negative weights, one for each of `count` rows, without a gradient."""
    tensor = weights if isinstance(weights, Tensor) else as_tensor(np.asarray(weights))
    if tensor.shape != (count,):
        raise ValueError(f"{caller}: weights must have shape ({count},), got {tuple(tensor.shape)}")
    bad = torch.nonzero(~((tensor >= 0) & (tensor < math.inf)))
    if len(bad):
        index = int(bad[0])
        raise ValueError(
            f"{caller}: weights must be non-negative and finite, got {tensor[index].item():g} at "
            f"index ({index},)"
        )
    return tensor.detach()


def as_mask(mask: Any, of: Tensor, caller: str, name: str) -> Tensor:
    """Return a boolean tensor of the shape of another one, which the caller knows by `name`."""
    observed = mask if isinstance(mask, Tensor) else torch.from_numpy(np.array(mask))
    if observed.dtype != torch.bool:
        raise TypeError(f"{caller}: mask must be boolean, got {observed.dtype}")
    if observed.shape != of.shape:
        raise ValueError(
            f"{caller}: mask must have the shape of {name}, {tuple(of.shape)}, got "
            f"{tuple(observed.shape)}"
        )
    return observed.to(of.device)


def as_tensor(array: npt.NDArray[Any]) -> Tensor:
    """Return a tensor that shares the memory of an array of numbers where torch can read it."""
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if any(stride < 0 or stride % array.itemsize for stride in array.strides):
        array = np.ascontiguousarray(array)
    with warnings.catch_warnings():
        # The core only reads its inputs, so a read-only array is as good as any.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)
