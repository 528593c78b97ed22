"""Sharing the budget of parameters between the layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fastlr.nn.compress.forms import Form

Shapes = Mapping[str, tuple[int, int]]


def uniform(shapes: Shapes, ratio: float, form: Form) -> dict[str, int]:
    """The same share of parameters removed from every layer.

    Parameters
    ----------
    shapes : mapping from layer name to (out_features, in_features)
    ratio : float
        The share of each layer's parameters to remove.
    form : Form
        How a rank is stored, hence what it costs.

    Returns
    -------
    dict
        The rank of every layer, at least 1.
    """
    return {
        name: form.rank(out_features, in_features, out_features * in_features * (1 - ratio))
        for name, (out_features, in_features) in shapes.items()
    }


ALLOCATIONS: dict[str, Callable[[Shapes, float, Form], dict[str, int]]] = {"uniform": uniform}


def allocation_named(name: str) -> Callable[[Shapes, float, Form], dict[str, int]]:
    """The allocation called `name`; ValueError, with the list of names, when there is none."""
    if name not in ALLOCATIONS:
        raise ValueError(
            f"allocation must be one of {', '.join(sorted(ALLOCATIONS))}, got {name!r}"
        )
    return ALLOCATIONS[name]
