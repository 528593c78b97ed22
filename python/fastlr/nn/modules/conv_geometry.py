"""The sizes and steps of a convolution, and the dense layers that have them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from fastlr.nn.modules.dense import FLOAT_DTYPES
from fastlr.nn.modules.masked_linear import check_finite

DenseConv: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d

DENSE: dict[int, type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = {
    1: nn.Conv1d,
    2: nn.Conv2d,
    3: nn.Conv3d,
}

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


@dataclass(frozen=True)
class Geometry:
    """What a convolution does but for its kernel, in the words of ``torch.nn.Conv2d``."""

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: str | tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    padding_mode: str

    @classmethod
    def checked(
        cls,
        owner: str,
        dimensions: int,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...],
        padding: int | str | tuple[int, ...],
        dilation: int | tuple[int, ...],
        groups: int,
        padding_mode: str,
    ) -> Geometry:
        """Raise ValueError or TypeError for what is out of range or does not go together."""
        channels = (("in_channels", in_channels), ("out_channels", out_channels))
        for name, value in (*channels, ("groups", groups)):
            _whole(owner, name, value, 1)
        for name, value in channels:
            if value % groups:
                raise ValueError(f"{owner}: groups must divide {name} = {value}, got {groups}")
        if padding_mode not in PADDING_MODES:
            raise ValueError(
                f"{owner}: padding_mode must be one of {', '.join(PADDING_MODES)}, "
                f"got {padding_mode!r}"
            )
        steps = _sizes(owner, "stride", stride, dimensions, 1)
        if isinstance(padding, str):
            if padding not in ("same", "valid"):
                raise ValueError(
                    f'{owner}: padding must be "same", "valid" or numbers, got {padding!r}'
                )
            if padding == "same" and any(step != 1 for step in steps):
                raise ValueError(f'{owner}: padding="same" must have stride 1, got {stride}')
            padded: str | tuple[int, ...] = padding
        else:
            padded = _sizes(owner, "padding", padding, dimensions, 0)
        return cls(
            in_channels,
            out_channels,
            _sizes(owner, "kernel_size", kernel_size, dimensions, 1),
            steps,
            padded,
            _sizes(owner, "dilation", dilation, dimensions, 1),
            groups,
            padding_mode,
        )

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """(g, o/g, i/g, \\*kernel_size): the kernel of each group."""
        g = self.groups
        return (g, self.out_channels // g, self.in_channels // g, *self.kernel_size)

    def arguments(self) -> dict[str, Any]:
        """All of it, by name."""
        return dict(vars(self))

    def along(self, axes: range) -> dict[str, Any]:
        """The kernel size and steps along these axes alone, those of a 1×1 kernel elsewhere."""

        def part(values: tuple[int, ...], other: int) -> tuple[int, ...]:
            return tuple(v if axis in axes else other for axis, v in enumerate(values))

        padding = self.padding if isinstance(self.padding, str) else part(self.padding, 0)
        return {
            "kernel_size": part(self.kernel_size, 1),
            "stride": part(self.stride, 1),
            "padding": padding,
            "dilation": part(self.dilation, 1),
            # Padding does the same to every channel, and to each axis on its own.
            "padding_mode": self.padding_mode if axes else "zeros",
        }


def dense_kernel(owner: str, module: nn.Module, dimensions: int) -> Tensor:
    """The kernel of a dense convolution, (o, i/g, \\*kernel_size), detached.

    Raises
    ------
    TypeError
        If `module` is no convolution of so many dimensions, or its kernel no tensor of that order
        and a float type.
    ValueError
        If an entry is not finite.
    """
    expected = DENSE[dimensions]
    if not isinstance(module, expected):
        raise TypeError(
            f"{owner}: expected a torch.nn.{expected.__name__}, got {type(module).__name__}"
        )
    weight: Any = module.weight
    if not isinstance(weight, Tensor) or weight.dtype not in FLOAT_DTYPES:
        raise TypeError(
            f"{owner}: expected a kernel of dtype float16, bfloat16, float32 or float64, got "
            f"{getattr(weight, 'dtype', type(weight).__name__)}"
        )
    if weight.ndim != dimensions + 2:
        raise ValueError(
            f"{owner}: the kernel must have {dimensions + 2} dimensions, got shape "
            f"{tuple(weight.shape)}"
        )
    check_finite(owner, "weight", weight.detach())
    return weight.detach()


def geometry_of(owner: str, conv: Any) -> Geometry:
    """That of a dense convolution."""
    return Geometry.checked(
        owner,
        len(conv.kernel_size),
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
        conv.padding_mode,
    )


def check_float(owner: str, dtype: torch.dtype | None) -> None:
    """Raise TypeError unless `dtype` is None or a real float type."""
    if dtype is not None and dtype not in FLOAT_DTYPES:
        raise TypeError(f"{owner}: dtype must be a real float type, got {dtype}")


def _whole(owner: str, name: str, value: Any, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{owner}: {name} must be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{owner}: {name} must be at least {least}, got {value}")
    return value


def _sizes(owner: str, name: str, value: Any, dimensions: int, least: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, tuple | list) else (value,) * dimensions
    if len(values) != dimensions:
        raise ValueError(f"{owner}: {name} must be one number or {dimensions}, got {value}")
    return tuple(_whole(owner, name, v, least) for v in values)
