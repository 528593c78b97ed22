"""Checks of scalar arguments that every routine shares."""

import math
import operator
from typing import Any, Literal, TypeAlias

import torch

Seed: TypeAlias = int | torch.Generator | None


def as_integer(value: Any, caller: str, name: str) -> int:
    """Return `value` as an int; a bool or a fractional number is a TypeError."""
    if isinstance(value, bool):
        raise TypeError(f"{caller}: {name} must be an integer, got {value}")
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{caller}: {name} must be an integer, got {value!r}") from None


def at_least(value: Any, least: int, caller: str, name: str) -> int:
    """Return `value` as an int; one below `least` is a ValueError."""
    number = as_integer(value, caller, name)
    if number < least:
        raise ValueError(f"{caller}: {name} must be at least {least}, got {number}")
    return number


def as_real(value: Any, caller: str, name: str) -> float:
    """Return `value` as a float; what is not a real number is a TypeError."""
    if isinstance(value, bool | str):
        raise TypeError(f"{caller}: {name} must be a real number, got {value!r}")
    try:
        return float(value)
    except TypeError:
        raise TypeError(f"{caller}: {name} must be a real number, got {value!r}") from None


def not_negative(value: Any, caller: str, name: str) -> float:
    """Return `value` as a float; one that is negative or not finite is a ValueError."""
    number = as_real(value, caller, name)
    if not 0 <= number < math.inf:
        raise ValueError(f"{caller}: {name} must be non-negative and finite, got {number:g}")
    return number


def as_tolerance(value: Any, caller: str) -> float:
    """Return a relative tolerance; one that is not between 0 and 1 is a ValueError."""
    tol = as_real(value, caller, "tol")
    if not 0 < tol < 1:
        raise ValueError(f"{caller}: tol must be between 0 and 1, got {tol}")
    return tol


def as_axis(value: Any, dimensions: int, caller: str, name: str) -> int:
    """Return one of so many axes, counted from the start; negative ones count from the end."""
    axis = as_integer(value, caller, name)
    if not -dimensions <= axis < dimensions:
        raise ValueError(
            f"{caller}: {name} must be from {-dimensions} to {dimensions - 1}, got {axis}"
        )
    return axis % dimensions


def as_power_iters(value: Any, caller: str) -> int | None:
    """Return a number of iterations, or None for "auto"."""
    if isinstance(value, str) and value == "auto":
        return None
    return as_integer(value, caller, 'power_iters (or "auto")')


def as_out(value: Any, caller: str) -> Literal["torch", "numpy"] | None:
    """Return the kind of a result; what is none of them is a ValueError."""
    if value not in (None, "torch", "numpy"):
        raise ValueError(f'{caller}: out must be "torch", "numpy" or None, got {value!r}')
    kind: Literal["torch", "numpy"] | None = value
    return kind


def as_seed(seed: Seed, caller: str) -> int:
    """Return the 64-bit key of the random draws, as the signed number that operators take.

    An int is used as it is; from a `torch.Generator`, or from torch's default generator where
    `seed` is None, one 64-bit number is drawn.
    """
    if seed is None or isinstance(seed, torch.Generator):
        device = "cpu" if seed is None else seed.device
        drawn = torch.randint(-(2**63), 2**63 - 1, (), generator=seed, device=device)
        return int(drawn.item())
    if isinstance(seed, bool) or not hasattr(seed, "__index__"):
        raise TypeError(
            f"{caller}: seed must be an int, a torch.Generator or None, got {type(seed).__name__}"
        )
    number = operator.index(seed)
    if not -(2**63) <= number < 2**64:
        raise ValueError(f"{caller}: seed must fit 64 bits, got {number}")
    return number - 2**64 if number >= 2**63 else number
