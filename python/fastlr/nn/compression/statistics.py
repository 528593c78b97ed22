"""Second moments of the inputs of every layer of a model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastlr.nn.compression.blocks import BlockStack, BlockWalk
from fastlr.nn.compression.calibration import Batch
from fastlr.nn.compression.gram import Gram
from fastlr.nn.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Grams = dict[str, Gram]


@dataclass
class Statistics:
    """What calibration found out about the inputs of a model's layers.

    Passed as ``calibration=`` to :func:`fastlr.nn.compress_llm`, it stands for the batches that it
    was made from, so that several methods on copies of one model cost one calibration.

    Attributes
    ----------
    grams : dict
        Layer name → :class:`Gram`; one object for all the layers that read the same input. A layer
        whose input never occurred is missing.
    tokens : int
        How many tokens went through the model.
    seconds : float
    gradients : dict
        Layer name → :class:`Gram` of the gradients of the model's loss at the layer's output; empty
        where no method that was asked for needs them.
    batches : list of Batch
        The tokens themselves: some are used again to measure predicted losses, and to heal.

    Examples
    --------
    >>> import torch
    >>> from fastlr.nn.compression import Gram, Statistics
    >>> gram = Gram(torch.eye(3))
    >>> Statistics({"q_proj": gram, "k_proj": gram}, tokens=10).nbytes()  # 3 × 3 float64, once
    72
    """

    grams: Grams
    tokens: int
    seconds: float = 0.0
    gradients: Grams = field(default_factory=dict)
    batches: list[Batch] = field(default_factory=list)

    def nbytes(self) -> int:
        """Bytes of the distinct Gram matrices."""
        grams = [*self.grams.values(), *self.gradients.values()]
        distinct = {id(gram): gram.matrix for gram in grams}
        return sum(matrix.numel() * matrix.element_size() for matrix in distinct.values())


@contextmanager
def hearing_inputs(
    layers: Mapping[str, nn.Module], hear: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Tell `hear` the name and the input of each of the layers when it is called."""
    handles = []

    def listener(name: str) -> Any:
        def listen(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hear(name, args[0] if args else kwargs["input"])

        return listen

    try:
        for name, module in layers.items():
            handles.append(module.register_forward_pre_hook(listener(name), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class InputCollector:
    """Sums the moments of the inputs of some layers, those with a common input together.

    Layers share an input where the very same tensor enters them; no name is looked at. In errors a
    batch is called what `called` makes of its number.
    """

    layers: Mapping[str, nn.Module]
    called: Callable[[int], str] = "batch {} (counted from 0)".format
    sums: dict[tuple[str, ...], Gram] = field(default_factory=dict)
    _seen: list[tuple[Tensor, int, list[str], Gram]] = field(default_factory=list)
    _keep: Tensor | None = None
    _finished: int = 0

    def listening(self) -> AbstractContextManager[None]:
        return hearing_inputs(self.layers, self._hear)

    def begin(self, mask: Tensor | None) -> None:
        """Before a batch: its mask says which positions count."""
        self._keep = None if mask is None or bool((mask != 0).all()) else mask != 0

    def finish(self) -> None:
        """After a batch: now it is known which layers had an input in common.

        ValueError names the batch, by its number from 0, whose inputs are not finite.
        """
        for _, _, names, gram in self._seen:
            if not bool(torch.isfinite(gram.matrix.diagonal()).all()):
                raise ValueError(
                    f"calibration: {self.called(self._finished)}: the inputs of layer "
                    f"{names[0]!r} are not finite; nothing was changed"
                )
            key = tuple(names)
            if key in self.sums:
                self.sums[key].add(gram)
            else:
                self.sums[key] = gram
        self._seen.clear()
        self._finished += 1

    def grams(self) -> Grams:
        """The sum for each layer that was ever called."""
        found: Grams = {}
        for names, gram in self.sums.items():
            for name in names:
                if name in found:
                    total = found[name].copy()
                    total.add(gram)
                    found[name] = total
                else:
                    found[name] = gram
        return found

    def _hear(self, name: str, value: Tensor) -> None:
        for seen, version, names, _ in self._seen:
            if _same_tensor(seen, value) and version == value._version:
                names.append(name)
                return
        # Keeping the tensor itself: freed memory could come back as another layer's input.
        self._seen.append((value, value._version, [name], Gram.of(self._counted(value))))

    def _counted(self, value: Tensor) -> Tensor:
        keep = self._keep
        if keep is None or value.shape[:-1] != keep.shape:
            return value
        return value[keep.to(value.device)]


def walk_statistics(
    model: PreTrainedModel,
    stack: BlockStack,
    targets: Sequence[Mapping[str, nn.Module]],
    batches: Sequence[Batch],
    bar: Progress,
    *,
    steps_between: int = 0,
) -> Iterator[Grams]:
    """For each block in turn, the Gram matrices of its layers' inputs in the dense model.

    `steps_between` is how many steps the caller will tell `bar` of between the blocks, in all.
    The model must be in evaluation mode and must not be changed before the last block is done.
    """
    bar.stage("Reading the blocks' inputs", len(batches))
    walk = BlockWalk(model, stack, batches, bar.step)
    bar.stage("Blocks", len(stack.blocks) * len(batches) + steps_between)
    for index, block_layers in enumerate(targets):
        collector = InputCollector(block_layers)
        label = f"block {index + 1}/{len(targets)} · inputs"
        collector.begin(batches[0].attention_mask)

        def after(number: int, collector: InputCollector = collector, label: str = label) -> None:
            collector.finish()
            if number + 1 < len(batches):
                collector.begin(batches[number + 1].attention_mask)
            bar.step(label)

        with collector.listening():
            walk.run(index, after)
        yield collector.grams()


def collect_statistics(
    model: PreTrainedModel,
    stack: BlockStack,
    targets: Sequence[Mapping[str, nn.Module]],
    batches: Sequence[Batch],
    bar: Progress,
) -> Statistics:
    """The Gram matrices of all target layers at once."""
    start = time.perf_counter()
    grams: Grams = {}
    for block in walk_statistics(model, stack, targets, batches, bar):
        grams.update(block)
    tokens = sum(batch.tokens() for batch in batches)
    return Statistics(grams, tokens, time.perf_counter() - start, batches=list(batches))


def _same_tensor(first: Tensor, second: Tensor) -> bool:
    return first is second or (
        first.data_ptr() == second.data_ptr()
        and first.shape == second.shape
        and first.stride() == second.stride()
        and first.dtype == second.dtype
    )
