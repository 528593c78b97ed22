"""Reading the dense linear layers that fastlr replaces."""

from __future__ import annotations

import torch
from torch import Tensor, nn

FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def is_conv1d(module: nn.Module) -> bool:
    """Whether `module` is transformers' ``Conv1D``, which stores its weight transposed."""
    return any(
        cls.__name__ == "Conv1D" and cls.__module__.startswith("transformers.")
        for cls in type(module).__mro__
    )


def is_dense_linear(module: nn.Module) -> bool:
    """Whether `module` is an ``nn.Linear`` or a transformers ``Conv1D``."""
    return isinstance(module, nn.Linear) or is_conv1d(module)


def dense_weight(module: nn.Module) -> Tensor:
    """The weight of a dense linear layer, ``out_features × in_features``, detached.

    Raises
    ------
    TypeError
        If `module` is neither an ``nn.Linear`` nor a ``Conv1D``, or its weight is not a matrix of
        floating point numbers (a quantized layer).
    """
    if not is_dense_linear(module):
        raise TypeError(
            "expected a torch.nn.Linear or a transformers Conv1D, got " + type(module).__name__
        )
    weight = module.weight
    if not isinstance(weight, Tensor) or weight.dtype not in FLOAT_DTYPES or weight.ndim != 2:
        raise TypeError(
            f"expected a weight matrix of dtype float16, bfloat16, float32 or float64, got "
            f"{getattr(weight, 'dtype', type(weight).__name__)} in {type(module).__name__}; "
            "dequantize the layer first"
        )
    weight = weight.detach()
    return weight.T if is_conv1d(module) else weight


def dense_bias(module: nn.Module) -> Tensor | None:
    """The bias of a dense linear layer, detached, or None."""
    bias = module.bias
    return bias.detach() if isinstance(bias, Tensor) else None


def high_precision(tensor: Tensor) -> Tensor:
    """`tensor` in float64, on its own device, or on the CPU where the device has no float64."""
    device = torch.device("cpu") if tensor.device.type == "mps" else tensor.device
    return tensor.detach().to(device=device, dtype=torch.float64)
