"""The parts of a decoder block whose inner dimensions nothing but their own layers can see."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from fastlr.nn.compression.problem import LayerProblem

# By the names of their layers: those that make hidden units, and the one that reads them.
_MLPS = (
    (("gate_proj", "up_proj"), "down_proj"),
    (("up_proj",), "down_proj"),
    (("c_fc",), "c_proj"),
    (("fc1",), "fc2"),
    (("fc_in",), "fc_out"),
    (("dense_h_to_4h",), "dense_4h_to_h"),
)
_OUTPUTS = ("o_proj", "out_proj", "dense")
# How modules begin that normalise queries or keys.
_OF_SCORES = ("q_", "k_", "qk_", "query_", "key_")


@dataclass(frozen=True)
class Mlp:
    """Layers that make hidden units, elementwise functions, and the layer that reads them.

    Attributes
    ----------
    makers : tuple of LayerProblem
        One, or a gate and what it is multiplied by; all with n outputs.
    reader : LayerProblem
        With n inputs.
    """

    makers: tuple[LayerProblem, ...]
    reader: LayerProblem


@dataclass(frozen=True)
class Attention:
    """The layers of one attention, whose heads lie one after the other.

    Attributes
    ----------
    queries, keys, values, output : LayerProblem
    head_dim : int
        d, the dimensions of a head.
    rotated : bool
        Whether positions rotate the dimensions t and t + d/2 of queries and keys into each other.
    obstacle : str
        What else happens to queries and keys, so that dimensions cannot be left out of both; empty
        where nothing does.
    """

    queries: LayerProblem
    keys: LayerProblem
    values: LayerProblem
    output: LayerProblem
    head_dim: int
    rotated: bool
    obstacle: str

    @property
    def key_heads(self) -> int:
        """How many heads the keys and the values have."""
        return self.keys.shape[0] // self.head_dim

    @property
    def sharing(self) -> int:
        """How many query heads use one key head; they lie one after the other."""
        return self.queries.shape[0] // self.keys.shape[0]


def find_structures(
    model: nn.Module, problems: Sequence[LayerProblem]
) -> Iterator[Mlp | Attention | LayerProblem]:
    """The MLPs and attentions that the given layers make up, and the layers that are in none.

    A part is recognised by the names of its layers in transformers, by their shapes, and only if
    nothing else in it has a size of its own there; every layer's inputs must be known.
    """
    by_parent: dict[str, dict[str, LayerProblem]] = {}
    for problem in problems:
        place, _, child = problem.name.rpartition(".")
        by_parent.setdefault(place, {})[child] = problem
    for place, layers in by_parent.items():
        parent = model.get_submodule(place)
        # A decoder block of OPT is the parent of its MLP's layers.
        found = [part for part in (_attention(parent, layers), _mlp(parent, layers)) if part]
        yield from found
        taken = {id(problem) for part in found for problem in _members(part)}
        yield from (problem for problem in layers.values() if id(problem) not in taken)


def _members(part: Mlp | Attention) -> tuple[LayerProblem, ...]:
    if isinstance(part, Mlp):
        return (*part.makers, part.reader)
    return (part.queries, part.keys, part.values, part.output)


def _mlp(parent: nn.Module, layers: Mapping[str, LayerProblem]) -> Mlp | None:
    children = {name for name, _ in parent.named_children()}
    for names, last in _MLPS:
        if not {*names, last} <= children:
            continue
        if not {*names, last} <= set(layers):
            return None
        makers, reader = tuple(layers[name] for name in names), layers[last]
        units = reader.shape[1]
        fits = all(maker.shape[0] == units for maker in makers)
        # Such as a norm of the hidden units.
        used = {id(p) for problem in layers.values() for p in problem.linear.parameters()}
        others = (p for p in parent.parameters() if id(p) not in used)
        alone = all(p.ndim != 1 or len(p) != units for p in others)
        known = all(problem.inputs is not None for problem in (*makers, reader))
        return Mlp(makers, reader) if fits and alone and known else None
    return None


def _attention(parent: nn.Module, layers: Mapping[str, LayerProblem]) -> Attention | None:
    last = next((name for name in _OUTPUTS if name in layers), "")
    names = ("q_proj", "k_proj", "v_proj", last)
    head_dim = getattr(parent, "head_dim", None)
    if not set(names) <= set(layers) or not isinstance(head_dim, int):
        return None
    queries, keys, values, output = members = tuple(layers[name] for name in names)
    wide, narrow = queries.shape[0], keys.shape[0]
    fits = (
        output.shape[1] == wide
        and values.shape[0] == narrow
        and narrow % head_dim == 0
        and wide % narrow == 0
    )
    config = getattr(parent, "config", None)
    between = [name for name, module in parent.named_children() if _has_part(name, module)]
    between = [name for name in between if name not in names]
    unknown = [name for name in between if not name.startswith(_OF_SCORES)]
    alone = not unknown and not list(parent.parameters(recurse=False)) and not _clipped(config)
    known = all(problem.inputs is not None for problem in members)
    if not (fits and alone and known):
        return None
    rotated, obstacle = _rotation(parent, config, head_dim)
    if between:
        obstacle = f"queries and keys go through {', '.join(between)}"
    return Attention(queries, keys, values, output, head_dim, rotated, obstacle)


def _has_part(name: str, module: nn.Module) -> bool:
    """Whether a module in an attention does something to single dimensions."""
    return "norm" in name or any(True for _ in module.parameters())


def _clipped(config: object) -> bool:
    return getattr(config, "clip_qkv", None) is not None


def _rotation(attention: nn.Module, config: object, head_dim: int) -> tuple[bool, str]:
    """Whether t and t + d/2 are rotated into each other, and what speaks against leaving some out.

    No model declares this. But the modules of transformers have the functions beside their
    attention, and ``rotate_half``, called, says itself which dimensions go together.
    """
    beside = vars(sys.modules[type(attention).__module__])
    if not any("rotary" in name.lower() or "rotate" in name.lower() for name in beside):
        return False, ""
    rotate: Callable[[torch.Tensor], torch.Tensor] | None = beside.get("rotate_half")
    probe = torch.arange(1.0, head_dim + 1)
    half = head_dim // 2
    halves = torch.cat((-probe[half:], probe[:half]))
    if rotate is None or head_dim % 2 or not torch.equal(rotate(probe), halves):
        return True, "its rotary embedding is not of the two halves of a head"
    if _rotates_partly(config):
        return True, "its rotary embedding is of a part of each head"
    return True, ""


def _rotates_partly(config: object) -> bool:
    given = getattr(config, "rope_parameters", None) or {}
    # One set, or one for each type of layer.
    sets = [given, *(value for value in given.values() if isinstance(value, Mapping))]
    shares = [one.get("partial_rotary_factor") for one in sets]
    shares.append(getattr(config, "partial_rotary_factor", None))
    return any(share not in (None, 1) for share in shares)
