"""A user's function on a box, seen from the cube [−1, 1]^d: checked, counted and scaled."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastlr.linalg._arrays import as_tensor, torch_dtype

# Points of a call: some megabytes, and enough for what a call costs to be little.
_BLOCK = 1 << 16


class BoxFunction:
    """The function, whose values are divided by a power of two near the first ones' largest.

    Attributes
    ----------
    count : int
        Points at which it was evaluated.
    largest : float
        The largest magnitude so far, of the scaled values.
    scale : float
        The power of two.
    real_dtype : torch.dtype
    device : torch.device
        Of the points.
    """

    def __init__(
        self,
        f: Callable[[Any], Any],
        box: Sequence[tuple[float, float]],
        dtype: torch.dtype,
        device: torch.device,
        numpy: bool,
        caller: str,
    ) -> None:
        self.count, self.largest, self.scale = 0, 0.0, 1.0
        self._f, self._numpy, self._caller = f, numpy, caller
        self.real_dtype, self.device = dtype, device
        self._low, self._high = torch.tensor(box, dtype=dtype, device=device).T
        self._dtype: torch.dtype | None = None

    @property
    def axes(self) -> int:
        """The number of variables."""
        return len(self._low)

    def __call__(self, unit: Tensor) -> Tensor:
        """Values at points (N, d) of the cube, in blocks."""
        starts = range(0, len(unit), _BLOCK)
        return torch.cat([self._block(unit[first : first + _BLOCK]) for first in starts])

    def on_grid(self, axes: Sequence[Tensor]) -> Tensor:
        """Values on the tensor grid of some coordinates in the cube; its points exist in blocks."""
        shape = [len(coordinates) for coordinates in axes]
        total = math.prod(shape)
        parts = []
        for first in range(0, total, _BLOCK):
            flat = torch.arange(first, min(first + _BLOCK, total), device=self.device)
            places = torch.unravel_index(flat, shape)
            pairs = zip(axes, places, strict=True)
            parts.append(self._block(torch.stack([t[place] for t, place in pairs], 1)))
        return torch.cat(parts).reshape(shape)

    def fibres(self, axis: int, nodes: Tensor, through: Tensor) -> Tensor:
        """Values (nodes, fibres) along an axis, at its nodes, through points (fibres, d)."""
        unit = through.repeat(len(nodes), 1, 1)
        unit[:, :, axis] = nodes[:, None]
        return self(unit.reshape(-1, self.axes)).reshape(len(nodes), len(through))

    def _block(self, unit: Tensor) -> Tensor:
        # The ends of the box are met to the bit, and no point lies outside.
        points = self._low * (0.5 - 0.5 * unit) + self._high * (0.5 + 0.5 * unit)
        points = points.clamp(self._low, self._high)
        # A copy, as the function may write to what it gets.
        values = self._checked(
            self._f(points.cpu().numpy().copy() if self._numpy else points.clone()), points
        )
        self.count += len(points)
        size = float(values.abs().max())
        if not self.largest and size:
            # Powers of two that are numbers of the type, whatever the values.
            most = 1000 if self.real_dtype == torch.float64 else 120
            self.scale = 2.0 ** max(-most, min(most, math.frexp(size)[1]))
        # A quotient by a power of two is exact; its inverse may not be a number.
        self.largest = max(self.largest, size / self.scale)
        return values / self.scale

    def _checked(self, returned: Any, points: Tensor) -> Tensor:
        count = len(points)
        if tuple(np.shape(returned)) != (count,):
            raise ValueError(
                f"{self._caller}: f must return shape ({count},) for points of shape "
                f"{tuple(points.shape)}, got {tuple(np.shape(returned))}"
            )
        if not isinstance(returned, Tensor):
            array = np.asarray(returned)
            torch_dtype(array.dtype, self._caller, "what f returns", type(returned).__name__)
            returned = as_tensor(array)
        if self._dtype is None:
            real = self.real_dtype
            self._dtype = real.to_complex() if returned.is_complex() else real
        if returned.is_complex() and not self._dtype.is_complex:
            raise ValueError(f"{self._caller}: f must always return real numbers, or never")
        values: Tensor = returned.detach().to(points.device, self._dtype)
        bad = torch.nonzero(~torch.isfinite(values))
        if len(bad):
            index = int(bad[0])
            raise ValueError(
                f"{self._caller}: f must return finite numbers, got {values[index].item()} at the "
                f"point {tuple(points[index].tolist())}"
            )
        return values
