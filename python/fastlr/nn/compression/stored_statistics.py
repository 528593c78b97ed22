"""Statistics that are collected block by block, each block's in a file as soon as it is done.

Forward through the blocks, with the moments of their layers' inputs; then, where the gradients of
the loss are wanted, backward, each block run once more from the hidden states that entered it.
What is between two blocks is in files too, so that a new process goes on where another stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastlr.nn.compression.blocks import BlockStack, BlockWalk
from fastlr.nn.compression.calibration import Batch
from fastlr.nn.compression.checkpoint import Checkpoint
from fastlr.nn.compression.gradients import GradientCollector, finite_loss, number_of
from fastlr.nn.compression.gram import Gram
from fastlr.nn.compression.statistics import Grams, InputCollector, Statistics
from fastlr.nn.evaluate import embedding_weight, training_only
from fastlr.nn.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class StoredCollection:
    """One collection of statistics, as far as it has come.

    Attributes
    ----------
    model, stack, targets, batches
        As for :func:`~fastlr.nn.compression.statistics.collect_statistics`.
    files : Checkpoint
        For this model, these layers and these batches alone.
    release : callable
        Called after each block: what the system can read again may be forgotten.
    """

    model: PreTrainedModel
    stack: BlockStack
    targets: Sequence[Mapping[str, nn.Module]]
    batches: Sequence[Batch]
    files: Checkpoint
    release: Callable[[], None]

    def collect(self, bar: Progress, *, gradients: bool) -> Statistics:
        """All moments, in files that are read when they are used.

        Disk: 8·i² bytes for every distinct input of width i, with `gradients` 8·o² more for every
        layer with o outputs, and while they are collected the hidden states between all blocks;
        otherwise those between two.
        """
        start = time.perf_counter()
        blocks = range(len(self.targets))
        self._parts = [part for batch in self.batches for part in batch.parts()]
        backward = [i for i in blocks if gradients and f"gradients-{i}" not in self.files]
        # Where the backward pass has still to enter: every block, and the end of the last one.
        kept = {*backward, *(i + 1 for i in backward if i + 1 == len(blocks))}
        if backward or any(f"inputs-{i}" not in self.files for i in blocks):
            bar.stage("Reading the blocks' inputs", len(self._parts))
            self._walk = BlockWalk(self.model, self.stack, self._parts, bar.step)
            self.release()
            self._forward(kept, bar)
            self._backward(backward, bar)
        for i in range(len(blocks) + 1):
            self.files.remove(f"hidden-{i}")
            self.files.remove(f"slopes-{i}")
        inputs, outputs = self._read("inputs"), self._read("gradients") if gradients else {}
        tokens = sum(batch.tokens() for batch in self.batches)
        seconds = time.perf_counter() - start
        return Statistics(inputs, tokens, seconds, outputs, list(self.batches))

    def _forward(self, kept: set[int], bar: Progress) -> None:
        """Collect what is missing, and keep the hidden states that enter the blocks of `kept`."""
        count, files = len(self.targets), self.files
        wanted = [i for i in range(count) if f"inputs-{i}" not in files]
        wanted += [i - 1 for i in kept if i and f"hidden-{i}" not in files]
        if 0 in kept:
            self._keep("hidden-0", self._walk.hidden)
        if not wanted:
            return
        first = max(i for i in range(min(wanted) + 1) if i == 0 or f"hidden-{i}" in files)
        if first:
            self._walk.hidden = self._states(f"hidden-{first}")
        bar.stage("Blocks, forward", (max(wanted) + 1 - first) * len(self._parts))
        for index in range(first, max(wanted) + 1):
            self._run_block(index, bar)
            if index + 1 in kept or index + 1 < count:
                self._keep(f"hidden-{index + 1}", self._walk.hidden)
            if index not in kept:
                files.remove(f"hidden-{index}")
            self.release()

    def _run_block(self, index: int, bar: Progress) -> None:
        """Send all parts through one block; its inputs are summed unless they have been."""
        missing = f"inputs-{index}" not in self.files
        layers = self.targets[index] if missing else {}
        collector = InputCollector(layers, partial(number_of, self._parts))
        label = f"block {index + 1}/{len(self.targets)} · inputs"
        with collector.listening():
            for number, part in enumerate(self._parts):
                collector.begin(part.attention_mask)
                self._walk.advance(index, number)
                collector.finish()
                bar.step(label)
        if missing:
            self._write(f"inputs-{index}", collector.grams())

    def _backward(self, missing: Sequence[int], bar: Progress) -> None:
        """The moments of the gradients, from the last block that lacks them to the first one."""
        if not missing:
            return
        last = max(missing)
        bar.stage("Blocks, backward", (last + 1) * len(self._parts))
        with training_only(self.model, ()), torch.enable_grad():
            slopes = self._slopes_after(last)
            for index in range(last, -1, -1):
                collector = GradientCollector(self.targets[index])
                with collector.listening():
                    slopes = self._through_block(index, slopes, bar)
                self._keep(f"slopes-{index}", slopes)
                self._write(f"gradients-{index}", collector.grams)
                self.files.remove(f"hidden-{index + 1}")
                self.files.remove(f"slopes-{index + 1}")
                self.release()

    def _slopes_after(self, last: int) -> list[Tensor]:
        """The gradients of the loss in what leaves a block."""
        if last + 1 < len(self.targets):
            return self._states(f"slopes-{last + 1}")
        found = []
        for number, hidden in enumerate(self._states(f"hidden-{last + 1}")):
            hidden.requires_grad_(True)
            with self._walk.ending_in(hidden.clone()):
                finite_loss(self.model, self._parts, number).backward()  # type: ignore[no-untyped-call]
            assert hidden.grad is not None
            found.append(hidden.grad)
        self.release()
        return found

    def _through_block(self, index: int, slopes: list[Tensor], bar: Progress) -> list[Tensor]:
        """From the gradients in what leaves a block to those in what enters it."""
        found = []
        for number, hidden in enumerate(self._states(f"hidden-{index}")):
            hidden.requires_grad_(True)
            output = self._walk.through(index, number, hidden.clone())
            output.backward(slopes[number])  # type: ignore[no-untyped-call]
            assert hidden.grad is not None
            found.append(hidden.grad)
            bar.step(f"block {index + 1}/{len(self.targets)} · gradients")
        return found

    def _keep(self, name: str, states: Sequence[Tensor]) -> None:
        if name not in self.files:
            self.files.write(name, {str(number): state for number, state in enumerate(states)})

    def _states(self, name: str) -> list[Tensor]:
        tensors, _ = self.files.read(name)
        device = self._walk.hidden[0].device
        return [tensors[str(number)].to(device) for number in range(len(tensors))]

    def _write(self, name: str, grams: Grams) -> None:
        """The matrices, once each, and which layers have which."""
        distinct = list({id(gram): gram for gram in grams.values()}.values())
        place_of = {id(gram): number for number, gram in enumerate(distinct)}
        tensors = {}
        for number, gram in enumerate(distinct):
            tensors[f"{number}.matrix"] = gram.matrix
            for part in ("total", "magnitude"):
                value = getattr(gram, part)
                if value is not None:
                    tensors[f"{number}.{part}"] = value
        layers = {layer: place_of[id(gram)] for layer, gram in grams.items()}
        self.files.write(name, tensors, {"layers": layers, "tokens": [g.tokens for g in distinct]})

    def _read(self, kind: str) -> Grams:
        found: Grams = {}
        device = embedding_weight(self.model).device
        for index in range(len(self.targets)):
            tensors, facts = self.files.read(f"{kind}-{index}")
            tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
            grams = [
                Gram(
                    tensors[f"{number}.matrix"],
                    tokens,
                    tensors.get(f"{number}.total"),
                    tensors.get(f"{number}.magnitude"),
                    self.release,
                )
                for number, tokens in enumerate(facts["tokens"])
            ]
            found.update({layer: grams[number] for layer, number in facts["layers"].items()})
        return found
