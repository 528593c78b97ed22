"""What a compression would do, found from the shapes of a model alone.

The model may be on the meta device: no weight is read, and no text.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastlr.nn.compression.blocks import BlockStack, find_blocks
from fastlr.nn.compression.engine import checked_settings
from fastlr.nn.compression.experts import holds_experts, unfused_experts
from fastlr.nn.compression.methods import masks_share
from fastlr.nn.compression.report import ModelSize
from fastlr.nn.compression.settings import Settings
from fastlr.nn.compression.statistics import hearing_inputs
from fastlr.nn.compression.targets import select_targets
from fastlr.nn.evaluate import check_context
from fastlr.nn.modules.dense import dense_weight
from fastlr.nn.modules.experts import cannot_be_unfused

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Blocks = Sequence[Mapping[str, nn.Module]]

_FLOAT64 = 8
# Copies of the largest weight, in float64, while it is compressed.
_COPIES = 6


@dataclass(frozen=True)
class LayerKind:
    """So many layers of one name and shape.

    Attributes
    ----------
    name : str
        The last part of their names.
    shape : tuple of int
        (out_features, in_features).
    count : int
    """

    name: str
    shape: tuple[int, ...]
    count: int


@dataclass(frozen=True)
class LeftAlone:
    """A part of the model with a matrix of its own that is not compressed."""

    name: str
    kind: str
    parameters: int
    reason: str


@dataclass(frozen=True)
class CalibrationNeed:
    """What would be run through the model: so many samples of so many tokens.

    Attributes
    ----------
    samples, seq_len : int
    gradients : bool
        Whether a backward pass follows.
    """

    samples: int
    seq_len: int
    gradients: bool


@dataclass(frozen=True)
class Moments:
    """Bytes of what calibration keeps.

    Attributes
    ----------
    inputs, gradients : int
        Of the Gram matrices, 8·i² for each distinct input and 8·o² for each layer.
    largest_block : int
        Of both, in the block that needs the most.
    hidden : int
        The hidden states of the whole text between two blocks.
    shared : bool
        Whether it is known which layers have an input in common; otherwise each counts by itself.
    """

    inputs: int
    gradients: int
    largest_block: int
    hidden: int
    shared: bool


@dataclass(frozen=True)
class CompressionPlan:
    """What :func:`fastlr.nn.compress_llm` would do to a model, and what it would need.

    Attributes
    ----------
    model : str
        Its class.
    dtype : str
    blocks : int
    layers : tuple of LayerKind
        What is compressed.
    left : tuple of LeftAlone
        What is not, and why.
    method, form, allocation : str
    because : str
        Why this method.
    ratio : float
    parameters_before, parameters_after : int
        The numbers of the layers' weights, and the budget for the new ones: what is stored stays
        below it by less than a step between two sizes of a layer.
    model_before, model_after : ModelSize
        The same of the whole model.
    calibration : CalibrationNeed or None
        None where nothing is run through the model.
    memory, disk : mapping of str to int
        Bytes, by what they are for; the activations of a pass and what healing needs come on top.
        On disk beside the compressed model itself.
    estimate : bool
        Whether shared inputs are unknown, so that the moments of inputs need less than is said.
    """

    model: str
    dtype: str
    blocks: int
    layers: tuple[LayerKind, ...]
    left: tuple[LeftAlone, ...]
    method: str
    because: str
    form: str
    allocation: str
    ratio: float
    parameters_before: int
    parameters_after: int
    model_before: ModelSize
    model_after: ModelSize
    calibration: CalibrationNeed | None
    memory: Mapping[str, int]
    disk: Mapping[str, int]
    estimate: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, for JSON."""
        return asdict(self)


