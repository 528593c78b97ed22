"""What ``fastlr compress`` was asked for, and what of it does not go together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastlr.cli.evaluate import check_text
from fastlr.cli.models import ModelSource, find_model
from fastlr.nn.output import check_output

SWEEP_FILE = "sweep.json"
# Which options say nothing in a mode, and are therefore mistakes there: with their defaults.
_WITHOUT: dict[str, dict[str, Any]] = {
    "--sweep": {
        "ratio": 0.2,
        "form": None,
        "allocation": None,
        "heal_steps": 0,
        "checkpoint": None,
        "on_disk": False,
        "plan": False,
    },
    "--on-disk": {"evaluate": None, "heal_steps": 0, "device": "cpu"},
}


@dataclass(frozen=True)
class CompressRequest:
    """The command's arguments and options, under their own names."""

    model: str
    out: Path | None
    ratio: float
    methods: tuple[str, ...]
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
    checkpoint: Path | None
    on_disk: bool
    plan: bool
    sweep: str | None
    overwrite: bool

    @property
    def method(self) -> str:
        """The only one, where there is no sweep."""
        return self.methods[0]

    @property
    def directory(self) -> Path:
        """OUT, which is there unless nothing is written."""
        assert self.out is not None
        return self.out

    @property
    def calibration_file(self) -> str | None:
        """As the library takes it."""
        return str(self.calibration) if self.calibration else None

    def ratios(self) -> tuple[float, ...]:
        """Those of the sweep; ValueError for what are none."""
        given = self.sweep or ""
        try:
            ratios = tuple(float(ratio) for ratio in given.split(","))
        except ValueError:
            ratios = (0.0,)
        if not all(0 < ratio < 1 for ratio in ratios):
            raise ValueError(
                "--sweep must be ratios between 0 and 1 with commas between them, such as "
                f"0.1,0.2,0.4, got {given!r}"
            )
        return ratios


def check(request: CompressRequest) -> ModelSource:
    """Find the model, and every mistake that can be found before it is loaded."""
    if not 0 < request.ratio < 1:
        raise ValueError(f"--ratio must be between 0 and 1, both excluded, got {request.ratio:g}")
    _check_modes(request)
    source = find_model(request.model)
    for text in (request.calibration, request.evaluate):
        if text is not None:
            check_text(text)
    if request.on_disk:
        _check_on_disk(source, request.dtype)
    if request.out is not None:
        mark = "config.json" if request.sweep is None else SWEEP_FILE
        check_output(request.out, overwrite=request.overwrite, model=source.path, mark=mark)
    if request.checkpoint is not None:
        _check_checkpoint(request.checkpoint, request.out)
    return source


def _check_modes(request: CompressRequest) -> None:
    if request.sweep is not None:
        request.ratios()
        _refuse_beside("--sweep", request)
        if request.evaluate is None:
            raise ValueError(
                "--sweep measures perplexities: give the text to measure them on as --evaluate FILE"
            )
    elif len(request.methods) > 1:
        raise ValueError(
            f"--method may be given once unless with --sweep, got {', '.join(request.methods)}"
        )
    if request.on_disk:
        _refuse_beside("--on-disk", request)
    if request.plan and request.out is not None:
        raise ValueError(f"--plan writes nothing: leave OUT away, got {request.out}")
    if not request.plan and request.out is None:
        raise ValueError("missing argument OUT, the directory to write (only --plan needs none)")


def _refuse_beside(mode: str, request: CompressRequest) -> None:
    for field, default in _WITHOUT[mode].items():
        given = getattr(request, field)
        if given != default:
            option = "--" + field.replace("_", "-")
            value = "" if given is True else f" {given}"
            raise ValueError(f"{option} cannot be used with {mode}, got {option}{value}")


def _check_on_disk(source: ModelSource, dtype: str) -> None:
    if source.gguf:
        return
    if dtype != "auto":
        raise ValueError(
            f"--dtype can be used with --on-disk for a .gguf file only, got --dtype {dtype} for "
            f"{source.path}"
        )
    from fastlr.nn import hf

    hf.check_directory(source.directory, "--on-disk")


def _check_checkpoint(checkpoint: Path, out: Path | None) -> None:
    existing = next(path for path in (checkpoint, *checkpoint.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(f"--checkpoint must be a directory, {existing} is a file")
    # What stands at OUT gives way to the new model.
    if out is not None and checkpoint.resolve().is_relative_to(out.resolve()):
        raise ValueError(f"--checkpoint must lie outside of OUT ({out}), got {checkpoint}")
