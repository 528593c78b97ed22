"""What the outputs of a convolution with long windows lose if it sees fewer input channels."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn

from fastlr.nn.compression.moments import Moments
from fastlr.nn.compression.reduced_inputs import Fit, directions, log_spaced
from fastlr.nn.compression.windows import CONVOLUTIONS, by_place, fits, has_small_windows, padded
from fastlr.nn.modules.dense import high_precision

# So many numbers of channels are looked at.
_WIDTHS = 16


def has_partial_outputs(layer: nn.Module) -> bool:
    """Whether windows are too long for their second moments, and those of the outputs are not."""
    if not isinstance(layer, CONVOLUTIONS) or has_small_windows(layer):
        return False
    channels = layer.out_channels // layer.groups
    return math.prod(layer.kernel_size) > 1 and fits(_WIDTHS * layer.groups * channels**2)


class PartialOutputs:
    """Moments of (W − W (Q Qᵀ ⊗ I)) x, of the outputs without what r directions Q see.

    The directions, nested, are chosen by the weight and the inputs that come first. The kernel for
    each r is the dense one on these directions: there is no fit as by
    :class:`~fastlr.nn.compression.reduced_inputs.ReducedInputs`.

    Parameters
    ----------
    layer : nn.Module
        A convolution.
    given : Tensor
        Its first input.
    """

    def __init__(self, layer: Any, given: Tensor) -> None:
        self.layer = layer
        g, i = layer.groups, layer.in_channels // layer.groups
        kernel = high_precision(layer.weight).reshape(g, layer.out_channels // g, i, -1)
        seen = by_place(layer, given)
        first = Moments.about(seen)
        first.add(seen)
        none = torch.eye(kernel.shape[3]).to(kernel)
        self.basis = torch.stack(
            [
                directions(part.flatten(1), across, none)
                for part, across in zip(kernel, first.covariance, strict=True)
            ]
        )
        self.weight = torch.einsum("goik,gir->gork", kernel, self.basis)
        self.widths = log_spaced(i, _WIDTHS)
        self.lost: dict[int, Moments] = {}

    def add(self, given: Tensor) -> None:
        """As many multiply-adds as the layer has, and those of the moments in float64."""
        lost: Tensor | float = 0.0
        for start, end in reversed(list(itertools.pairwise([0, *self.widths]))):
            lost = lost + self._seen(given, slice(start, end))
            rows = by_place(self.layer, lost)
            self.lost.setdefault(start, Moments.about(rows)).add(rows)

    def fit(self, width: int) -> Fit:
        """The dense kernel on the first `width` directions."""
        g, o = self.weight.shape[:2]
        whole = self.lost[0]
        moments = self.lost.get(width)
        nothing = torch.zeros_like(whole.covariance)
        return Fit(
            self.basis[..., :width].mT,
            self.weight[:, :, :width].flatten(2),
            whole.covariance,
            nothing if moments is None else moments.covariance,
            torch.zeros_like(whole.mean) if moments is None else moments.mean,
            self.weight.reshape(g, o, -1),
        )

    def _seen(self, given: Tensor, some: slice) -> Tensor:
        """What these directions add to the outputs."""
        layer = self.layer
        axes = len(layer.kernel_size)
        convolve: Any = getattr(nn.functional, f"conv{axes}d")
        # Half types would round more than is lost.
        precision = torch.promote_types(layer.weight.dtype, torch.float32)
        device = layer.weight.device
        inner = self.basis[..., some].mT.flatten(0, 1)
        outer = self.weight[:, :, some].flatten(0, 1)
        first = inner.reshape(*inner.shape, *(1,) * axes).to(device, precision)
        last = outer.reshape(*outer.shape[:2], *layer.kernel_size).to(device, precision)
        images = padded(layer, given).to(precision)
        fewer = convolve(images, first, groups=layer.groups)
        outputs: Tensor = convolve(
            fewer, last, stride=layer.stride, dilation=layer.dilation, groups=layer.groups
        )
        return outputs
