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
from fastlr.cli.errors import sentence
from fastlr.cli.evaluate import Measured, measure, read_windows
from fastlr.cli.models import (
    ModelSource,
    has_tokenizer,
    load_model,
    load_shapes,
    load_tokenizer,
)
from fastlr.cli.plan import show_plan
from fastlr.cli.sweep import sweep_to
from fastlr.nn.output import atomic_directory, directory_size

if TYPE_CHECKING:
    import torch
    from torch import Tensor
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
    before: Measured | None = None
    after: Measured | None = None


def _in_memory(source: ModelSource, request: CompressRequest, progress: Progress) -> _Done:
    out = request.directory
    # The directory is made first, so that one that cannot be written costs no waiting.
    with atomic_directory(out) as partial:
        with progress.stage("load", f"Loading {source.path}", spin=True):
            tokenizer = _tokenizer(source, request, progress)
            model = load_model(source, request.dtype, request.device)
        tokens = _evaluation_tokens(request, tokenizer)
        before = _perplexity(model, tokens, request, progress, "before")
        say_decisions(model, request, progress)
        with progress.stage("compress", "Compressing"):
            _compress(model, tokenizer, request)
        after = _perplexity(model, tokens, request, progress, "after")
        with progress.stage("save", f"Saving to {out}"):
            _save(model, tokenizer, partial, out)
    return _Done(model.__dict__["fastlr_report"], model.dtype, before, after)


def _on_disk(source: ModelSource, request: CompressRequest, progress: Progress) -> _Done:
    from fastlr.nn import compress_on_disk

    tokenizer = load_tokenizer(source) if request.calibration is not None else None
    if not has_tokenizer(source):
        _say_no_tokenizer(source, progress)
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
    return _Done(report, shapes.dtype)


def _tokenizer(
    source: ModelSource, request: CompressRequest, progress: Progress
) -> PreTrainedTokenizerBase | None:
    reads_text = request.calibration is not None or request.evaluate is not None
    if reads_text or has_tokenizer(source):
        return load_tokenizer(source)
    _say_no_tokenizer(source, progress)
    return None


def _say_no_tokenizer(source: ModelSource, progress: Progress) -> None:
    progress.say(f"{source.path} holds no tokenizer, so none is saved with the result.")


def _evaluation_tokens(
    request: CompressRequest, tokenizer: PreTrainedTokenizerBase | None
) -> Tensor | None:
    if request.evaluate is None or tokenizer is None:
        return None
    return read_windows(request.evaluate, tokenizer, request.seq_len, request.windows)


def _perplexity(
    model: PreTrainedModel,
    tokens: Tensor | None,
    request: CompressRequest,
    progress: Progress,
    when: str,
) -> Measured | None:
    if tokens is None:
        return None
    with progress.stage(f"evaluate_{when}", f"Measuring perplexity {when}"):
        return measure(model, tokens, request.seq_len)


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


def _save(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, partial: Path, out: Path
) -> None:
    """Write both to `partial`; ValueError, of `out`, where there is no room for them."""
    from safetensors import SafetensorError

    try:
        model.save_pretrained(partial)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
    # What safetensors raises is no OSError, even where the disk is full.
    except SafetensorError as error:
        raise ValueError(f"{out} cannot be written: {sentence(error)}") from error


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
        "perplexity_before": done.before.to_dict() if done.before else None,
        "perplexity_after": done.after.to_dict() if done.after else None,
        "report": report.to_dict(),
        "seconds": progress.seconds,
    }


def _print(done: _Done, out: Path) -> None:
    report, before, after = done.report, done.before, done.after
    model_before, model_after = report.model_before, report.model_after
    print(
        f"compressed layers: {report.parameters_before:,} → {report.parameters_after:,} parameters "
        f"({percent(report.ratio_achieved)} removed)"
    )
    print(f"whole model: {model_before.parameters:,} → {model_after.parameters:,} parameters")
    if before and after:
        print(
            f"perplexity {before.perplexity:.4f} → {after.perplexity:.4f} "
            f"({after.windows} windows of {after.seq_len} tokens)"
        )
    print(f"saved {out} ({megabytes(directory_size(out))})")
