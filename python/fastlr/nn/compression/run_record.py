"""What a compression has computed so far: nowhere, or in files from which it can go on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from torch import Tensor, nn

from fastlr.nn.compression.checkpoint import Checkpoint
from fastlr.nn.compression.gram import Gram
from fastlr.nn.compression.problem import Candidates, LayerGroup
from fastlr.nn.compression.report import LayerReport
from fastlr.nn.modules.dense import dense_weight

Built = tuple[dict[str, nn.Module], list[LayerReport]]
Value = TypeVar("Value")


class RunRecord:
    """Keeps nothing: a run that is stopped begins anew."""

    def candidates(self, group: LayerGroup, form: str, multiple: int) -> Candidates:
        """What the layers of a group can become."""
        return group.prepare(form, multiple)

    def value(self, name: str, compute: Callable[[], Value]) -> Value:
        """What `compute` returns; it must be something that JSON can hold."""
        return compute()

    def built(self, group: LayerGroup) -> Built | None:
        """The new layers of a group and their reports, where they are there already."""
        return None

    def keep(self, group: LayerGroup, built: Built) -> Built:
        """Keep new layers; the same is returned, perhaps from where it is kept."""
        return built

    def done_with(self, group: LayerGroup, following: LayerGroup | None) -> None:
        """One group is finished, and `following` is next."""

    def after_reading(self) -> None:
        """Something large has been read through."""


@dataclass
class StoredRun(RunRecord):
    """Keeps all results in files.

    Attributes
    ----------
    curves : Checkpoint
        Errors by size; for these statistics, this method and form.
    layers : Checkpoint
        New layers and single numbers; for these statistics and all settings.
    release : callable or None
        None if there is memory for the model and its statistics. Otherwise new layers are left in
        their files, what only their making needs is computed again, and `release` is called after
        each group, to let the system forget what it can read again.
    """

    curves: Checkpoint
    layers: Checkpoint
    release: Callable[[], None] | None
    _numbers: dict[str, int] = field(default_factory=dict)
    _prepared: dict[str, Candidates] = field(default_factory=dict)

    def candidates(self, group: LayerGroup, form: str, multiple: int) -> Candidates:
        name = self._name(group)

        def prepare() -> Candidates:
            if name not in self._prepared:
                self._prepared[name] = group.prepare(form, multiple)
            return self._prepared[name]

        if name not in self.curves:
            found = prepare()
            tensors = {"sizes": found.sizes, "errors": found.errors}
            for key, part in (("spectrum", found.spectrum), ("ranks", found.ranks)):
                if part is not None:
                    tensors[key] = part
            facts = {
                "total": found.total,
                "compared": found.compared,
                "restored": found.restored is not None,
            }
            self.curves.write(name, tensors, facts)
        tensors, facts = self.curves.read(name)

        def restored(index: int, layer: str, weight: Tensor) -> Tensor:
            restore = prepare().restored
            assert restore is not None
            return restore(index, layer, weight)

        return Candidates(
            tensors["sizes"],
            tensors["errors"],
            facts["total"],
            lambda index: prepare().build(index),
            tensors.get("spectrum"),
            tensors.get("ranks"),
            facts["compared"],
            restored if facts["restored"] else None,
        )

    def value(self, name: str, compute: Callable[[], Value]) -> Value:
        if name not in self.layers:
            self.layers.write(name, {}, compute())
        found: Value = self.layers.read(name)[1]
        return found

    def built(self, group: LayerGroup) -> Built | None:
        name = f"layers-{self._name(group)}"
        if name not in self.layers:
            return None
        tensors, facts = self.layers.read(name)
        if self.release is None:
            tensors = {key: tensor.clone() for key, tensor in tensors.items()}
        dense = {problem.name: problem.linear for problem in group.members}
        modules = _rebuilt(tensors, facts["modules"], facts["described"], dense)
        return modules, [_report_from(report) for report in facts["reports"]]

    def keep(self, group: LayerGroup, built: Built) -> Built:
        modules, reports = built
        holder = nn.ModuleList(modules.values())
        facts = {
            "modules": list(modules),
            "described": _description(holder),
            "reports": [asdict(report) for report in reports],
        }
        self.layers.write(f"layers-{self._name(group)}", holder.state_dict(), facts)
        if self.release is None:
            return built
        kept = self.built(group)
        assert kept is not None
        return kept

    def done_with(self, group: LayerGroup, following: LayerGroup | None) -> None:
        if self.release is None:
            return
        self._prepared.pop(self._name(group), None)
        needed = {id(gram) for gram in _grams(following)}
        for gram in _grams(group):
            if id(gram) not in needed:
                gram.forget()
        self.release()

    def after_reading(self) -> None:
        if self.release is not None:
            self.release()

    def _name(self, group: LayerGroup) -> str:
        """A file name: groups come in the same order whenever the same run is made."""
        return str(self._numbers.setdefault(group.name, len(self._numbers)))


def _grams(group: LayerGroup | None) -> Iterable[Gram]:
    for problem in group.members if group is not None else ():
        yield from (gram for gram in (problem.inputs, problem.gradients) if gram is not None)


def _description(holder: nn.ModuleList) -> dict[str, dict[str, Any]]:
    """Of the compressed layers among the modules, by number; of a dense one there is none."""
    from fastlr.nn.hf_quantizer import FastlrConfig

    return FastlrConfig.of(holder).layers


def _rebuilt(
    tensors: Mapping[str, Tensor],
    names: list[str],
    described: dict[str, dict[str, Any]],
    dense: Mapping[str, nn.Module],
) -> dict[str, nn.Module]:
    """The modules as they were, on the devices and in the modes of the dense ones."""
    from fastlr.nn.hf_quantizer import FastlrConfig

    config = FastlrConfig(described)
    empty = {number: config.build(number, dense[names[int(number)]]) for number in described}
    config.lend(empty)
    modules: dict[str, nn.Module] = {}
    for number, name in enumerate(names):
        layer = empty.get(str(number))
        modules[name] = copy.deepcopy(dense[name]) if layer is None else layer
    holder = nn.ModuleList(modules.values())
    holder.load_state_dict(dict(tensors), assign=True)
    for name, module in modules.items():
        module.to(dense_weight(dense[name]).device).train(dense[name].training)
        module.requires_grad_(any(p.requires_grad for p in dense[name].parameters()))
    return modules


def _report_from(facts: dict[str, Any]) -> LayerReport:
    """A report from JSON, which has no tuples."""
    rank = facts["rank"]
    facts = {**facts, "shape": tuple(facts["shape"])}
    return LayerReport(**{**facts, "rank": tuple(rank) if isinstance(rank, list) else rank})
