"""Layers of one type, and where they are in a model."""

from __future__ import annotations

import re
from collections.abc import Sequence


def kinds(names: Sequence[str]) -> list[str]:
    """For each layer its type: what names have in common but for the numbers in them.

    The shortest end of a name that tells the types apart: ``q_proj`` for all layers
    ``model.layers.3.self_attn.q_proj``, but ``attn.c_proj`` and ``mlp.c_proj``.

    Examples
    --------
    >>> kinds(["h.0.attn.c_proj", "h.0.mlp.c_proj", "h.1.mlp.c_proj", "h.1.mlp.c_fc"])
    ['attn.c_proj', 'mlp.c_proj', 'mlp.c_proj', 'c_fc']
    """
    templates = [_template(name) for name in names]
    distinct = set(templates)
    labels = {template: _shortest(template, distinct) for template in distinct}
    return [labels[template] for template in templates]


def depth(name: str) -> int | None:
    """The first number in a name, which block it is; None without one.

    Examples
    --------
    >>> depth("model.layers.12.mlp.experts.3.up"), depth("lm_head")
    (12, None)
    """
    numbers = [part for part in name.split(".") if part.isdecimal()]
    return int(numbers[0]) if numbers else None


def _template(name: str) -> tuple[str, ...]:
    parts = re.sub(r"\[\d+\]$", "", name).split(".")
    words = tuple(part for part in parts if not part.isdecimal())
    return words or ("layers",)


def _shortest(template: tuple[str, ...], others: set[tuple[str, ...]]) -> str:
    for length in range(1, len(template)):
        end = template[-length:]
        if sum(other[-length:] == end for other in others) == 1:
            return ".".join(end)
    return ".".join(template)
