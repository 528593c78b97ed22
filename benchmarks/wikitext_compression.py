"""Perplexity of a language model that fastlr has compressed: WikiText-2, and a second text.

Every method at every ratio, with its own allocation and with the uniform one, all from one
calibration. The protocol: rows of the raw text joined with a blank line between them, tokenised
once without special tokens, non-overlapping windows, exp of the mean negative log-likelihood over
the predicted positions.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import lzma
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastlr.nn import compress_llm, perplexity
from fastlr.nn.compression import Statistics, calibrate
from fastlr.nn.compression.methods import METHODS
from fastlr.nn.evaluate import tokenize
from harness import machine_line, markdown, seconds_of

WIKITEXT = "WikiText-2"


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=["auto", *METHODS])
    parser.add_argument("--allocations", nargs="+", default=["own", "uniform"])
    parser.add_argument("--form", help="of the weights; default: the method's first")
    parser.add_argument("--heal-steps", type=int, default=0, help="steps of distillation")
    parser.add_argument("--speed", action="store_true", help="measure tokens a second too")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    model, tokenizer = load(options.model, options.dtype)
    texts = texts_of(options, tokenizer)
    train = tokenize(wikitext(options.train_text), tokenizer)

    dense = {name: perplexity_of(model, name, tokens, options) for name, tokens in texts.items()}
    rows: list[dict[str, Any]] = [
        {
            "ratio": "dense",
            "method": "",
            "allocation": "",
            **{name: f"{value:.2f}" for name, value in dense.items()},
            **speed(model, texts[WIKITEXT], options),
            "MB": megabytes(model),
        }
    ]
    _tell(rows[0])
    statistics = statistics_of(model, train, options)
    print(f"calibration: {statistics.seconds:.0f} s", file=sys.stderr)
    for ratio, method in itertools.product(options.ratios, options.methods):
        for allocation in allocations_of(method, options):
            start = time.perf_counter()
            smaller = compress_llm(
                copy.deepcopy(model),
                ratio,
                method=method,
                form=options.form,
                allocation=allocation,
                heal_steps=options.heal_steps,
                calibration=statistics,
                progress=options.progress,
            )
            seconds = time.perf_counter() - start
            report = smaller.fastlr_report
            row = {"ratio": str(ratio), "method": report.method, "allocation": report.allocation}
            for name, tokens in texts.items():
                value = perplexity_of(smaller, name, tokens, options)
                row[name] = f"{value:.2f}"
                row[f"{name} / dense"] = f"{value / dense[name]:.3f}"
            before, after = report.model_before, report.model_after
            rows.append(
                {
                    **row,
                    **speed(smaller, texts[WIKITEXT], options),
                    "output error": f"{report.mean_output_error:.4f}",
                    "linears removed": f"{report.ratio_achieved:.2%}",
                    "model removed": f"{1 - after.parameters / before.parameters:.2%}",
                    "MB": f"{after.bytes / 1e6:.1f}",
                    "seconds": f"{seconds:.0f}",
                }
            )
            _tell(rows[-1])
    if options.json:
        settings = {k: v for k, v in vars(options).items() if k != "json"}
        found = {"machine": machine_line(), "settings": settings, "rows": rows}
        print(json.dumps(found, indent=2, default=str))
    else:
        print(machine_line(), markdown(rows), sep="\n\n")


def statistics_of(model: Any, tokens: Tensor, options: argparse.Namespace) -> Statistics:
    """What calibration finds; kept in a file where one is named, for later runs like this one."""
    if options.statistics and options.statistics.exists():
        kept: Statistics = torch.load(options.statistics, weights_only=False)
        return kept
    statistics = calibrate(
        model,
        None if options.own_text else tokens,
        samples=options.samples,
        seq_len=options.seq_len,
        gradients=True,
        progress=options.progress,
    )
    if options.statistics:
        partial = options.statistics.with_suffix(".partial")
        torch.save(statistics, partial)
        partial.replace(options.statistics)
    return statistics


def allocations_of(method: str, options: argparse.Namespace) -> list[str | None]:
    """What was asked for, each once; "own" is the method's, None for "auto"."""
    own = None if method == "auto" else METHODS[method].allocation
    return list(dict.fromkeys(own if name == "own" else name for name in options.allocations))


