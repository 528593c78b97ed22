"""The shapes in which a weight of rank r is stored, by name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from fastlr.nn.compression.solver import Truncation
from fastlr.nn.modules import InterpolativeLinear, LowRankLinear
from fastlr.nn.modules.base import FactoredLinear
from fastlr.nn.modules.dense import is_conv1d


@dataclass(frozen=True)
class Form:
    """A way to store W' = basis @ projected.

    Attributes
    ----------
    parameters : callable
        (o, i, r) → how many numbers stand for the weight.
    build : callable
        (dense layer, truncation) → the new layer.
    """

    parameters: Callable[[int, int, int], int]
    build: Callable[[nn.Module, Truncation], nn.Module]


def build_layer(
    kind: type[FactoredLinear], linear: nn.Module, truncation: Truncation
) -> FactoredLinear:
    """The low-rank layer of class `kind`, in the dtype and on the device of the dense one."""
    return kind.in_place_of(linear, truncation.basis, truncation.projected)


def build_dense(linear: nn.Module, truncation: Truncation) -> nn.Module:
    """A copy of the dense layer, of its own class, whose weight has lost rank."""
    recomposed = copy.deepcopy(linear)
    weight = truncation.basis @ truncation.projected
    with torch.no_grad():
        target = cast(Tensor, recomposed.weight)
        target.copy_(weight.T if is_conv1d(linear) else weight)
    return recomposed


FORMS: dict[str, Form] = {
    "interpolative": Form(InterpolativeLinear.numbers, partial(build_layer, InterpolativeLinear)),
    "factored": Form(LowRankLinear.numbers, partial(build_layer, LowRankLinear)),
    "dense": Form(InterpolativeLinear.numbers, build_dense),
}


def form_named(name: str) -> Form:
    """The form called `name`; ValueError, with the list of names, when there is none."""
    if name not in FORMS:
        raise ValueError(f"form must be one of {', '.join(sorted(FORMS))}, got {name!r}")
    return FORMS[name]
