"""Which layers of a model are compressed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase

from torch import nn

from fastlr.nn.compression.blocks import BlockStack
from fastlr.nn.compression.solver import require_finite
from fastlr.nn.modules.base import CompressedLinear
from fastlr.nn.modules.dense import dense_weight, is_dense_linear


def find_targets(
    model: nn.Module,
    stack: BlockStack,
    targets: str | Sequence[str] | None,
    ignore: str | Sequence[str],
    after_reading: Callable[[], None] = lambda: None,
) -> list[dict[str, nn.Module]]:
    """The linear layers to compress, for every block, by full name.

    `after_reading` is called when a weight has been looked at.

    Raises
    ------
    ValueError
        As :func:`select_targets`, or if a weight has an entry that is not finite.
    TypeError
        If a weight is not of a float dtype (a quantized layer).
    """
    found = select_targets(model, stack, targets, ignore)
    for layers in found:
        for name, module in layers.items():
            require_finite(f"model: the weight of layer {name!r}", dense_weight(module))
            after_reading()
    return found


def select_targets(
    model: nn.Module,
    stack: BlockStack,
    targets: str | Sequence[str] | None,
    ignore: str | Sequence[str],
) -> list[dict[str, nn.Module]]:
    """As :func:`find_targets`, without a look at the weights.

    Raises
    ------
    ValueError
        If no layer matches, a pattern of `targets` matches none, or the model is compressed
        already.
    """
    require_dense(model)
    wanted = patterns_of("targets", targets) if targets is not None else None
    unwanted = patterns_of("ignore", ignore)
    found = [
        {
            name: module
            for name, module in _linears(stack.block_name(index), block)
            if (wanted is None or matches(name, wanted)) and not matches(name, unwanted)
        }
        for index, block in enumerate(stack.blocks)
    ]
    names = [name for layers in found for name in layers]
    for pattern in wanted or ():
        if not any(matches(name, [pattern]) for name in names):
            raise ValueError(
                f"targets: no linear layer in the blocks {stack.name} matches {pattern!r} "
                "(layers outside the blocks are never compressed)"
            )
    if not names:
        raise ValueError(
            f"model: no linear layer in the blocks {stack.name} of {type(model).__name__} is left "
            f"to compress with targets={targets!r} and ignore={ignore!r}"
        )
    return found


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether `name` is a pattern, ends with one (after a dot), or fits one with * or ?."""
    return any(
        name == pattern or name.endswith("." + pattern) or fnmatchcase(name, pattern)
        for pattern in patterns
    )


def require_dense(model: nn.Module) -> None:
    """Raise ValueError if fastlr has compressed the model before."""
    for name, module in model.named_modules():
        if isinstance(module, CompressedLinear):
            raise ValueError(
                f"model is compressed already: layer {name!r} is a {type(module).__name__}; "
                "compress the dense model instead"
            )


def _linears(prefix: str, block: nn.Module) -> Iterable[tuple[str, nn.Module]]:
    for name, module in block.named_modules(prefix=prefix):
        if is_dense_linear(module):
            yield name, module


def patterns_of(argument: str, value: str | Sequence[str]) -> list[str]:
    """`value` as a list; TypeError for what is no string."""
    patterns = [value] if isinstance(value, str) else list(value)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"{argument} must be names or patterns, got {type(pattern).__name__}")
    return patterns