def plan_compression(
    model: PreTrainedModel,
    ratio: float,
    *,
    method: str = "auto",
    form: str | None = None,
    allocation: str | None = None,
    heal_steps: int = 0,
    text_given: bool = False,
    samples: int = 64,
    seq_len: int = 512,
    checkpoint: bool = False,
    on_disk: bool = False,
) -> CompressionPlan:
    """Find out what a compression with these arguments would do; `model` is not changed.

    `text_given`: whether there is a calibration text, which any method is then run on.
    `checkpoint` and `on_disk`: whether what is computed is kept in files, and whether the model is.

    Raises
    ------
    TypeError, ValueError
        As :func:`fastlr.nn.compress_llm`, for all that shapes can tell.
    """
    settings = checked_settings(
        model,
        None,
        None,
        heal_steps,
        ratio,
        method,
        form=form,
        allocation=allocation,
        cap=None,
        multiple=1,
        propagation=None,
        refit=False,
    )
    before = ModelSize.of(model)
    obstacles = {n: cannot_be_unfused(m) for n, m in model.named_modules() if holds_experts(m)}
    with warnings.catch_warnings():
        # Of experts that stay dense; the plan says so itself.
        warnings.simplefilter("ignore", UserWarning)
        with unfused_experts(model):
            stack = find_blocks(model)
            blocks = select_targets(model, stack, None, ("lm_head",))
            layers = {name: module for block in blocks for name, module in block.items()}
            left = tuple(_left_alone(model, stack, layers, obstacles))
            weights = {name: dense_weight(module) for name, module in layers.items()}
            need = None
            if text_given or settings.needs_calibration:
                check_context("calibration", model, seq_len)
                need = CalibrationNeed(samples, seq_len, settings.method.gradients)
            elif heal_steps:
                raise ValueError(
                    f"heal_steps must be 0 without a calibration text: method={settings.name!r} "
                    f"needs none, and there is nothing to train on, got {heal_steps}"
                )
            moments = None if need is None else _moments(model, blocks, need)
    shapes = {name: (w.shape[0], w.shape[1]) for name, w in weights.items()}
    dense = sum(o * i for o, i in shapes.values())
    kept = _kept(settings, dense)
    removed = dense - kept
    after = ModelSize(before.parameters - removed, before.bytes - removed * model.dtype.itemsize)
    size = kept * model.dtype.itemsize
    needs = _Needs(settings, moments, before.bytes, size, _largest(blocks, weights))
    return CompressionPlan(
        type(model).__name__,
        str(model.dtype).removeprefix("torch."),
        len(stack.blocks),
        _kinds(shapes),
        left,
        settings.name,
        _because(method, settings, model.dtype),
        settings.form,
        str(settings.allocation),
        settings.ratio,
        dense,
        kept,
        before,
        after,
        need,
        needs.memory(checkpoint=checkpoint, on_disk=on_disk),
        needs.disk(blocks=len(stack.blocks)) if checkpoint or on_disk else {},
        moments is not None and not moments.shared,
    )


def _kept(settings: Settings, dense: int) -> int:
    """The numbers that may be stored; the form "dense" stores all."""
    if settings.form == "dense":
        return dense
    return math.floor(dense * (1 - settings.ratio))


def _because(asked: str, settings: Settings, dtype: torch.dtype) -> str:
    if asked != "auto":
        return "as asked"
    masks, left = masks_share(dtype), 1 - settings.ratio
    if settings.name == "sparse":
        return (
            f"auto: the most accurate, and its masks ({masks:.1%} of the dense numbers) take at "
            f"most a quarter of the {left:.1%} that are left"
        )
    return (
        f"auto: the masks of sparse ({masks:.1%} of the dense numbers) would take more than a "
        f"quarter of the {left:.1%} that are left"
    )


def _kinds(shapes: Mapping[str, tuple[int, int]]) -> tuple[LayerKind, ...]:
    counted = Counter((name.rpartition(".")[2], shape) for name, shape in shapes.items())
    return tuple(LayerKind(name, shape, count) for (name, shape), count in counted.items())


def _left_alone(
    model: nn.Module,
    stack: BlockStack,
    layers: Mapping[str, nn.Module],
    obstacles: Mapping[str, str],
) -> Iterator[LeftAlone]:
    """The modules with a matrix of their own that are not among the layers."""
    taken = {id(layer) for layer in layers.values()}
    seen: set[int] = set()
    for name, module in model.named_modules():
        own = [p for p in module.parameters(recurse=False) if p.ndim >= 2]
        if not own or id(module) in taken:
            continue
        inside = name.startswith(f"{stack.name}.")
        if all(id(p) in seen for p in own):
            reason = "its weight is that of another layer, too"
        elif not inside:
            reason = f"it is outside of the blocks {stack.name}"
        else:
            reason = obstacles.get(name) or f"a {type(module).__name__} is no linear layer"
        seen.update(id(p) for p in own)
        yield LeftAlone(name, type(module).__name__, sum(p.numel() for p in own), reason)


