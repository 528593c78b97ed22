"""What the convolutions that are chains of smaller ones have in common."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor, nn

from fastlr.linalg import ConvergenceWarning
from fastlr.linalg._warnings import warn
from fastlr.nn.modules.base import relative_distance
from fastlr.nn.modules.conv_geometry import (
    DENSE,
    DenseConv,
    Geometry,
    check_float,
    dense_kernel,
    geometry_of,
)
from fastlr.nn.modules.conv_splits import ConvSplit, Ranks
from fastlr.nn.modules.dense import dense_bias, high_precision

Self = TypeVar("Self", bound="FactoredConv")


class FactoredConv(nn.Module, abc.ABC):
    """A convolution whose kernel is stored as a chain of smaller convolutions, `factors`.

    Beside them it keeps a persistent buffer ``weight`` without any element: a checkpoint that holds
    it cannot be loaded into a dense layer.
    """

    dimensions: ClassVar[int]

    weight: Tensor

    def __init__(
        self,
        geometry: Geometry,
        split: ConvSplit,
        rank: Any,
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        check_float(type(self).__name__, dtype)
        self._geometry = geometry
        self._split = split
        self._ranks = split.checked(rank)
        links = split.links(self._ranks)
        self.factors = nn.Sequential(
            *(
                DENSE[self.dimensions](
                    link.in_channels,
                    link.out_channels,
                    groups=link.groups,
                    bias=bias and link is links[-1],
                    device=device,
                    dtype=dtype,
                    **geometry.along(link.axes),
                )
                for link in links
            )
        )
        self.register_buffer("weight", torch.empty(0, device=device, dtype=dtype))
        self.reset_parameters()

    @property
    def in_channels(self) -> int:
        return self._geometry.in_channels

    @property
    def out_channels(self) -> int:
        return self._geometry.out_channels

    @property
    def kernel_size(self) -> tuple[int, ...]:
        return self._geometry.kernel_size

    @property
    def stride(self) -> tuple[int, ...]:
        return self._geometry.stride

    @property
    def padding(self) -> str | tuple[int, ...]:
        return self._geometry.padding

    @property
    def dilation(self) -> tuple[int, ...]:
        return self._geometry.dilation

    @property
    def groups(self) -> int:
        return self._geometry.groups

    @property
    def padding_mode(self) -> str:
        return self._geometry.padding_mode

    @property
    def rank(self) -> int | Ranks:
        return self._ranks if len(self._ranks) > 1 else self._ranks[0]

    @property
    def bias(self) -> nn.Parameter | None:
        """The bias of the last factor."""
        return cast("nn.Parameter | None", self._chain()[-1].bias)

    def reset_parameters(self) -> None:
        """Draw factors whose kernel has the variance of a fresh dense one, 1/(3·fan-in).

        The bias is zero.
        """
        weights = self._weights()
        for weight in weights:
            # All but the last one keep the variance of what goes through.
            bound = math.sqrt((1 if weight is weights[-1] else 3) / weight[0].numel())
            nn.init.uniform_(weight, -bound, bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer to a ``(batch ×) in_channels × …`` tensor."""
        output: Tensor = self.factors(input)
        return output

    def compose(self) -> Tensor:
        """The dense kernel, out_channels × in_channels/groups × kernel_size, in float64."""
        return self._split.compose([high_precision(W) for W in self._weights()]).flatten(0, 1)

    def to_dense(self) -> DenseConv:
        """The dense ``torch.nn`` convolution with the same kernel, bias and geometry.

        The kernel is composed in float64 and rounded once to this layer's dtype.
        """
        factor = self._weights()[0]
        conv = DENSE[self.dimensions](
            **self._geometry.arguments(),
            bias=self.bias is not None,
            device=factor.device,
            dtype=factor.dtype,
        )
        with torch.no_grad():
            conv.weight.copy_(self.compose())
            if self.bias is not None and conv.bias is not None:
                conv.bias.copy_(self.bias)
        return conv.train(self.training)

    def weight_parameters(self) -> int:
        """How many numbers stand for the kernel (the bias is not counted)."""
        return int(self._split.stored(self._ranks))

    def flops(self) -> int:
        """Of one place of the output, all its channels: two for each product with a weight.

        With a stride a factor before the last step is computed in several places for each one of
        the output. Borders are not counted.
        """
        places, total = 1, 0
        for factor in reversed(self._chain()):
            total += 2 * factor.weight.numel() * places
            places *= math.prod(factor.stride)
        return total

    def structure(self) -> dict[str, Any]:
        """The arguments that rebuild an empty layer of this shape."""
        return {
            **self._geometry.arguments(),
            "rank": self.rank,
            **self._kind(),
            "bias": self.bias is not None,
        }

    def extra_repr(self) -> str:
        described = ", ".join(f"{key}={value}" for key, value in self.structure().items())
        parameters = sum(p.numel() for p in self.parameters())
        return f"{described}, parameters={parameters}, flops={self.flops()}"

    def _kind(self) -> dict[str, Any]:
        """The arguments that say how the kernel is stored."""
        return {}

    def _weights(self) -> list[Tensor]:
        return [factor.weight for factor in self._chain()]

    def _chain(self) -> list[DenseConv]:
        return [cast(DenseConv, factor) for factor in self.factors]

    @classmethod
    def in_place_of(
        cls: type[Self],
        conv: nn.Module,
        ranks: Ranks,
        weights: list[Tensor],
        bias: Tensor | None,
        **more: Any,
    ) -> Self:
        """The layer of these factors with the geometry, dtype, device and mode of a dense one."""
        create: Any = cls
        kernel = dense_kernel(cls.__name__, conv, cls.dimensions)
        layer: Self = create(
            **geometry_of(cls.__name__, conv).arguments(),
            rank=ranks if len(ranks) > 1 else ranks[0],
            bias=bias is not None,
            device="meta",
            dtype=kernel.dtype,
            **more,
        ).to_empty(device=kernel.device)
        layer._store(weights, bias)
        return layer.train(conv.training)

    @classmethod
    def _geometry_of(cls, *arguments: Any) -> Geometry:
        return Geometry.checked(cls.__name__, cls.dimensions, *arguments)

    @classmethod
    def _nearest(
        cls: type[Self],
        conv: nn.Module,
        kind: Callable[[str, Geometry], ConvSplit],
        rank: Any,
        ratio: float | None,
        tol: float | None,
        **more: Any,
    ) -> Self:
        """The layer of a rank, of a size, or of an error."""
        owner = cls.__name__
        if sum(given is not None for given in (rank, ratio, tol)) != 1:
            raise ValueError(f"{owner}: exactly one of rank, ratio and tol must be given")
        weight = dense_kernel(owner, conv, cls.dimensions)
        geometry = geometry_of(owner, conv)
        split = kind(owner, geometry)
        kernel = high_precision(weight).reshape(geometry.kernel_shape)

        def built(ranks: Ranks, goal: float | None = None) -> Self:
            weights = split.decompose(kernel, ranks, goal)
            return cls.in_place_of(conv, ranks, weights, dense_bias(conv), **more)

        if rank is not None:
            return built(split.checked(rank))
        if ratio is not None:
            return built(_ranks_left(split, kernel, ratio))
        goal = _tolerance(owner, tol)
        dense = kernel.flatten(0, 1).flatten(1)
        attempts: dict[Ranks, tuple[Self, float]] = {}

        def attempt(ranks: Ranks) -> float:
            layer = built(ranks, goal)
            attempts[ranks] = layer, relative_distance(layer.compose().flatten(1), dense)
            return attempts[ranks][1]

        layer, error = attempts[split.reaching(kernel, goal, attempt)]
        if error > goal:
            warn(
                f"{owner}: the error of the kernel is {error:.3g} in {weight.dtype} at full rank, "
                f"more than tol = {goal:g}",
                ConvergenceWarning,
            )
        return layer

    def _store(self, weights: list[Tensor], bias: Tensor | None) -> None:
        with torch.no_grad():
            for own, found in zip(self._weights(), weights, strict=True):
                own.copy_(found.reshape(own.shape))
            if self.bias is not None and bias is not None:
                self.bias.copy_(bias)


def _ranks_left(split: ConvSplit, kernel: Tensor, ratio: Any) -> Ranks:
    """The best ranks once this share of the numbers is removed."""
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio < 1:
        raise ValueError(
            f"{split.owner}: ratio must be between 0 and 1, both excluded, got {ratio!r}"
        )
    budget = math.floor(kernel.numel() * (1 - ratio))
    ranks = split.within(kernel, budget)
    if ranks is None:
        least = int(split.stored((1,) * len(split.limits)))
        raise ValueError(
            f"{split.owner}: ratio must leave the {least} numbers of rank 1, got {ratio}, which "
            f"leaves {budget}"
        )
    return ranks


def _tolerance(owner: str, tol: Any) -> float:
    if isinstance(tol, bool) or not isinstance(tol, int | float):
        raise TypeError(f"{owner}: tol must be a real number, got {tol!r}")
    if not 0 < tol < 1:
        raise ValueError(f"{owner}: tol must be between 0 and 1, got {tol}")
    return float(tol)
