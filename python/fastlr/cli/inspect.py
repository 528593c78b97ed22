"""``fastlr inspect``: what the singular values of a model's weights say about it."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastlr.cli.console import Progress, as_json_text, print_json
from fastlr.cli.errors import require
from fastlr.cli.evaluate import check_text, read_windows
from fastlr.cli.models import ModelSource, find_model, load_model, load_tokenizer
from fastlr.nn.output import write_bytes, write_text

if TYPE_CHECKING:
    from torch import Tensor

    from fastlr.nn import SpectraReport

_PAGES = (".html", ".htm")
_DRAWINGS = (".png", ".pdf", ".svg")


@dataclass(frozen=True)
class InspectRequest:
    """The command's arguments and options, under their own names."""

    model: str
    out: Path | None
    plot: Path | None
    layers: list[str] | None
    text: Path | None
    seq_len: int
    windows: int | None
    seed: int
    dtype: str
    device: str


def inspect(request: InspectRequest, *, as_json: bool) -> None:
    """Run the command."""
    progress = Progress()
    source = _check(request)
    with progress.stage("load", f"Loading {source.path}", spin=True):
        tokens = _tokens(source, request)
        model = load_model(source, request.dtype, request.device)
    from fastlr.nn import spectra

    with progress.stage("spectra", "Computing spectra"):
        report = spectra(
            model,
            tokens,
            layers=request.layers or None,
            seq_len=request.seq_len,
            seed=request.seed,
            progress=True,
        )
    result = {
        "model": str(source.path),
        "dtype": str(model.dtype).removeprefix("torch."),
        "text": str(request.text) if request.text else None,
        "report": report.to_dict(),
        "seconds": progress.seconds,
    }
    written = _write(report, request, result, progress)
    if as_json:
        print_json(result)
    else:
        _print(report, written)


def _check(request: InspectRequest) -> ModelSource:
    """Find every mistake that can be found before the model is loaded."""
    source = find_model(request.model)
    if request.text is not None:
        check_text(request.text)
    if request.plot is not None:
        if request.plot.suffix.lower() not in _DRAWINGS:
            raise ValueError(f"--plot must end in {', '.join(_DRAWINGS)}, got {request.plot}")
        _check_file(request.plot)
        require("matplotlib")
    if request.out is not None:
        if _is_page(request.out):
            _check_file(request.out)
        elif request.out.exists() and not request.out.is_dir():
            raise ValueError(f"{request.out} is a file; --out must be a directory or a .html file")
    return source


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise ValueError(f"{path} is a directory; a file was expected")


def _is_page(out: Path) -> bool:
    return out.suffix.lower() in _PAGES


def _tokens(source: ModelSource, request: InspectRequest) -> Tensor | None:
    if request.text is None:
        return None
    return read_windows(request.text, load_tokenizer(source), request.seq_len, request.windows)


def _write(
    report: SpectraReport, request: InspectRequest, result: dict[str, Any], progress: Progress
) -> list[Path]:
    """Write what was asked for; the paths of all files."""
    files: dict[Path, str | bytes] = {}
    if request.plot is not None:
        with progress.stage("plot", f"Drawing {request.plot}"):
            files[request.plot] = _drawing(report, request.plot)
    if request.out is not None and _is_page(request.out):
        files[request.out] = report.to_html()
    elif request.out is not None:
        files[request.out / "report.html"] = report.to_html()
        everything = {**result, "report": report.to_dict(spectra=True)}
        files[request.out / "report.json"] = as_json_text(everything)
    for path, content in files.items():
        if isinstance(content, bytes):
            write_bytes(path, content)
        else:
            write_text(path, content)
    return list(files)


def _drawing(report: SpectraReport, path: Path) -> bytes:
    drawn = BytesIO()
    report.plot().savefig(drawn, format=path.suffix.lower().removeprefix("."))
    return drawn.getvalue()


def _print(report: SpectraReport, written: list[Path]) -> None:
    print(report.summary())
    for path in written:
        print(f"saved {path}")
