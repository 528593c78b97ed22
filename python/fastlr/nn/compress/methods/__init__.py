"""The ways to weigh a layer's error, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from fastlr.nn.compress.gram import Gram
from fastlr.nn.compress.methods import svd, svd_llm
from fastlr.nn.compress.solver import Solution


@dataclass(frozen=True)
class Method:
    """A front end of the solver.

    Attributes
    ----------
    factor : callable
        From a weight and its inputs' Gram matrix (or None) to a :class:`Solution`.
    calibrated : bool
        Whether the factors depend on the Gram matrix.
    """

    factor: Callable[[Tensor, Gram | None], Solution]
    calibrated: bool


METHODS: dict[str, Method] = {
    "svd": Method(svd.factor, calibrated=False),
    "svd_llm": Method(svd_llm.factor, calibrated=True),
}


def method_named(name: str) -> Method:
    """The method called `name`; ValueError, with the list of names, when there is none."""
    if name not in METHODS:
        known = ", ".join(sorted(METHODS))
        raise ValueError(f"method must be one of {known}, got {name!r}")
    return METHODS[name]
