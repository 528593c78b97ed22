"""One compression under way: from the statistics to the new layers and their reports."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import nn

from fastlr.linalg._warnings import warn
from fastlr.nn.compression.allocation import Budget, allocate
from fastlr.nn.compression.blocks import BlockStack
from fastlr.nn.compression.calibration import Batch
from fastlr.nn.compression.gradients import collect_with_gradients
from fastlr.nn.compression.heal import HealReport, Student, heal
from fastlr.nn.compression.influence import block_influences
from fastlr.nn.compression.layer_report import layer_report
from fastlr.nn.compression.loss_model import LossPrediction, factors_of, measure_layers
from fastlr.nn.compression.problem import Candidates, LayerGroup, LayerProblem
from fastlr.nn.compression.propagation import (
    MIXTURES,
    NOT_PROPAGATED,
    PairedInputs,
    paired_blocks,
    propagated,
)
from fastlr.nn.compression.refit import refit
from fastlr.nn.compression.report import NEVER_CALLED, LayerReport
from fastlr.nn.compression.settings import Settings
from fastlr.nn.compression.solver import require_finite
from fastlr.nn.compression.statistics import Grams, Statistics, collect_statistics, walk_statistics
from fastlr.nn.modules.base import FactoredLinear
from fastlr.nn.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What rounding to whole ranks may add.
_EXCESS = 1e-3

Blocks = Sequence[Mapping[str, nn.Module]]


@dataclass
class CompressionRun:
    """What has been computed so far; the model is not changed."""

    settings: Settings
    replacements: dict[str, nn.Module] = field(default_factory=dict)
    reports: list[LayerReport] = field(default_factory=list)
    predictions: list[LossPrediction] = field(default_factory=list)
    influences: dict[str, float] = field(default_factory=dict)
    tokens: int = 0
    batches: list[Batch] = field(default_factory=list)
    seconds: dict[str, float] = field(
        default_factory=lambda: {
            "calibration": 0.0,
            "statistics": 0.0,
            "measuring": 0.0,
            "factorization": 0.0,
        }
    )

    def from_batches(
        self,
        model: PreTrainedModel,
        stack: BlockStack,
        blocks: Blocks,
        batches: Sequence[Batch],
        bar: Progress,
    ) -> None:
        """Calibrate and compress, block by block where that is possible."""
        start = time.perf_counter()
        if not self.settings.block_by_block:
            statistics = collect(
                model, stack, blocks, batches, bar, gradients=self.settings.method.gradients
            )
            self.seconds["statistics"] = time.perf_counter() - start
            self.from_statistics(model, stack, blocks, statistics, bar)
            return
        self.batches = list(batches)
        self.tokens = sum(batch.tokens() for batch in batches)
        count = sum(len(block) for block in blocks)
        source = walk_statistics(model, stack, blocks, batches, bar, steps_between=count)
        for layers, grams in zip(blocks, source, strict=True):
            began = time.perf_counter()
            for group in self._groups(model, _problems(layers, grams, {}, calibrated=True)):
                bar.step(group.name)
                candidates = {group.name: self._prepare(group)}
                chosen = self._allocate([group], candidates, {})
                self._build(group, candidates[group.name], chosen[group.name])
            self.seconds["factorization"] += time.perf_counter() - began
        spent = time.perf_counter() - start
        self.seconds["statistics"] = spent - self.seconds["factorization"]

    def from_statistics(
        self,
        model: PreTrainedModel,
        stack: BlockStack,
        blocks: Blocks,
        statistics: Statistics | None,
        bar: Progress,
    ) -> None:
        """Prepare all layers, share the budget between them, and build them."""
        start = time.perf_counter()
        calibrated = statistics is not None
        statistics = statistics or Statistics({}, 0)
        self.tokens, self.batches = statistics.tokens, statistics.batches
        if calibrated and self.settings.method.gradients and not statistics.gradients:
            raise ValueError(
                f"calibration: these statistics hold no gradients, which method="
                f"{self.settings.name!r} needs; make them with calibrate(..., gradients=True)"
            )
        layers = {name: module for block in blocks for name, module in block.items()}
        problems = _problems(layers, statistics.grams, statistics.gradients, calibrated)
        groups = self._groups(model, problems)
        bar.stage("Layers prepared", len(groups))
        candidates = {}
        for group in groups:
            bar.step(group.name)
            candidates[group.name] = self._prepare(group)
        factors: dict[str, float] = {}
        if self.settings.allocation == "loss" and statistics.batches:
            began = time.perf_counter()
            budget = self._budget(groups, candidates, {})
            self.predictions = measure_layers(model, budget, statistics.batches, bar)
            factors = factors_of(self.predictions, candidates)
            self.seconds["measuring"] = time.perf_counter() - began
        if self.settings.allocation == "block_influence":
            began = time.perf_counter()
            self.influences = self._influences(model, stack, blocks, groups, bar)
            self.seconds["measuring"] = time.perf_counter() - began
        chosen = self._allocate(groups, candidates, factors)
        if self.settings.propagation is not None:
            self._propagate(model, stack, blocks, groups, candidates, chosen, bar)
        else:
            bar.stage("Layers built", len(groups))
            for group in groups:
                bar.step(group.name)
                # Popped: what a candidate needs is freed once its layer is there.
                self._build(group, candidates.pop(group.name), chosen[group.name])
        spent = time.perf_counter() - start
        self.seconds["factorization"] = spent - self.seconds["measuring"]

    def _propagate(
        self,
        model: PreTrainedModel,
        stack: BlockStack,
        blocks: Blocks,
        groups: Sequence[LayerGroup],
        candidates: dict[str, Candidates],
        chosen: Mapping[str, int],
        bar: Progress,
    ) -> None:
        """Build the layers block by block, each for the inputs that it gets from those before."""
        if not self.batches:
            raise ValueError("propagation: there is no calibration text to run through the model")
        alone = {group.name: group for group in groups}

        def compress(index: int, pairs: Mapping[str, PairedInputs]) -> Mapping[str, nn.Module]:
            for name in blocks[index]:
                group, offered = alone[name], candidates.pop(name)
                pair, size = pairs.get(name), int(offered.sizes[chosen[name]])
                (problem,) = group.members
                if pair is None or size == problem.entries:
                    note = NOT_PROPAGATED if pair is None else ""
                    self._build(group, offered, chosen[name], note)
                    continue
                mixture, offered = self._mixed(problem, pair, size)
                note = f"{mixture:g} of the propagated error taken up"
                self._build(group, offered, offered.within(size), note)
                module = self.replacements.get(name)
                if self.settings.refit and isinstance(module, FactoredLinear):
                    refit(module, problem.weight, pair)
            return {n: self.replacements[n] for n in blocks[index] if n in self.replacements}

        paired_blocks(model, stack, blocks, self.batches, bar, compress)

    def _mixed(
        self, problem: LayerProblem, pair: PairedInputs, size: int
    ) -> tuple[float, Candidates]:
        """What the layer can become, and the part of the correction that its target has in it.

        An adaptive choice is that of which a layer of this size keeps the largest share.
        """
        correction = pair.correction(problem.weight)
        wanted = self.settings.propagation
        mixtures = (float(wanted),) if isinstance(wanted, int | float) else MIXTURES
        tried = []
        for mixture in mixtures:
            mixed = propagated(problem, pair, mixture, correction)
            offered = self.settings.method.prepare(
                mixed, self.settings.form, self.settings.multiple
            )
            lost = float(offered.relative_errors[offered.within(size)])
            tried.append((lost, mixture, offered))
        _, mixture, offered = min(tried, key=lambda trial: trial[0])
        return mixture, offered

    def heal(
        self, model: PreTrainedModel, steps: int, *, seed: int, bar: Progress
    ) -> tuple[Student, HealReport]:
        """Train the new layers, and a copy of the model's norms, to do what the model does."""
        if not self.batches:
            raise ValueError("heal_steps: there is no calibration text to train on")
        start = time.perf_counter()
        student = Student(model, self.replacements)
        report = heal(model, student, self.batches, steps, seed=seed, bar=bar)
        self.seconds["healing"] = time.perf_counter() - start
        return student, report

    def _groups(self, model: nn.Module, problems: Sequence[LayerProblem]) -> list[LayerGroup]:
        settings = self.settings
        return settings.method.groups(model, problems, settings.ratio, settings.form, self.batches)

    def _prepare(self, group: LayerGroup) -> Candidates:
        return group.prepare(self.settings.form, self.settings.multiple)

    def _influences(
        self,
        model: PreTrainedModel,
        stack: BlockStack,
        blocks: Blocks,
        groups: Sequence[LayerGroup],
        bar: Progress,
    ) -> dict[str, float]:
        """Of each group, that of its block; the mean of several."""
        if not self.batches:
            raise ValueError(
                'allocation="block_influence" needs calibration text to run through the model'
            )
        measured = block_influences(model, stack, self.batches, bar)
        of_layer = {
            name: influence
            for block, influence in zip(blocks, measured, strict=True)
            for name in block
        }
        return {
            group.name: sum(of_layer[p.name] for p in group.members) / len(group.members)
            for group in groups
        }

    def _budget(
        self,
        groups: Sequence[LayerGroup],
        candidates: Mapping[str, Candidates],
        factors: Mapping[str, float],
    ) -> Budget:
        dense = {group.name: group.entries for group in groups}
        return Budget(candidates, dense, self.settings.ratio, factors, self.influences)

    def _allocate(
        self,
        groups: Sequence[LayerGroup],
        candidates: Mapping[str, Candidates],
        factors: Mapping[str, float],
    ) -> dict[str, int]:
        budget = self._budget(groups, candidates, factors)
        return allocate(budget, self.settings.allocation, cap=self.settings.cap)

    def warn_of_excess(self) -> None:
        """Say so where more is stored than was asked for."""
        before = sum(report.parameters_before for report in self.reports)
        after = sum(report.parameters_after for report in self.reports)
        if after > before * (1 - self.settings.ratio) * (1 + _EXCESS):
            warn(
                f"compress_llm: ratio={self.settings.ratio} is not reached: method "
                f"{self.settings.name!r} takes {after / before:.1%} of the numbers",
                UserWarning,
            )

    def _build(self, group: LayerGroup, candidates: Candidates, index: int, note: str = "") -> None:
        built = candidates.build(index)
        modules = built if isinstance(built, Mapping) else {group.name: built}
        for problem in group.members:
            module = modules.get(problem.name)
            if module is not None:
                wanted = any(p.requires_grad for p in problem.linear.parameters())
                module.requires_grad_(wanted)
                self.replacements[problem.name] = module
            self.reports.append(layer_report(problem, candidates, index, module, note))


def collect(
    model: PreTrainedModel,
    stack: BlockStack,
    blocks: Blocks,
    batches: Sequence[Batch],
    bar: Progress,
    *,
    gradients: bool,
) -> Statistics:
    """The statistics of all layers, with the gradients at their outputs or without."""
    if gradients:
        return collect_with_gradients(model, blocks, batches, bar)
    return collect_statistics(model, stack, blocks, batches, bar)


def _problems(
    layers: Mapping[str, nn.Module], grams: Grams, gradients: Grams, calibrated: bool
) -> list[LayerProblem]:
    found = []
    for name, module in layers.items():
        gram = grams.get(name)
        note = ""
        if calibrated and gram is None:
            note = NEVER_CALLED
            warn(f"compress_llm: layer {name!r}: {NEVER_CALLED}", UserWarning)
        if gram is not None:
            require_finite(f"model: the sum over the inputs of layer {name!r}", gram.matrix)
        found.append(LayerProblem(name, module, gram, gradients.get(name), note=note))
    return found
