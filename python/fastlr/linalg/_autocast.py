"""No product of this package is lowered by autocast."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")

_DEVICES = ("cpu", "cuda")


def as_written(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function compute in the types of its arguments, whoever calls it.

    Autocast is for layers, which bear products in bfloat16. What is asked of an algorithm here, an
    orthonormal basis or a tolerance, would be lost, and iterations mix types. The compiled core has
    the same guard.
    """

    @functools.wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        lowered = [device for device in _DEVICES if torch.is_autocast_enabled(device)]
        if not lowered:
            return function(*args, **kwargs)
        with torch.autocast(lowered[0], enabled=False):
            return guarded(*args, **kwargs)

    return guarded
