"""One compression under way: from the statistics to the new layers and their reports."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from fastlr.nn.compression.model_files import ModelFiles, batches_key, statistics_key
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
from fastlr.nn.compression.run_record import Built, RunRecord
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
    files: ModelFiles | None = None
    record: RunRecord = field(default_factory=RunRecord)
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
        if self.files is not None or not self.settings.block_by_block:
            gradients = self.settings.method.gradients
            statistics = collect(
                model, stack, blocks, batches, bar, gradients=gradients, files=self.files
            )
            self.seconds["statistics"] = time.perf_counter() - start
            self.from_statistics(model, stack, blocks, statistics, bar, batches_key(batches))
            return
        self.batches = list(batches)
        self.tokens = sum(batch.tokens() for batch in batches)
        count = sum(len(block) for block in blocks)
        source = walk_statistics(model, stack, blocks, batches, bar, steps_between=count)
        for layers, grams in zip(blocks, source, strict=True):
            began = time.perf_counter()
            problems = self._problems(layers, grams, {}, calibrated=True)
            for group in self._groups(model, problems):
                bar.step(group.name)
                self._compress_alone(group)
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
        known_as: str | None = None,
    ) -> None:
        """Prepare all layers, share the budget between them, and build them.

        `known_as` is a name for the statistics in files; without one, it is made of what they hold.
        """
        if self.files is not None:
            key = known_as or statistics_key(statistics)
            self.record = self.files.record(self.settings, blocks, key)
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
        problems = self._problems(layers, statistics.grams, statistics.gradients, calibrated)
        groups = self._groups(model, problems)
        if self.settings.block_by_block:
            self._one_by_one(groups, bar)
            self.seconds["factorization"] = time.perf_counter() - start
            return
        bar.stage("Layers prepared", len(groups))
        candidates = {}
        for group, following in _with_next(groups):
            bar.step(group.name)
            candidates[group.name] = self._prepare(group)
            self.record.done_with(group, following)
        factors: dict[str, float] = {}
        if self.settings.allocation == "loss" and statistics.batches:
            began = time.perf_counter()
            budget = self._budget(groups, candidates, {})
            self.predictions = measure_layers(model, budget, statistics.batches, bar, self.record)
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
            for group, following in _with_next(groups):
                bar.step(group.name)
                # Popped: what a candidate needs is freed once its layer is there.
                self._build(group, candidates.pop(group.name), chosen[group.name])
                self.record.done_with(group, following)
        spent = time.perf_counter() - start
        self.seconds["factorization"] = spent - self.seconds["measuring"]

    def _one_by_one(self, groups: Sequence[LayerGroup], bar: Progress) -> None:
        """Prepare and build each layer at once: what becomes of one depends on no other."""
        bar.stage("Layers", len(groups))
        for group, following in _with_next(groups):
            bar.step(group.name)
            self._compress_alone(group)
            self.record.done_with(group, following)

    def _compress_alone(self, group: LayerGroup) -> None:
        candidates = {group.name: self._prepare(group)}
        chosen = self._allocate([group], candidates, {})
        self._build(group, candidates[group.name], chosen[group.name])

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
                self._build_propagated(alone[name], candidates.pop(name), chosen[name], pairs)
            return {n: self.replacements[n] for n in blocks[index] if n in self.replacements}

        paired_blocks(model, stack, blocks, self.batches, bar, compress)

    def _build_propagated(
        self,
        group: LayerGroup,
        offered: Candidates,
        index: int,
        pairs: Mapping[str, PairedInputs],
    ) -> None:
        """Build a layer of the chosen size for the inputs that the compressed blocks give it."""
        (problem,) = group.members
        pair, size = pairs.get(problem.name), int(offered.sizes[index])
        if pair is None or size == problem.entries:
            self._build(group, offered, index, NOT_PROPAGATED if pair is None else "")
            return
        done = self.record.built(group)
        if done is not None:
            self._take(done)
            return
        mixture, offered = self._mixed(problem, pair, size)
        note = f"{mixture:g} of the propagated error taken up"

        def improve(module: nn.Module) -> None:
            if self.settings.refit and isinstance(module, FactoredLinear):
                refit(module, problem.weight, pair)

        self._build(group, offered, offered.within(size), note, improve)

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

    def _problems(
        self,
        layers: Mapping[str, nn.Module],
        grams: Grams,
        gradients: Grams,
        calibrated: bool,
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
                self.record.after_reading()
            found.append(LayerProblem(name, module, gram, gradients.get(name), note=note))
        return found

    def _groups(self, model: nn.Module, problems: Sequence[LayerProblem]) -> list[LayerGroup]:
        settings = self.settings
        return settings.method.groups(model, problems, settings.ratio, settings.form, self.batches)

    def _prepare(self, group: LayerGroup) -> Candidates:
        return self.record.candidates(group, self.settings.form, self.settings.multiple)

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
        measured = self.record.value(
            "influences", lambda: block_influences(model, stack, self.batches, bar)
        )
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

    def _build(
        self,
        group: LayerGroup,
        candidates: Candidates,
        index: int,
        note: str = "",
        improve: Callable[[nn.Module], None] = lambda module: None,
    ) -> None:
        done = self.record.built(group)
        if done is None:
            built = candidates.build(index)
            new = built if isinstance(built, Mapping) else {group.name: built}
            modules, reports = {}, []
            for problem in group.members:
                module = new.get(problem.name)
                if module is not None:
                    improve(module)
                    wanted = any(p.requires_grad for p in problem.linear.parameters())
                    modules[problem.name] = module.requires_grad_(wanted)
                reports.append(layer_report(problem, candidates, index, module, note))
            done = self.record.keep(group, (modules, reports))
        self._take(done)

    def _take(self, done: Built) -> None:
        modules, reports = done
        self.replacements.update(modules)
        self.reports.extend(reports)


def _with_next(groups: Sequence[LayerGroup]) -> Iterator[tuple[LayerGroup, LayerGroup | None]]:
    """Each group and the one after it."""
    return zip(groups, [*groups[1:], None], strict=True)


def collect(
    model: PreTrainedModel,
    stack: BlockStack,
    blocks: Blocks,
    batches: Sequence[Batch],
    bar: Progress,
    *,
    gradients: bool,
    files: ModelFiles | None = None,
) -> Statistics:
    """The statistics of all layers, with the gradients at their outputs or without."""
    if files is not None:
        collection = files.collection(model, stack, blocks, batches)
        return collection.collect(bar, gradients=gradients)
    if gradients:
        return collect_with_gradients(model, blocks, batches, bar)
    return collect_statistics(model, stack, blocks, batches, bar)
