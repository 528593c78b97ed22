"""The layers of any module that can be compressed, and why the others cannot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fastlr.nn.compression.targets import matches, patterns_of
from fastlr.nn.compression.windows import CONVOLUTIONS
from fastlr.nn.modules.dense import FLOAT_DTYPES, is_conv1d

# Subclasses may do something else.
_KINDS = (nn.Linear, *CONVOLUTIONS, nn.Embedding, nn.Bilinear)


@dataclass(frozen=True)
class FoundLayer:
    """A layer of a module.

    Attributes
    ----------
    name : str
        The first of its names.
    names : tuple of str
        All places where this very layer is.
    layer : nn.Module
    tied : mapping from str to nn.Module
        By all their names, linear layers whose weight is the table of this embedding.
    obstacle : str
        Why it cannot be compressed; empty if it can.
    """

    name: str
    names: tuple[str, ...]
    layer: nn.Module
    tied: Mapping[str, nn.Module] = field(default_factory=dict)
    obstacle: str = ""

    @property
    def weight(self) -> Tensor:
        """Detached; outputs × inputs of a transformers ``Conv1D``, too."""
        weight = self.layer.weight
        assert isinstance(weight, Tensor)
        return weight.detach().T if is_conv1d(self.layer) else weight.detach()


def find_layers(
    module: nn.Module, targets: str | Sequence[str] | None, ignore: str | Sequence[str] | None
) -> list[FoundLayer]:
    """All layers with a weight that this package knows, those to be left alone with a reason.

    Raises
    ------
    ValueError
        If a pattern of `targets` matches no such layer, none is left, or a weight has an entry that
        is not finite.
    """
    places: dict[int, list[str]] = {}
    layers: dict[int, nn.Module] = {}
    for name, layer in _walk("", module):
        if _known(layer):
            places.setdefault(id(layer), []).append(name)
            layers[id(layer)] = layer
    holders = _holders(module)
    found = [_examined(places, key, layer, holders) for key, layer in layers.items()]
    wanted = None if targets is None else patterns_of("targets", targets)
    unwanted = [] if ignore is None else patterns_of("ignore", ignore)
    for pattern in wanted or ():
        if not any(matches(name, [pattern]) for able in found for name in able.names):
            raise ValueError(
                f"targets: no layer that can be compressed matches {pattern!r}; there are "
                f"{', '.join(able.name for able in found)}"
            )
    chosen = [
        able
        for able in found
        if (wanted is None or any(matches(name, wanted) for name in able.names))
        and not any(matches(name, unwanted) for name in able.names)
    ]
    if all(able.obstacle for able in chosen):
        reasons = "; ".join(f"{able.name!r}: {able.obstacle}" for able in chosen)
        raise ValueError(
            f"module: no layer of {type(module).__name__} is left to compress with "
            f"targets={targets!r} and ignore={ignore!r}" + (f" ({reasons})" if reasons else "")
        )
    for able in chosen:
        if not able.obstacle:
            _require_finite(able)
    embeddings = [able.tied for able in chosen if not able.obstacle]
    projections = {name for tied in embeddings for name in tied}
    return [able for able in chosen if able.name not in projections]


def _walk(prefix: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules, in all of their places, but those inside of layers of this package."""
    yield prefix, module
    if type(module).__module__.startswith("fastlr."):
        return
    for name, child in module._modules.items():
        if child is not None:
            yield from _walk(f"{prefix}.{name}" if prefix else name, child)


def _known(layer: nn.Module) -> bool:
    return isinstance(layer, _KINDS) or is_conv1d(layer)


def _holders(module: nn.Module) -> dict[int, list[nn.Module]]:
    """The modules that have each parameter."""
    found: dict[int, list[nn.Module]] = {}
    for holder in module.modules():
        for parameter in holder._parameters.values():
            if parameter is not None:
                found.setdefault(id(parameter), []).append(holder)
    return found


def _examined(
    places: Mapping[int, list[str]],
    key: int,
    layer: nn.Module,
    holders: Mapping[int, list[nn.Module]],
) -> FoundLayer:
    names = tuple(places[key])
    tied: dict[str, nn.Module] = {}
    obstacle = _obstacle(layer)
    if not obstacle:
        others = [other for other in holders[id(layer.weight)] if other is not layer]
        plain = all(type(other) is nn.Linear and not _obstacle(other) for other in others)
        if others and isinstance(layer, nn.Embedding) and plain:
            tied = {name: other for other in others for name in places[id(other)]}
        elif others:
            whose = ", ".join(
                repr(name) for other in others for name in places.get(id(other), ("another",))
            )
            obstacle = f"its weight is that of {whose}, too"
    return FoundLayer(names[0], names, layer, tied, obstacle)


def _obstacle(layer: nn.Module) -> str:
    if type(layer) not in _KINDS and not is_conv1d(layer):
        return f"a {type(layer).__name__} may do more than a {_base(layer)}"
    weight = layer._parameters.get("weight")
    if not isinstance(weight, Tensor):
        return "its weight is no parameter of its own"
    if weight.dtype not in FLOAT_DTYPES:
        return f"its dtype is {weight.dtype}"
    if weight.device.type == "meta":
        return "it is on the meta device"
    if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks:
        return "it has hooks"
    if isinstance(layer, nn.Embedding) and layer.max_norm is not None:
        return "its rows are rescaled to max_norm when they are looked up"
    return ""


def _base(layer: nn.Module) -> str:
    return next(kind.__name__ for kind in _KINDS if isinstance(layer, kind))


def _require_finite(found: FoundLayer) -> None:
    weight = found.weight
    finite = torch.isfinite(weight)
    if not bool(finite.all()):
        index = tuple((~finite).nonzero()[0].tolist())
        raise ValueError(
            f"module: the weight of layer {found.name!r} has the value "
            f"{float(weight[index])} at index {index}"
        )
