"""What a compression has decided and why, before it begins, and what was exceptional, after it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fastlr.cli.compress_request import CompressRequest
from fastlr.cli.console import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from fastlr.nn import CompressionReport
    from fastlr.nn.compression.dry_run import CompressionPlan

# So many names of layers are enough to find the others in the report.
_NAMED = 3


def plan_for(model: PreTrainedModel, request: CompressRequest) -> CompressionPlan:
    """What the library would do with these options; the model may be on the meta device."""
    from fastlr.nn.compression.dry_run import plan_compression

    return plan_compression(
        model,
        request.ratio,
        method=request.method,
        form=request.form,
        allocation=request.allocation,
        heal_steps=request.heal_steps,
        text_given=request.calibration is not None,
        samples=request.samples,
        seq_len=request.seq_len,
        checkpoint=request.checkpoint is not None,
        on_disk=request.on_disk,
    )


def say_decisions(model: PreTrainedModel, request: CompressRequest, progress: Progress) -> None:
    """Two sentences, before the work."""
    for line in decisions(plan_for(model, request), request):
        progress.say(line)


def decisions(plan: CompressionPlan, request: CompressRequest) -> Iterator[str]:
    """The method and what goes with it, and the calibration."""
    whose = "the method's own" if request.allocation is None else "as asked"
    yield (
        f'method "{plan.method}" ({plan.because}), form "{plan.form}", '
        f'allocation "{plan.allocation}" ({whose})'
    )
    if plan.calibration is None:
        yield "no calibration: the method looks at the weights alone"
        return
    need = plan.calibration
    source = (
        f"from {request.calibration}" if request.calibration else "that the model writes itself"
    )
    passes = "with gradients of the loss" if need.gradients else "without gradients"
    yield f"calibration: {need.samples} × {need.seq_len} tokens {source}, {passes}"


def say_exceptions(report: CompressionReport, progress: Progress) -> None:
    """The layers of which the report notes something, by what it notes."""
    by_note: dict[str, list[str]] = {}
    for layer in report.layers:
        if layer.note:
            by_note.setdefault(layer.note, []).append(layer.name)
    for note, names in by_note.items():
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        progress.say(
            f"{note}: {len(names)} of {len(report.layers)} layers "
            f"({', '.join(names[:_NAMED])}{more})"
        )
