"""``fastlr quantize``: a model in, one of 4 or 8 bits and maps of low rank out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastlr.cli.console import Progress, megabytes, print_json
from fastlr.cli.evaluate import check_text
from fastlr.cli.models import find_model
from fastlr.cli.rewriting import Perplexities, Rewriting
from fastlr.nn.output import check_output, directory_size

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from fastlr.nn import QuantizationReport


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
    quantized, perplexities = rewriting.run(change, progress)
    if not as_json:
        _print(quantized.__dict__["fastlr_report"], perplexities, out)
        return
    print_json(
        {
            "model": str(source.path),
            "out": str(out),
            "bytes": directory_size(out),
            "settings": {**choices, "dtype": str(quantized.dtype).removeprefix("torch.")},
            **perplexities.document(),
            "report": quantized.__dict__["fastlr_report"].to_dict(),
            "seconds": progress.seconds,
        }
    )


def _print(report: QuantizationReport, perplexities: Perplexities, out: Path) -> None:
    print(f"{len(report.layers)} layers: {report.bits:.3f} bits an entry, corrections included")
    print(
        f"mean error of a layer's outputs {report.mean_error_quantized:.2e} rounded, "
        f"{report.mean_error_compensated:.2e} then corrected, {report.mean_error:.2e} as it is"
    )
    line = perplexities.line()
    if line is not None:
        print(line)
    print(f"saved {out} ({megabytes(directory_size(out))})")
