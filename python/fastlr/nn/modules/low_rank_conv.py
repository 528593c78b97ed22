"""Convolutions of low rank."""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from fastlr.nn.modules.conv_splits import split_named
from fastlr.nn.modules.factored_conv import FactoredConv

Self = TypeVar("Self", bound="LowRankConv")


class LowRankConv(FactoredConv):
    """What the low-rank convolutions of 1, 2 and 3 dimensions share."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        rank: int | tuple[int, int],
        split: str = "tucker",
        stride: int | tuple[int, ...] = 1,
        padding: int | str | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        geometry = self._geometry_of(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            padding_mode,
        )
        owner = type(self).__name__
        kind = split_named(owner, split)
        super().__init__(geometry, kind(owner, geometry), rank, bias, device, dtype)
        self.split = split

    @classmethod
    def from_dense(
        cls: type[Self],
        conv: nn.Module,
        rank: int | tuple[int, int] | None = None,
        *,
        ratio: float | None = None,
        tol: float | None = None,
        split: str = "tucker",
    ) -> Self:
        """The layer that is near to a dense one: of a rank, of a size, or within an error.

        Exactly one of `rank`, `ratio` and `tol` is given.

        Parameters
        ----------
        conv : torch.nn.Conv1d, Conv2d or Conv3d
            Of as many dimensions as this class, in float16, bfloat16, float32 or float64. The
            factors are computed in float64 and stored in its dtype, on its device.
        rank : int or pair of int, optional
            Of the kernel of each group; with "tucker" those of the output and of the input
            channels, and an int is both.
        ratio : float, optional
            The share of the kernel's numbers to remove, between 0 and 1. Of the ranks that leave no
            more, those of the least error; with "tucker" that of the truncated HOSVD.
        tol : float, optional
            Between 0 and 1: ‖W − Ŵ‖_F ≤ tol·‖W‖_F for the stored kernel Ŵ, which is measured. Of
            the ranks that promise it, those with the fewest numbers.
        split : {"tucker", "spatial", "channel"}
            How the kernel is stored.

        Returns
        -------
        LowRankConv1d, LowRankConv2d or LowRankConv3d
            A new layer in the mode of `conv`, which is not changed.

        Raises
        ------
        TypeError
            If `conv` is no dense convolution of this many dimensions.
        ValueError
            If not exactly one of the three is given, one is out of range, no rank leaves as little
            as `ratio` asks for, `split` is unknown, or an entry of the kernel is not finite.

        Warns
        -----
        ConvergenceWarning
            Not even full rank meets `tol` in this dtype.

        Notes
        -----
        "spatial" and "channel" take an SVD of an unfolding for each group, and are the best of
        their rank. "tucker" is :func:`fastlr.linalg.tucker` along both channel modes: sweeps of
        alternating least squares, to a minimum. `ratio` and `tol` look at the truncations to all
        ranks first, by one SVD more of each unfolding.
        """
        kind = split_named(cls.__name__, split)
        return cls._nearest(conv, kind, rank, ratio, tol, split=split)

    def _kind(self) -> dict[str, Any]:
        return {"split": self.split}


class LowRankConv1d(LowRankConv):
    """A convolution of low rank: fewer channels inside.

    A drop-in for ``torch.nn.Conv1d``, with its arguments and those of the rank.

    Parameters
    ----------
    in_channels, out_channels : int
        i and o, the channels of the input and of the output.
    kernel_size : int or tuple of int
    rank : int or pair of int
        Of the kernel of each of g groups. "tucker": (output, input), at most (o/g, i/g); an int is
        both. "channel": at most min(o/g, i·k/g) for k entries of the kernel's window.
    split : {"tucker", "channel"}
        "tucker": a 1×1 convolution to g·rank[1] channels, the kernel from those to g·rank[0], a
        1×1 convolution to o (Tucker-2). "channel": the kernel to g·rank channels, and a 1×1
        convolution to o.
    stride, padding, dilation, groups, bias, padding_mode
        As for ``torch.nn.Conv1d``.
    device : torch.device or str, optional
        Where the parameters are created.
    dtype : torch.dtype, optional
        float16, bfloat16, float32 or float64.

    Attributes
    ----------
    factors : torch.nn.Sequential of torch.nn.Conv1d
        The chain. The last one has the bias.
    bias : Parameter of shape (o,) or None
    rank : int or pair of int
    weight : Tensor of shape (0,)
        An empty buffer, so that the layer's checkpoint never loads into a dense layer.

    Raises
    ------
    ValueError
        If a size or the rank is out of range, `groups` does not divide the channels, or a padding
        or split is unknown.
    TypeError
        If a number is no integer, or the dtype is not a real float type.

    See Also
    --------
    LowRankLinear : the same for a linear layer.

    Notes
    -----
    ``flops()`` counts those of one place of the output. For g = 1 and stride 1 two for each number:
    i·r₂ + k·r₁·r₂ + o·r₁ ("tucker", ranks r₁, r₂), r·(i·k + o) ("channel"), against
    o·i·k of the dense layer.

    Sources: Kim, Park, Yoo, Choi, Yang, Shin, "Compression of deep convolutional neural networks
    for fast and low power mobile applications", ICLR 2016 ("tucker"); Zhang, Zou, He, Sun,
    "Accelerating very deep convolutional networks for classification and detection", TPAMI 38
    (2016) ("channel").

    Examples
    --------
    >>> import torch
    >>> from fastlr.nn import LowRankConv1d
    >>> dense = torch.nn.Conv1d(16, 24, 5, padding="same")
    >>> layer = LowRankConv1d.from_dense(dense, rank=(6, 4))
    >>> layer.weight_parameters(), dense.weight.numel()
    (328, 1920)
    >>> layer(torch.zeros(2, 16, 50)).shape
    torch.Size([2, 24, 50])
    """

    dimensions: ClassVar[int] = 1


class LowRankConv2d(LowRankConv):
    """A convolution of low rank: fewer channels inside, or one axis after the other.

    A drop-in for ``torch.nn.Conv2d``, with its arguments and those of the rank.

    Parameters
    ----------
    in_channels, out_channels : int
        i and o, the channels of the input and of the output.
    kernel_size : int or tuple of int
    rank : int or pair of int
        Of the kernel of each of g groups. "tucker": (output, input), at most (o/g, i/g); an int is
        both. "channel": at most min(o/g, i·k/g) for k entries of the kernel's window. "spatial": at
        most min(o·w/g, i·h/g) for an h × w kernel.
    split : {"tucker", "spatial", "channel"}
        "tucker": a 1×1 convolution to g·rank[1] channels, the kernel from those to g·rank[0], a
        1×1 convolution to o (Tucker-2). "channel": the kernel to g·rank channels, and a 1×1
        convolution to o. "spatial": h × 1 to g·rank channels, and 1 × w to o.
    stride, padding, dilation, groups, bias, padding_mode
        As for ``torch.nn.Conv2d``.
    device : torch.device or str, optional
        Where the parameters are created.
    dtype : torch.dtype, optional
        float16, bfloat16, float32 or float64.

    Attributes
    ----------
    factors : torch.nn.Sequential of torch.nn.Conv2d
        The chain. The last one has the bias.
    bias : Parameter of shape (o,) or None
    rank : int or pair of int
    weight : Tensor of shape (0,)
        An empty buffer, so that the layer's checkpoint never loads into a dense layer.

    Raises
    ------
    ValueError
        If a size or the rank is out of range, `groups` does not divide the channels, or a padding
        or split is unknown.
    TypeError
        If a number is no integer, or the dtype is not a real float type.

    See Also
    --------
    CPConv2d : one axis and one channel at a time.

    Notes
    -----
    ``flops()`` counts those of one place of the output. For g = 1 and stride 1 two for
    each number: i·r₂ + k·r₁·r₂ + o·r₁ ("tucker", ranks r₁, r₂), r·(i·k + o) ("channel"), r·(i·h +
    o·w) ("spatial"), against o·i·k of the dense layer.

    Sources: Kim, Park, Yoo, Choi, Yang, Shin, "Compression of deep convolutional neural networks
    for fast and low power mobile applications", ICLR 2016 ("tucker"); Jaderberg, Vedaldi,
    Zisserman, "Speeding up convolutional neural networks with low rank expansions", BMVC 2014
    ("spatial"); Zhang, Zou, He, Sun, "Accelerating very deep convolutional networks for
    classification and detection", TPAMI 38 (2016) ("channel").

    Examples
    --------
    >>> import torch
    >>> from fastlr.nn import LowRankConv2d
    >>> dense = torch.nn.Conv2d(16, 24, 3, stride=2, padding=1)
    >>> layer = LowRankConv2d.from_dense(dense, ratio=0.5)
    >>> layer.weight_parameters() <= 0.5 * dense.weight.numel()
    True
    >>> layer(torch.zeros(2, 16, 9, 9)).shape
    torch.Size([2, 24, 5, 5])
    >>> layer = LowRankConv2d.from_dense(dense, tol=0.3, split="spatial")
    >>> error = torch.dist(layer.to_dense().weight, dense.weight)
    >>> bool(error <= 0.3 * dense.weight.norm())
    True
    """

    dimensions: ClassVar[int] = 2


class LowRankConv3d(LowRankConv):
    """A convolution of low rank: fewer channels inside, or one axis before the others.

    A drop-in for ``torch.nn.Conv3d``, with its arguments and those of the rank.

    Parameters
    ----------
    in_channels, out_channels : int
        i and o, the channels of the input and of the output.
    kernel_size : int or tuple of int
    rank : int or pair of int
        Of the kernel of each of g groups. "tucker": (output, input), at most (o/g, i/g); an int is
        both. "channel": at most min(o/g, i·k/g) for k entries of the kernel's window. "spatial": at
        most min(o·h·w/g, i·t/g) for a t × h × w kernel.
    split : {"tucker", "spatial", "channel"}
        "tucker": a 1×1 convolution to g·rank[1] channels, the kernel from those to g·rank[0], a
        1×1 convolution to o (Tucker-2). "channel": the kernel to g·rank channels, and a 1×1
        convolution to o. "spatial": t × 1 × 1 to g·rank channels, and 1 × h × w to o.
    stride, padding, dilation, groups, bias, padding_mode
        As for ``torch.nn.Conv3d``.
    device : torch.device or str, optional
        Where the parameters are created.
    dtype : torch.dtype, optional
        float16, bfloat16, float32 or float64.

    Attributes
    ----------
    factors : torch.nn.Sequential of torch.nn.Conv3d
        The chain. The last one has the bias.
    bias : Parameter of shape (o,) or None
    rank : int or pair of int
    weight : Tensor of shape (0,)
        An empty buffer, so that the layer's checkpoint never loads into a dense layer.

    Raises
    ------
    ValueError
        If a size or the rank is out of range, `groups` does not divide the channels, or a padding
        or split is unknown.
    TypeError
        If a number is no integer, or the dtype is not a real float type.

    See Also
    --------
    LowRankConv2d : the same for images.

    Notes
    -----
    ``flops()`` counts those of one place of the output. For g = 1 and stride 1 two for
    each number: i·r₂ + k·r₁·r₂ + o·r₁ ("tucker", ranks r₁, r₂), r·(i·k + o) ("channel"), r·(i·t +
    o·h·w) ("spatial"), against o·i·k of the dense layer.

    Sources: Kim, Park, Yoo, Choi, Yang, Shin, "Compression of deep convolutional neural networks
    for fast and low power mobile applications", ICLR 2016 ("tucker"); Jaderberg, Vedaldi,
    Zisserman, "Speeding up convolutional neural networks with low rank expansions", BMVC 2014
    ("spatial"); Zhang, Zou, He, Sun, "Accelerating very deep convolutional networks for
    classification and detection", TPAMI 38 (2016) ("channel").

    Examples
    --------
    >>> import torch
    >>> from fastlr.nn import LowRankConv3d
    >>> dense = torch.nn.Conv3d(8, 12, 3, padding=1)
    >>> layer = LowRankConv3d.from_dense(dense, rank=10, split="spatial")
    >>> layer.weight_parameters(), dense.weight.numel()
    (1320, 2592)
    >>> layer(torch.zeros(2, 8, 4, 6, 6)).shape
    torch.Size([2, 12, 4, 6, 6])
    """

    dimensions: ClassVar[int] = 3
