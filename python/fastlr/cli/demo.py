"""``fastlr demo``: the whole way from a pretrained model to a smaller one, measured."""

from __future__ import annotations

import copy
import math
import platform
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastlr.cli.charts import significant
from fastlr.cli.console import Progress, percent, print_json
from fastlr.cli.demo_model import MODEL, demo_model
from fastlr.cli.demo_text import demo_text
from fastlr.cli.errors import require_transformers
from fastlr.cli.evaluate import measure
from fastlr.cli.generation import continuation
from fastlr.cli.machine import processor, usable_cores
from fastlr.cli.models import ModelSource, find_model, load_model, load_tokenizer
from fastlr.cli.reload import Question, ask_new_process, logits_sha256
from fastlr.cli.report import render
from fastlr.nn.output import atomic_directory, check_output, directory_size, write_text

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# As it was published; others would take longer than all the rest.
_COMPARED = ("svd_llm", "factored")
_PROMPT = "In Python, a for loop is used to"
_NEW_TOKENS = 40


@dataclass(frozen=True)
class DemoRequest:
    """The command's options, under their own names."""

    model: str | None
    ratio: float
    out: Path
    samples: int
    seq_len: int
    windows: int
    seed: int


def demo(request: DemoRequest, *, as_json: bool) -> int:
    """Run the command.

    Returns
    -------
    int
        0, or 1 if the saved model did not come back as it was.
    """
    started = time.perf_counter()
    progress = Progress()
    source = _check(request, progress)
    text = demo_text()
    with progress.stage("load", f"Loading {source.path}", spin=True):
        tokenizer = load_tokenizer(source)
        model = load_model(source, "float32")
    from fastlr.nn.evaluate import tokenize

    calibration = tokenize(text.calibration, tokenizer)
    windows = spread_windows(tokenize(text.held_out, tokenizer), request.seq_len, request.windows)
    result = _facts(request, source, model)
    result["text"] = {
        "calibration_text": f"pydoc_data.topics up to '{text.last_topic}'",
        "held_out_text": f"pydoc_data.topics from '{text.first_held_out_topic}'",
    }
    with progress.stage("evaluate", "Measuring the dense model"):
        result["dense"] = measure(model, windows, request.seq_len).to_dict()
    with progress.stage("generate", "Generating from the dense model"):
        generated = continuation(model, tokenizer, _PROMPT, _NEW_TOKENS)
    result["generation"] = {"prompt": _PROMPT, "dense": generated}

    kept, result["variants"], spectra = _compress_all(
        request, model, calibration, windows, progress, result["settings"]
    )
    report: Any = kept.fastlr_report
    result["kept"] = result["variants"][-1]["name"]
    result["predictions"] = [asdict(prediction) for prediction in report.predictions]
    result["spectra"] = _three_spectra(spectra, result["variants"])
    _save_and_reload(request, kept, tokenizer, windows, progress, result)
    result["usage"] = _usage(request.out / "model")
    result["report"] = str(request.out / "report.html")
    result["seconds"] = progress.seconds
    result["seconds_total"] = time.perf_counter() - started
    write_text(request.out / "report.html", render(result))
    if as_json:
        print_json(result)
    else:
        _print(result)
    return 0 if result["saved"]["identical"] else 1


def variants(ratio: float, dtype: torch.dtype) -> list[tuple[str, str]]:
    """Return the methods and forms to compare.

    The last one is what `compress_llm` does by itself, which depends on the ratio.
    """
    from fastlr.nn.compression.methods import default_method, method_named

    method = default_method(ratio, dtype)
    return [_COMPARED, (method, method_named(method).forms[0])]


