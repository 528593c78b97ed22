"""``fastlr compress --plan``: what would be done, why, and what it would need."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from fastlr.cli.compress_request import CompressRequest
from fastlr.cli.console import Progress, megabytes, percent, print_json
from fastlr.cli.decisions import decisions, plan_for
from fastlr.cli.models import ModelSource, load_shapes

if TYPE_CHECKING:
    from fastlr.nn.compression.dry_run import CompressionPlan


def show_plan(
    source: ModelSource, request: CompressRequest, progress: Progress, *, as_json: bool
) -> None:
    """Print the plan; nothing is written, and no weights are read."""
    with progress.stage("load", f"Reading {source.path}", spin=True):
        model = load_shapes(source, request.dtype)
    plan = plan_for(model, request)
    if as_json:
        print_json(_as_document(plan, source, request))
        return
    for line in _lines(plan, request):
        print(line)


def _as_document(
    plan: CompressionPlan, source: ModelSource, request: CompressRequest
) -> dict[str, Any]:
    document = plan.to_dict()
    if document["calibration"] is not None:
        document["calibration"]["file"] = str(request.calibration) if request.calibration else None
    return {"path": str(source.path), **document}


def _lines(plan: CompressionPlan, request: CompressRequest) -> Iterator[str]:
    count = sum(kind.count for kind in plan.layers)
    yield f"{plan.model}, {plan.dtype}: {plan.blocks} blocks with {count} linear layers"
    for kind in plan.layers:
        yield f"  {kind.count} × {kind.name} ({' × '.join(map(str, kind.shape))})"
    yield from decisions(plan, request)
    if request.heal_steps:
        yield f"afterwards {request.heal_steps} steps of distillation"
    removed = 1 - plan.parameters_after / plan.parameters_before
    yield (
        f"compressed layers: {plan.parameters_before:,} → {plan.parameters_after:,} parameters "
        f"({percent(removed)} removed)"
    )
    before, after = plan.model_before, plan.model_after
    yield f"whole model: {before.parameters:,} → {after.parameters:,} parameters"
    yield f"on disk: {megabytes(before.bytes)} → {megabytes(after.bytes)}"
    yield f"memory: {_sum_of(plan.memory)}"
    if plan.disk:
        where = request.checkpoint or "a directory beside OUT, deleted at the end"
        yield f"disk, in {where}: {_sum_of(plan.disk)}"
    if plan.estimate:
        yield "which layers have an input in common is not known: the moments may take less"
    yield from (
        f"left alone: {part.name} ({part.parameters:,} parameters): {part.reason}"
        for part in plan.left
    )


def _sum_of(parts: Mapping[str, int]) -> str:
    terms = " + ".join(f"{name} {megabytes(size)}" for name, size in parts.items())
    return f"{megabytes(sum(parts.values()))} = {terms}"
