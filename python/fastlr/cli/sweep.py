"""``fastlr compress --sweep``: perplexities by size, in a table and a plot."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from fastlr.cli.compress_request import SWEEP_FILE, CompressRequest
from fastlr.cli.console import Progress, as_json_text, print_json
from fastlr.cli.evaluate import read_windows
from fastlr.cli.models import ModelSource, load_model, load_tokenizer
from fastlr.nn.output import atomic_directory

if TYPE_CHECKING:
    from fastlr.nn.compression import Sweep

PLOT = "sweep.png"


def sweep_to(
    source: ModelSource, request: CompressRequest, progress: Progress, *, as_json: bool
) -> None:
    """Compress copies of the model, and write to OUT how well they predict."""
    out = request.directory
    with atomic_directory(out) as partial:
        found = _sweep(source, request, progress)
        result = {
            "model": str(source.path),
            "text": str(request.evaluate),
            "calibration": request.calibration_file,
            "samples": request.samples,
            "seq_len": request.seq_len,
            "seed": request.seed,
            **found.to_dict(),
            "seconds": progress.seconds,
        }
        (partial / SWEEP_FILE).write_text(as_json_text(result) + "\n", encoding="utf-8")
        files = [SWEEP_FILE]
        if importlib.util.find_spec("matplotlib") is None:
            progress.say(f"matplotlib is not installed, so {PLOT} is not drawn.")
        else:
            found.plot(partial / PLOT)
            files.append(PLOT)
    if as_json:
        print_json(result)
        return
    print(found)
    for name in files:
        print(f"saved {out / name}")


def _sweep(source: ModelSource, request: CompressRequest, progress: Progress) -> Sweep:
    from fastlr.nn import sweep

    assert request.evaluate is not None
    with progress.stage("load", f"Loading {source.path}", spin=True):
        tokenizer = load_tokenizer(source)
        model = load_model(source, request.dtype, request.device)
    tokens = read_windows(request.evaluate, tokenizer, request.seq_len, request.windows)
    with progress.stage("sweep", "Compressing and measuring"):
        return sweep(
            model,
            tokens,
            ratios=request.ratios(),
            methods=request.methods,
            calibration=request.calibration_file,
            tokenizer=tokenizer,
            samples=request.samples,
            seq_len=request.seq_len,
            seed=request.seed,
        )
