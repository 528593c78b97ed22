"""``fastlr compress``: a model in, a smaller model out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastlr.cli.compress_request import CompressRequest, check
from fastlr.cli.console import Progress, megabytes, percent, print_json
from fastlr.cli.decisions import say_decisions, say_exceptions
from fastlr.cli.models import ModelSource, has_tokenizer, load_shapes, load_tokenizer
from fastlr.cli.plan import show_plan
from fastlr.cli.rewriting import Perplexities, Rewriting, say_no_tokenizer
from fastlr.cli.sweep import sweep_to
from fastlr.nn.output import directory_size

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from fastlr.nn import CompressionReport


def compress(request: CompressRequest, *, as_json: bool) -> None:
    """Run the command."""
    progress = Progress()
    source = check(request)
    if request.plan:
        show_plan(source, request, progress, as_json=as_json)
    elif request.sweep is not None:
        sweep_to(source, request, progress, as_json=as_json)
    else:
        with _resumable(request, progress):
            work = _on_disk if request.on_disk else _in_memory
            done = work(source, request, progress)
        say_exceptions(done.report, progress)
        if as_json:
            print_json(_as_document(done, source, request, progress))
        else:
            _print(done, request.directory)


@contextmanager
def _resumable(request: CompressRequest, progress: Progress) -> Iterator[None]:
    """On Ctrl-C, say that nothing is lost where there is a checkpoint."""
    try:
        yield
    except KeyboardInterrupt:
        if request.checkpoint is not None:
            progress.say(
                f"{request.checkpoint} keeps what was computed: the same command goes on from it."
            )
        raise


@dataclass(frozen=True)
class _Done:
    """A compression that is saved."""

    report: CompressionReport
    dtype: torch.dtype
    perplexities: Perplexities


def _in_memory(source: ModelSource, request: CompressRequest, progress: Progress) -> _Done:
    rewriting = Rewriting(
        source,
        request.directory,
        request.calibration,
        request.evaluate,
        request.seq_len,
        request.windows,
        request.dtype,
        request.device,
    )

    def change(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> None:
        say_decisions(model, request, progress)
        with progress.stage("compress", "Compressing"):
            _compress(model, tokenizer, request)

    model, perplexities = rewriting.run(change, progress)
    return _Done(model.__dict__["fastlr_report"], model.dtype, perplexities)


def _on_disk(source: ModelSource, request: CompressRequest, progress: Progress) -> _Done:
    from fastlr.nn import compress_on_disk

    tokenizer = load_tokenizer(source) if request.calibration is not None else None
    if not has_tokenizer(source):
        say_no_tokenizer(source, progress)
    shapes = load_shapes(source, request.dtype)
    say_decisions(shapes, request, progress)
    with progress.stage("compress", "Compressing"):
        report = compress_on_disk(
            source.path,
            request.directory,
            dtype=shapes.dtype if source.gguf else None,
            overwrite=request.overwrite,
            **_choices(request, tokenizer),
        )
    return _Done(report, shapes.dtype, Perplexities())


def _compress(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, request: CompressRequest
) -> None:
    from fastlr.nn import compress_llm

    compress_llm(model, heal_steps=request.heal_steps, **_choices(request, tokenizer))


def _choices(request: CompressRequest, tokenizer: PreTrainedTokenizerBase | None) -> dict[str, Any]:
    """What both functions of the library are told."""
    return {
        "ratio": request.ratio,
        "method": request.method,
        "form": request.form,
        "allocation": request.allocation,
        "calibration": request.calibration_file,
        "tokenizer": tokenizer,
        "samples": request.samples,
        "seq_len": request.seq_len,
        "seed": request.seed,
        "checkpoint_dir": request.checkpoint,
        "progress": True,
    }


def _as_document(
    done: _Done, source: ModelSource, request: CompressRequest, progress: Progress
) -> dict[str, Any]:
    report = done.report
    return {
        "model": str(source.path),
        "out": str(request.out),
        "bytes": directory_size(request.directory),
        "settings": {
            "ratio": request.ratio,
            "method": report.method,
            "form": report.form,
            "allocation": report.allocation,
            "heal_steps": request.heal_steps,
            "calibration": request.calibration_file,
            "samples": request.samples,
            "seq_len": request.seq_len,
            "seed": request.seed,
            "dtype": str(done.dtype).removeprefix("torch."),
        },
        **done.perplexities.document(),
        "report": report.to_dict(),
        "seconds": progress.seconds,
    }


def _print(done: _Done, out: Path) -> None:
    report = done.report
    model_before, model_after = report.model_before, report.model_after
    print(
        f"compressed layers: {report.parameters_before:,} → {report.parameters_after:,} parameters "
        f"({percent(report.ratio_achieved)} removed)"
    )
    print(f"whole model: {model_before.parameters:,} → {model_after.parameters:,} parameters")
    line = done.perplexities.line()
    if line is not None:
        print(line)
    print(f"saved {out} ({megabytes(directory_size(out))})")
