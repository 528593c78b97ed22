"""The windows of a convolution's input: what its kernel is multiplied with at every place."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fastlr.nn.modules.conv_geometry import DENSE

CONVOLUTIONS = tuple(DENSE.values())

# What second moments of one layer may take, in bytes.
_MOST = 2**26
# Windows repeat the input; so many of them are made at a time.
_AT_ONCE = 4096


def has_small_windows(layer: nn.Module) -> bool:
    """Whether the layer sees several places at once, and second moments of that fit 64 MiB."""
    if not isinstance(layer, CONVOLUTIONS):
        return False
    places = math.prod(layer.kernel_size)
    length = layer.in_channels // layer.groups * places
    return places > 1 and fits(layer.groups * length**2)


def fits(numbers: int) -> bool:
    """Whether so many numbers in float64 take at most 64 MiB."""
    return 8 * numbers <= _MOST


def by_place(layer: Any, values: Tensor) -> Tensor:
    """The channels of inputs or outputs at all places, n × groups × those of a group."""
    last = values.movedim(-1 - len(layer.kernel_size), -1)
    return last.reshape(-1, layer.groups, last.shape[-1] // layer.groups)


def padded(layer: Any, given: Tensor) -> Tensor:
    """A batch of inputs with what the layer pads them with."""
    images = given.detach().reshape(-1, *given.shape[-1 - len(layer.kernel_size) :])
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return nn.functional.pad(images, [n for both in reversed(_padding(layer)) for n in both], mode)


def windows(layer: Any, given: Tensor) -> Iterator[Tensor]:
    """All windows of an input, padding included, as parts of n × groups × their length."""
    axes = len(layer.kernel_size)
    images = padded(layer, given)
    for axis, (size, step, apart) in enumerate(
        zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)
    ):
        images = images.unfold(2 + axis, apart * (size - 1) + 1, step)[..., ::apart]
    places = math.prod(images.shape[2 : 2 + axes])
    for part in torch.split(images, max(1, _AT_ONCE // max(1, places))):
        yield part.movedim(1, 1 + axes).reshape(len(part) * places, layer.groups, -1)


def _padding(layer: Any) -> list[tuple[int, int]]:
    """Before and after each axis."""
    if layer.padding == "valid":
        return [(0, 0)] * len(layer.kernel_size)
    if layer.padding == "same":
        around = [
            apart * (size - 1)
            for apart, size in zip(layer.dilation, layer.kernel_size, strict=True)
        ]
        return [(n // 2, n - n // 2) for n in around]
    return [(n, n) for n in layer.padding]
