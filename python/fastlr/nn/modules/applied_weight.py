"""The weight of a linear layer that keeps it in a form of its own, from what the layer does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fastlr.nn.modules.base import CompressedLinear
from fastlr.nn.modules.dense import FLOAT_DTYPES, dense_weight, high_precision, is_conv1d

# Rows of the identity that go through a layer at once.
_CHUNK = 512
# A layer that rounds its inputs to eight bits is some 1 % from linear; a nonlinear one is far off.
_NONLINEAR = 0.05
_PROBES = 4


def layer_sizes(layer: nn.Module) -> tuple[int, int]:
    """(out_features, in_features); TypeError for a module that does not tell them."""
    if is_conv1d(layer):
        out_features, in_features = dense_weight(layer).shape
        return out_features, in_features
    sizes = getattr(layer, "out_features", None), getattr(layer, "in_features", None)
    if not all(isinstance(size, int) for size in sizes):
        raise TypeError(
            "expected a linear layer with in_features and out_features, got " + type(layer).__name__
        )
    return sizes  # type: ignore[return-value]


def layer_tensors(layer: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers."""
    return chain(layer.parameters(), layer.buffers())


def is_plain(layer: nn.Module) -> bool:
    """Whether `layer` is an ``nn.Linear`` or a ``Conv1D`` with an ordinary float weight."""
    if type(layer) is not nn.Linear and not is_conv1d(layer):
        return False
    # Quantizers also put tensors of their own into an nn.Linear.
    return type(layer.weight) in (nn.Parameter, Tensor) and layer.weight.dtype in FLOAT_DTYPES


def applied_weight(layer: nn.Module, dtype: torch.dtype | None = None) -> Tensor:
    """The o × i matrix by which `layer` multiplies its inputs, float64.

    Read from the layer where it is dense or one of this package; otherwise the images of the unit
    vectors, in `dtype` (the default dtype if None): i tokens through the layer, and 4 more that
    tell whether it is linear at all.

    Raises
    ------
    TypeError
        If the layer does not tell its sizes.
    ValueError
        If what it does to random inputs is more than 5 % from what the matrix does to them.
    """
    if isinstance(layer, CompressedLinear):
        return layer.compose()
    if is_plain(layer):
        return high_precision(dense_weight(layer))
    with torch.no_grad():
        return _images(layer, torch.get_default_dtype() if dtype is None else dtype)


def _images(layer: nn.Module, dtype: torch.dtype) -> Tensor:
    out_features, in_features = layer_sizes(layer)
    device = next((tensor.device for tensor in layer_tensors(layer)), torch.device("cpu"))
    apply = _without_bias(layer)
    offset = high_precision(apply(torch.zeros(1, in_features, device=device, dtype=dtype)))
    weight = offset.new_empty(out_features, in_features)
    for start in range(0, in_features, _CHUNK):
        stop = min(start + _CHUNK, in_features)
        units = torch.zeros(stop - start, in_features, device=device, dtype=dtype)
        units[:, start:stop].fill_diagonal_(1)
        weight[:, start:stop] = (high_precision(apply(units)) - offset).T

    generator = torch.Generator().manual_seed(0)
    probes = torch.randn(_PROBES, in_features, generator=generator).to(device, dtype)
    expected = high_precision(probes) @ weight.T
    off = torch.linalg.matrix_norm(high_precision(apply(probes)) - offset - expected)
    size = torch.linalg.matrix_norm(expected)
    if not bool(off <= _NONLINEAR * size):
        raise ValueError(
            f"a {type(layer).__name__} must be a linear map of its inputs, but its outputs are "
            f"{float(off / size):.0%} from those of the matrix that its columns make"
        )
    return weight


def _without_bias(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    """The layer as a function, with zeros for its bias: outputs beside a bias are rounded more."""
    bias = layer._parameters.get("bias")
    if bias is None:
        return layer
    zeros = {"bias": torch.zeros_like(bias)}
    return lambda inputs: functional_call(layer, zeros, (inputs,))