def spread_windows(tokens: Tensor, seq_len: int, count: int) -> Tensor:
    """Return `count` windows spread evenly over a text, one after the other.

    A few windows from its beginning would speak for its first topic only.

    Raises
    ------
    ValueError
        If the text does not fill `count` windows.
    """
    import torch

    whole = len(tokens) // seq_len
    if whole < count:
        raise ValueError(
            f"the demo's text fills {whole} windows of {seq_len} tokens, not {count}; "
            "give a smaller --windows or --seq-len"
        )
    starts = [seq_len * (index * whole // count) for index in range(count)]
    return torch.cat([tokens[start : start + seq_len] for start in starts])


def _check(request: DemoRequest, progress: Progress) -> ModelSource:
    """Find every mistake that can be found before the download and the long work."""
    if not 0 < request.ratio < 1:
        raise ValueError(f"--ratio must be between 0 and 1, both excluded, got {request.ratio:g}")
    if request.out.exists() and not request.out.is_dir():
        raise ValueError(f"{request.out} is a file; --out must be a directory")
    source = find_model(request.model) if request.model is not None else None
    # What an earlier demo left is replaced, anything else is not.
    model = source.path if source else None
    check_output(request.out / "model", overwrite=True, model=model)
    if source is not None:
        return source
    require_transformers(gguf=True)
    with progress.stage("find model", "Looking for SmolLM2-135M-Instruct"):
        return find_model(str(demo_model(progress.say)))


def _facts(request: DemoRequest, source: ModelSource, model: PreTrainedModel) -> dict[str, Any]:
    import torch

    import fastlr

    name = source.path.stem if source.gguf else source.path.resolve().name
    if source.gguf == MODEL.name:
        name = "SmolLM2-135M-Instruct"
    return {
        "fastlr": fastlr.__version__,
        "model": {
            "name": name,
            "path": str(source.path),
            "parameters": model.num_parameters(),
            "blocks": model.config.get_text_config().num_hidden_layers,
        },
        "settings": {
            "ratio": request.ratio,
            "calibration_samples": request.samples,
            "seq_len": request.seq_len,
            "windows": request.windows,
            "seed": request.seed,
            "dtype": "float32",
        },
        "machine": {
            "processor": processor(),
            "cores": usable_cores(),
            "threads": torch.get_num_threads(),
            "system": platform.platform(),
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
    }


def _compress_all(
    request: DemoRequest,
    model: PreTrainedModel,
    calibration: Tensor,
    windows: Tensor,
    progress: Progress,
    settings: dict[str, Any],
) -> tuple[PreTrainedModel, list[dict[str, Any]], dict[str, dict[str, list[float]]]]:
    """Calibrate once, then compress and measure a copy of the model for each variant.

    Returns the last of the models, one entry a variant, and by low-rank method the spectrum of each
    layer.
    """
    from fastlr.nn import compress_llm
    from fastlr.nn.compression import calibrate

    with progress.stage("calibrate", "Calibrating"):
        statistics = calibrate(
            model,
            calibration,
            samples=request.samples,
            seq_len=request.seq_len,
            seed=request.seed,
            gradients=True,
        )
    settings["calibration_tokens"] = statistics.tokens
    entries: list[dict[str, Any]] = []
    spectra: dict[str, dict[str, list[float]]] = {}
    for method, form in variants(request.ratio, model.dtype):
        # Where a method has one form only, its name says all.
        name = method if form == method else f"{method}, {form}"
        smaller = copy.deepcopy(model)
        started = time.perf_counter()
        with progress.stage("compress", f"Compressing: {name}"):
            compress_llm(
                smaller,
                request.ratio,
                method=method,
                form=form,
                calibration=statistics,
                seed=request.seed,
            )
        seconds = time.perf_counter() - started
        with progress.stage("evaluate", f"Measuring {name}"):
            measured = measure(smaller, windows, request.seq_len)
        report: Any = smaller.fastlr_report
        entries.append(
            {
                "name": name,
                "method": method,
                "form": form,
                **measured.to_dict(),
                "parameters": report.model_after.parameters,
                "removed_from_linears": report.ratio_achieved,
                "removed_from_model": 1
                - report.model_after.parameters / report.model_before.parameters,
                "seconds": seconds,
                "layers": [_layer(index, entry) for index, entry in enumerate(report.layers)],
            }
        )
        if all(entry.spectrum for entry in report.layers):
            spectra[method] = {e.name: _singular_values(e.spectrum) for e in report.layers}
    return smaller, entries, spectra


def _layer(index: int, entry: Any) -> dict[str, Any]:
    """Turn one layer of fastlr's report into what the page draws."""
    numbers = re.findall(r"\.(\d+)\.", entry.name)
    return {
        "name": entry.name,
        "kind": entry.name.rpartition(".")[2],
        "block": int(numbers[0]) if numbers else index,
        "shape": list(entry.shape),
        "rank": entry.rank,
        "share": entry.parameters_after / entry.parameters_before,
        "error": math.sqrt(entry.measured_error),
    }


def _singular_values(energies: Sequence[float]) -> list[float]:
    """Turn shares of energy into singular values relative to the largest."""
    largest = max(energies) or 1.0
    return [math.sqrt(share / largest) for share in energies]


def _three_spectra(
    spectra: Mapping[str, Mapping[str, Sequence[float]]], entries: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Pick the largest kind of layer in the first, middle and last block."""
    layers = entries[-1]["layers"]
    largest = max(layers, key=lambda layer: layer["shape"][0] * layer["shape"][1])
    alike = [layer for layer in layers if layer["kind"] == largest["kind"]]
    chosen = dict.fromkeys((0, len(alike) // 2, len(alike) - 1))
    return [
        {
            "layer": alike[index]["name"],
            "values": {
                method: list(values[alike[index]["name"]]) for method, values in spectra.items()
            },
            "ranks": [
                {"method": entry["method"], "form": entry["form"], "rank": layer["rank"]}
                for entry in entries
                for layer in entry["layers"]
                if layer["name"] == alike[index]["name"] and layer["rank"] is not None
            ],
        }
        for index in chosen
    ]


def _save_and_reload(
    request: DemoRequest,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    windows: Tensor,
    progress: Progress,
    result: dict[str, Any],
) -> None:
    import torch

    directory = request.out / "model"
    tokens = windows[: request.seq_len].tolist()
    with progress.stage("save", f"Saving to {directory}"), atomic_directory(directory) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
    with progress.stage("reload", "Loading it in a new process", spin=True):
        answer = ask_new_process(
            Question(str(directory), tokens, _PROMPT, _NEW_TOKENS, torch.get_num_threads())
        )
    result["saved"] = {
        "directory": str(directory),
        "bytes": directory_size(directory),
        "dense_bytes": 4 * result["model"]["parameters"],
        "identical": answer.logits_sha256 == logits_sha256(model, tokens),
    }
    result["generation"]["compressed"] = answer.continuation


def _usage(directory: Path) -> str:
    place = repr(str(directory))
    return (
        "import fastlr.nn, transformers\n"
        f"model, tokenizer = fastlr.nn.load({place}), "
        f"transformers.AutoTokenizer.from_pretrained({place})\n"
        'inputs = tokenizer("Python is", return_tensors="pt"); '
        "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40)[0]))"
    )


def _print(result: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(title=f"{result['model']['name']}: perplexity on held-out text")
    for column in ("model", "perplexity", "× dense", "parameters", "removed"):
        table.add_column(column, justify="left" if column == "model" else "right")
    dense = result["dense"]["perplexity"]
    table.add_row("dense", significant(dense), "1.00", f"{result['model']['parameters']:,}", "")
    for variant in result["variants"]:
        table.add_row(
            variant["name"],
            significant(variant["perplexity"]),
            significant(variant["perplexity"] / dense),
            f"{variant['parameters']:,}",
            percent(variant["removed_from_model"]),
            style="bold" if variant["name"] == result["kept"] else "",
        )
    console.print(table)
    generation = result["generation"]
    for name in ("dense", "compressed"):
        text = generation["prompt"] + generation[name]
        console.print(f"{name}: {' '.join(text.split())}", markup=False, soft_wrap=True)
    saved = result["saved"]
    came_back = (
        "its logits are identical in a new process"
        if saved["identical"]
        else "its logits DIFFER in a new process, which is a bug: please report it"
    )
    console.print(
        f"\n{result['seconds_total']:.0f} s in all. Report: {result['report']}\n"
        f"The model of {result['kept']}, the default of compress_llm, is in "
        f"{saved['directory']}; {came_back}. Use it with:\n\n"
        f"{result['usage']}",
        markup=False,
        soft_wrap=True,
    )