def load(name: str, dtype: str) -> tuple[Any, Any]:
    """A model and its tokenizer, from a directory or a .gguf file."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = Path(name)
    where = {"gguf_file": path.name} if path.suffix == ".gguf" else {}
    directory = path.parent if where else path
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype), **where)
    return model.eval(), AutoTokenizer.from_pretrained(directory, **where)


def wikitext(path: Path) -> str:
    """The rows of a raw WikiText file (.xz or not) with blank lines between them.

    As the data set is published, a row of nothing but white space is empty and the others keep
    their line break.
    """
    open_text = lzma.open if path.suffix == ".xz" else open
    with open_text(path, "rt", encoding="utf-8") as file:
        rows = file.read().split("\n")[:-1]
    return "\n\n".join(f"{row}\n" if row.strip() else "" for row in rows)


def plain(path: Path) -> str:
    """A text file (.xz or not)."""
    open_text = lzma.open if path.suffix == ".xz" else open
    with open_text(path, "rt", encoding="utf-8") as file:
        return file.read()


def texts_of(options: argparse.Namespace, tokenizer: Any) -> dict[str, Tensor]:
    """The tokens of the texts that are measured on, by their names."""
    texts = {WIKITEXT: tokenize(wikitext(options.test_text), tokenizer)}
    if options.second_text:
        texts[options.second_text.name] = tokenize(plain(options.second_text), tokenizer)
    return texts


def perplexity_of(model: Any, text: str, tokens: Tensor, options: argparse.Namespace) -> float:
    """On the first windows of a text: the test text's, or those of the second one."""
    windows = options.windows if text == WIKITEXT else options.second_windows
    return perplexity(model, tokens, options.seq_len, windows=windows)


def speed(model: Any, tokens: Tensor, options: argparse.Namespace) -> dict[str, str]:
    """Tokens a second, for one token and for a batch of windows."""
    if not options.speed:
        return {}
    one = tokens[:1][None]
    windows = tokens[: 4 * options.seq_len].reshape(4, -1)
    with torch.no_grad():
        alone = seconds_of(lambda: model(input_ids=one, use_cache=False), 5)
        together = seconds_of(lambda: model(input_ids=windows, use_cache=False), 1)
    return {
        "tokens/s, 1": f"{1 / alone:.1f}",
        f"tokens/s, {windows.numel()}": f"{windows.numel() / together:.0f}",
    }


def megabytes(model: Any) -> str:
    """Of the parameters; a tied one counts once."""
    return f"{sum(p.numel() * p.element_size() for p in model.parameters()) / 1e6:.1f}"


def _tell(row: dict[str, Any]) -> None:
    print(" ".join(str(value) for value in row.values()), file=sys.stderr, flush=True)


def options_of(description: str | None) -> argparse.ArgumentParser:
    """The options of a measurement on these texts."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a directory that transformers reads, or a .gguf file")
    parser.add_argument("--test-text", type=Path, required=True, help="wiki.test.raw")
    parser.add_argument("--train-text", type=Path, required=True, help="wiki.train.raw")
    parser.add_argument("--second-text", type=Path, help="another text, of any kind")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.2, 0.3, 0.4])
    parser.add_argument("--samples", type=int, default=64, help="calibration windows")
    parser.add_argument("--seq-len", type=int, default=1024, help="tokens in a window")
    parser.add_argument("--own-text", action="store_true", help="calibrate on the model's own text")
    parser.add_argument("--statistics", type=Path, help="a file that keeps what calibration finds")
    parser.add_argument("--windows", type=int, default=20, help="evaluation windows")
    parser.add_argument("--second-windows", type=int, default=10, help="of the second text")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--progress", action="store_true", help="show progress bars")
    return parser


if __name__ == "__main__":
    main()
