"""A convolution as a sum of separable ones."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from torch import nn

from fastlr.nn.modules.conv_splits import CPSplit
from fastlr.nn.modules.factored_conv import FactoredConv


class CPConv2d(FactoredConv):
    """A convolution whose kernel is a sum of outer products: one axis and one channel at a time.

    A 1×1 convolution to g·rank channels, h × 1 and 1 × w convolutions of each of them alone, and a
    1×1 convolution to the output channels. A drop-in for ``torch.nn.Conv2d``.

    Parameters
    ----------
    in_channels, out_channels : int
        i and o, the channels of the input and of the output.
    kernel_size : int or pair of int
        (h, w).
    rank : int
        R, outer products for the kernel of each of g groups: at most what is enough for any kernel,
        all four sizes o/g, i/g, h, w multiplied but the largest one.
    stride, padding, dilation, groups, bias, padding_mode
        As for ``torch.nn.Conv2d``.
    device : torch.device or str, optional
        Where the parameters are created.
    dtype : torch.dtype, optional
        float16, bfloat16, float32 or float64.

    Attributes
    ----------
    factors : torch.nn.Sequential of four torch.nn.Conv2d
        The chain. The last one has the bias.
    bias : Parameter of shape (o,) or None
    rank : int
    weight : Tensor of shape (0,)
        An empty buffer, so that the layer's checkpoint never loads into a dense layer.

    Raises
    ------
    ValueError
        If a size or the rank is out of range, `groups` does not divide the channels, or a padding
        is unknown.
    TypeError
        If a number is no integer, or the dtype is not a real float type.

    See Also
    --------
    LowRankConv2d : fewer channels inside; its errors are known for all ranks.

    Notes
    -----
    R·(i + h + w + o) numbers for g = 1, and twice as many flops for one place of the output with
    stride 1, against o·i·h·w of the dense layer.

    Source: Lebedev, Ganin, Rakhuba, Oseledets, Lempitsky, "Speeding-up convolutional neural
    networks using fine-tuned CP-decomposition", ICLR 2015.

    Examples
    --------
    >>> import torch
    >>> from fastlr.nn import CPConv2d
    >>> layer = CPConv2d(16, 24, 3, rank=20, padding=1)
    >>> layer(torch.zeros(2, 16, 9, 9)).shape
    torch.Size([2, 24, 9, 9])
    >>> layer.weight_parameters(), layer.to_dense().weight.numel()
    (920, 3456)
    >>> again = CPConv2d.from_dense(layer.to_dense(), tol=1e-4)
    >>> again.rank
    20
    """

    dimensions: ClassVar[int] = 2

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        rank: int,
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
        split = CPSplit(type(self).__name__, geometry)
        super().__init__(geometry, split, rank, bias, device, dtype)

    @classmethod
    def from_dense(
        cls,
        conv: nn.Module,
        rank: int | None = None,
        *,
        ratio: float | None = None,
        tol: float | None = None,
        ridge: float = 0.0,
        max_sweeps: int = 100,
    ) -> CPConv2d:
        """The layer that is near to a dense one: of a rank, of a size, or within an error.

        Exactly one of `rank`, `ratio` and `tol` is given.

        Parameters
        ----------
        conv : torch.nn.Conv2d
            In float16, bfloat16, float32 or float64. The factors are computed in float64 and stored
            in its dtype, on its device.
        rank : int, optional
            Outer products for the kernel of each group.
        ratio : float, optional
            The share of the kernel's numbers to remove, between 0 and 1; the rank is the largest
            one that leaves no more.
        tol : float, optional
            Between 0 and 1: ‖W − Ŵ‖_F ≤ tol·‖W‖_F for the stored kernel Ŵ, which is measured. The
            rank is doubled until that is met, from the least one that unfoldings allow, and then
            the interval halved: there may be a smaller one.
        ridge : float
            As for :func:`fastlr.linalg.cp`. 1e-4 keeps components from cancelling, at the cost of
            some thousandths of ‖W‖; exact components are not found exactly.
        max_sweeps : int
            As for :func:`fastlr.linalg.cp`, of each decomposition.

        Returns
        -------
        CPConv2d
            A new layer in the mode of `conv`, which is not changed.

        Raises
        ------
        TypeError
            If `conv` is no ``torch.nn.Conv2d``.
        ValueError
            If not exactly one of the three is given, one is out of range, no rank leaves as little
            as `ratio` asks for, or an entry of the kernel is not finite.

        Warns
        -----
        ConvergenceWarning
            With `rank` or `ratio`, that of :func:`fastlr.linalg.cp`: no minimum was reached, or
            components cancel and grow. Not even full rank meets `tol` in this dtype.

        Notes
        -----
        :func:`fastlr.linalg.cp` for each group, with one start that is the same every time; the
        full rank takes all fibres along the longest mode, and is exact. The weights of the
        components are spread evenly over the four factors.
        """
        split = partial(CPSplit, ridge=ridge, max_sweeps=max_sweeps)
        return cls._nearest(conv, split, rank, ratio, tol)
