"""Putting new layers into a model."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn


def replace_modules(model: nn.Module, replacements: Mapping[str, nn.Module]) -> None:
    """Put every replacement in the place of the module of that name, in that one's mode."""
    for name, module in replacements.items():
        parent, _, child = name.rpartition(".")
        module.train(model.get_submodule(name).training)
        setattr(model.get_submodule(parent), child, module)
