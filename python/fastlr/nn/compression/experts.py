"""The experts of a model, taken apart while its layers are looked at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from fastlr.linalg._warnings import warn
from fastlr.nn.modules.base import CompressedLinear
from fastlr.nn.modules.experts import RoutedExperts, cannot_be_unfused, is_fused_experts
from fastlr.nn.modules.replace import replace_modules


@dataclass
class Unfused:
    """The fused modules that stand aside, by name."""

    model: nn.Module
    fused: dict[str, nn.Module]

    def settle(self) -> None:
        """Leave those apart that have compressed layers, and put the others back.

        What is still dense beside compressed layers gets memory of its own: a view would keep that
        of all experts alive.
        """
        for name in list(self.fused):
            modules = list(self.model.get_submodule(name).modules())
            if not any(isinstance(module, CompressedLinear) for module in modules):
                continue
            for module in modules:
                if isinstance(module, nn.Linear):
                    for parameter in module.parameters():
                        whole = parameter.data.clone(memory_format=torch.contiguous_format)
                        parameter.data = whole
            del self.fused[name]
        self.put_back()

    def put_back(self) -> None:
        """Make the experts what they were."""
        replace_modules(self.model, self.fused)
        self.fused.clear()


@contextmanager
def unfused_experts(model: nn.Module) -> Iterator[Unfused]:
    """Within the block the experts of `model` are modules with linear layers.

    Afterwards they are as they were, but for those that :meth:`Unfused.settle` has left apart.

    Warns
    -----
    UserWarning
        Of experts that cannot be taken apart and so stay dense.
    """
    fused = {}
    for name, module in model.named_modules():
        if not holds_experts(module):
            continue
        obstacle = cannot_be_unfused(module)
        if obstacle:
            warn(f"the experts {name!r} stay dense: {obstacle}", UserWarning)
        else:
            fused[name] = module
    replace_modules(model, {name: RoutedExperts(module) for name, module in fused.items()})
    experts = Unfused(model, fused)
    try:
        yield experts
    finally:
        experts.put_back()


def holds_experts(module: nn.Module) -> bool:
    """Whether it has 3-D parameters by the expert, of transformers' kind or of another."""
    named = "expert" in type(module).__name__.lower()
    return is_fused_experts(module) or (
        named and any(p is not None and p.ndim == 3 for p in module._parameters.values())
    )
