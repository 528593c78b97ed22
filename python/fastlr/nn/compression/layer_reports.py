"""What reports of many layers have in common."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar


class _Named(Protocol):
    @property
    def name(self) -> str: ...


Report = TypeVar("Report", bound=_Named)


class LayerReports(Generic[Report]):
    """Reports of the layers of a model, in `layers`."""

    layers: list[Report]

    def layer(self, name: str) -> Report:
        """The report of one layer; KeyError if there is none of that name."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)

    def _mean(self, number: Callable[[Report], float]) -> float:
        return math.fsum(map(number, self.layers)) / len(self.layers)
