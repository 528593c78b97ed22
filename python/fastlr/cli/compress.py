"""``fastlr compress``: a model in, a smaller model out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastlr.cli.console import Progress, megabytes, percent, print_json
from fastlr.cli.errors import sentence
from fastlr.cli.evaluate import Measured, check_text, measure, read_windows
from fastlr.cli.models import ModelSource, find_model, has_tokenizer, load_model, load_tokenizer
from fastlr.nn.output import atomic_directory, check_output, directory_size

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class CompressRequest:
    """The command's arguments and options, under their own names."""

    model: str
    out: Path
    ratio: float
    method: str
    form: str | None
    allocation: str | None
    heal_steps: int
    calibration: Path | None
    evaluate: Path | None
    samples: int
    seq_len: int
    windows: int | None
    seed: int
    dtype: str
    device: str
    overwrite: bool


def compress(request: CompressRequest, *, as_json: bool) -> None:
    """Run the command."""
    progress = Progress()
    source = _check(request)
    # The directory is made first, so that one that cannot be written costs no waiting.
    with atomic_directory(request.out) as partial:
        with progress.stage("load", f"Loading {source.path}", spin=True):
            tokenizer = _tokenizer(source, request, progress)
            model = load_model(source, request.dtype, request.device)
        tokens = _evaluation_tokens(request, tokenizer)
        before = _perplexity(model, tokens, request, progress, "before")
        with progress.stage("compress", "Compressing"):
            _compress(model, tokenizer, request)
        after = _perplexity(model, tokens, request, progress, "after")
        with progress.stage("save", f"Saving to {request.out}"):
            _save(model, tokenizer, partial, request.out)
    report: Any = model.fastlr_report
    result = {
        "model": str(source.path),
        "out": str(request.out),
        "bytes": directory_size(request.out),
        "settings": {
            "ratio": request.ratio,
            "method": report.method,
            "form": report.form,
            "allocation": report.allocation,
            "heal_steps": request.heal_steps,
            "calibration": str(request.calibration) if request.calibration else None,
            "samples": request.samples,
            "seq_len": request.seq_len,
            "seed": request.seed,
            "dtype": str(model.dtype).removeprefix("torch."),
        },
        "perplexity_before": before.to_dict() if before else None,
        "perplexity_after": after.to_dict() if after else None,
        "report": report.to_dict(),
        "seconds": progress.seconds,
    }
    if as_json:
        print_json(result)
    else:
        _print(model, before, after, request.out)


def _check(request: CompressRequest) -> ModelSource:
    """Find every mistake that can be found before the model is loaded."""
    if not 0 < request.ratio < 1:
        raise ValueError(f"--ratio must be between 0 and 1, both excluded, got {request.ratio:g}")
    source = find_model(request.model)
    for text in (request.calibration, request.evaluate):
        if text is not None:
            check_text(text)
    check_output(request.out, overwrite=request.overwrite, model=source.path)
    return source


def _tokenizer(
    source: ModelSource, request: CompressRequest, progress: Progress
) -> PreTrainedTokenizerBase | None:
    reads_text = request.calibration is not None or request.evaluate is not None
    if reads_text or has_tokenizer(source):
        return load_tokenizer(source)
    progress.say(f"{source.path} holds no tokenizer, so none is saved with the result.")
    return None


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

    compress_llm(
        model,
        request.ratio,
        method=request.method,
        form=request.form,
        allocation=request.allocation,
        heal_steps=request.heal_steps,
        calibration=str(request.calibration) if request.calibration else None,
        tokenizer=tokenizer,
        samples=request.samples,
        seq_len=request.seq_len,
        seed=request.seed,
        progress=True,
    )


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


def _print(
    model: PreTrainedModel, before: Measured | None, after: Measured | None, out: Path
) -> None:
    report: Any = model.fastlr_report
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
