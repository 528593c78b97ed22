"""``fastlr quantize``: a model in, one of 4 or 8 bits and maps of low rank out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastlr.cli.console import Progress, megabytes, print_json
from fastlr.cli.evaluate import check_text
from fastlr.cli.models import find_model
from fastlr.cli.rewriting import Rewriting, Rewritten
from fastlr.nn.output import check_output, directory_size

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def quantize(
    model: str,
    out: Path,
    *,
    calibration: Path | None,
    evaluate: Path | None,
    seq_len: int,
    windows: int | None,
    dtype: str,
    device: str,
    overwrite: bool,
    as_json: bool,
    **choices: Any,
) -> None:
    """Run the command; `choices` are further arguments of the library's function."""
    source = find_model(model)
    for text in (calibration, evaluate):
        if text is not None:
            check_text(text)
    check_output(out, overwrite=overwrite, model=source.path)
    progress = Progress()
    choices = {
        **choices,
        "calibration": str(calibration) if calibration else None,
        "seq_len": seq_len,
    }

    def change(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> None:
        from fastlr.nn import quantize_plus_low_rank

        with progress.stage("quantize", "Quantizing"):
            quantize_plus_low_rank(model, tokenizer=tokenizer, progress=True, **choices)

    rewriting = Rewriting(source, out, calibration, evaluate, seq_len, windows, dtype, device)
    done = rewriting.run(change, progress)
    if as_json:
        print_json(_as_document(done, rewriting, choices, progress))
    else:
        _print(done, out)


def _as_document(
    done: Rewritten, rewriting: Rewriting, choices: dict[str, Any], progress: Progress
) -> dict[str, Any]:
    return {
        "model": str(rewriting.source.path),
        "out": str(rewriting.out),
        "bytes": directory_size(rewriting.out),
        "settings": {**choices, "dtype": str(done.model.dtype).removeprefix("torch.")},
        "perplexity_before": done.before.to_dict() if done.before else None,
        "perplexity_after": done.after.to_dict() if done.after else None,
        "report": done.model.__dict__["fastlr_report"].to_dict(),
        "seconds": progress.seconds,
    }


def _print(done: Rewritten, out: Path) -> None:
    report = done.model.__dict__["fastlr_report"]
    print(f"{len(report.layers)} layers: {report.bits:.3f} bits an entry, corrections included")
    print(
        f"mean error of a layer's outputs {report.mean_error_quantized:.2e} rounded, "
        f"{report.mean_error_compensated:.2e} then corrected, {report.mean_error:.2e} as it is"
    )
    perplexities = done.perplexities()
    if perplexities is not None:
        print(perplexities)
    print(f"saved {out} ({megabytes(directory_size(out))})")