def _moments(model: PreTrainedModel, blocks: Blocks, need: CalibrationNeed) -> Moments:
    inputs = _distinct_inputs(model, blocks)
    first = set(inputs or ())
    of_inputs, of_gradients = [], []
    for block in blocks:
        shapes = {name: dense_weight(module).shape for name, module in block.items()}
        counted = [name for name in shapes if inputs is None or name in first]
        of_inputs.append(sum(_FLOAT64 * shapes[name][1] ** 2 for name in counted))
        squares = sum(_FLOAT64 * o**2 for o, _ in shapes.values())
        of_gradients.append(squares if need.gradients else 0)
    width = int(model.config.get_text_config().hidden_size)
    hidden = need.samples * need.seq_len * width * model.dtype.itemsize
    both = [i + g for i, g in zip(of_inputs, of_gradients, strict=True)]
    return Moments(sum(of_inputs), sum(of_gradients), max(both), hidden, inputs is not None)


def _distinct_inputs(model: PreTrainedModel, blocks: Blocks) -> list[str] | None:
    """The first layer of each input, and those that two tokens do not reach; None if not known."""
    layers = {name: module for block in blocks for name, module in block.items()}
    seen: list[Tensor] = []
    first: list[str] = []
    reached: set[str] = set()

    def hear(name: str, value: Tensor) -> None:
        reached.add(name)
        # By identity: on the meta device all tensors lie at the same place.
        if not any(value is other for other in seen):
            seen.append(value)
            first.append(name)

    device = model.device
    tokens = torch.zeros(1, 2, dtype=torch.int64, device=device)
    # Given as it is used: transformers would look at the values to make it.
    mask = torch.ones(1, 1, 2, 2, dtype=torch.bool, device=device)
    try:
        with torch.no_grad(), hearing_inputs(layers, hear):
            model(input_ids=tokens, attention_mask=mask, position_ids=tokens, use_cache=False)
    # What a model does without values is its own affair: routers choose by them.
    except Exception:
        return None
    return first + [name for name in layers if name not in reached]


def _largest(blocks: Blocks, weights: Mapping[str, Tensor]) -> tuple[int, int]:
    """The bytes of the layers of the largest block, and the entries of the largest weight."""
    sizes = [sum(weights[n].numel() * weights[n].element_size() for n in b) for b in blocks]
    return max(sizes), max(weight.numel() for weight in weights.values())


@dataclass(frozen=True)
class _Needs:
    """What a compression needs beside the work itself."""

    settings: Settings
    moments: Moments | None
    model: int
    smaller: int
    largest: tuple[int, int]

    def memory(self, *, checkpoint: bool, on_disk: bool) -> dict[str, int]:
        """By the cases that `compress_llm` and `compress_on_disk` describe."""
        block, weight = self.largest
        found = {"largest block": block} if on_disk else {"model": self.model}
        if not on_disk:
            found["new layers"] = self.smaller
        found["largest weight, float64"] = _COPIES * _FLOAT64 * weight
        moments = self.moments
        if moments is None:
            return found
        in_files = checkpoint or on_disk
        if in_files or self.settings.block_by_block:
            found["moments of a block"] = moments.largest_block
        else:
            found["moments"] = moments.inputs + moments.gradients
        if in_files and moments.gradients:
            found["hidden states"] = 2 * moments.hidden
        elif not moments.gradients:
            found["hidden states"] = moments.hidden
        return found

    def disk(self, blocks: int) -> dict[str, int]:
        """In the files of a checkpoint."""
        found = {"new layers": self.smaller}
        moments = self.moments
        if moments is not None:
            between = blocks + 1 if moments.gradients else 2
            found["moments"] = moments.inputs + moments.gradients
            found["hidden states"] = between * moments.hidden
        return found
