"""Perplexity on WikiText-2 of a language model that fastlr has compressed.

Every method and form at every ratio, all from one calibration. The protocol: rows of the raw text
joined with a blank line between them, tokenised once without special tokens, non-overlapping
windows, exp of the mean negative log-likelihood over the predicted positions.
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
from fastlr.nn.compress import calibrate
from fastlr.nn.evaluate import tokenize
from harness import machine_line, markdown, seconds_of

METHODS = ("svd", "svd_llm")
FORMS = ("factored", "interpolative")


def main() -> None:
    options = _options()
    model, tokenizer = load(options.model, options.dtype)
    test = tokenize(wikitext(options.test_text), tokenizer)
    train = tokenize(wikitext(options.train_text), tokenizer)

    dense = {"ratio": "dense", "method": "", "form": ""}
    rows = [{**dense, **measure(model, test, options), "MB": megabytes(model)}]
    _tell(rows[0])
    statistics = calibrate(
        model, train, samples=options.samples, seq_len=options.seq_len, progress=options.progress
    )
    for ratio, method, form in itertools.product(options.ratios, METHODS, FORMS):
        start = time.perf_counter()
        smaller = compress_llm(
            copy.deepcopy(model),
            ratio,
            method=method,
            form=form,
            calibration=statistics,
            progress=options.progress,
        )
        seconds = time.perf_counter() - start
        report = smaller.fastlr_report
        before, after = report.model_before, report.model_after
        rows.append(
            {
                "ratio": str(ratio),
                "method": method,
                "form": form,
                **measure(smaller, test, options),
                "output error": f"{report.mean_output_error:.4f}",
                "linears removed": f"{report.ratio_achieved:.2%}",
                "model removed": f"{1 - after.parameters / before.parameters:.2%}",
                "MB": f"{after.bytes / 1e6:.1f}",
                "factorization": f"{seconds:.0f} s",
            }
        )
        _tell(rows[-1])
    if options.json:
        settings = {k: v for k, v in vars(options).items() if k != "json"}
        print(json.dumps({"machine": machine_line(), "settings": settings, "rows": rows}, indent=2))
    else:
        print(machine_line(), markdown(rows), sep="\n\n")


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


def measure(model: Any, tokens: Tensor, options: argparse.Namespace) -> dict[str, Any]:
    """Perplexity, and tokens a second for one token and for a batch of windows."""
    one = tokens[:1][None]
    windows = tokens[: 4 * options.seq_len].reshape(4, -1)
    with torch.no_grad():
        alone = seconds_of(lambda: model(input_ids=one, use_cache=False), 5)
        together = seconds_of(lambda: model(input_ids=windows, use_cache=False), 1)
    value = perplexity(model, tokens, options.seq_len, windows=options.windows)
    return {
        "perplexity": f"{value:.2f}",
        "tokens/s, 1": f"{1 / alone:.1f}",
        f"tokens/s, {windows.numel()}": f"{windows.numel() / together:.0f}",
    }


def megabytes(model: Any) -> str:
    """Of the parameters; a tied one counts once."""
    return f"{sum(p.numel() * p.element_size() for p in model.parameters()) / 1e6:.1f}"


def _tell(row: dict[str, Any]) -> None:
    print(" ".join(str(value) for value in row.values()), file=sys.stderr, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a directory that transformers reads, or a .gguf file")
    parser.add_argument("--test-text", type=Path, required=True, help="wiki.test.raw")
    parser.add_argument("--train-text", type=Path, required=True, help="wiki.train.raw")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.2, 0.4])
    parser.add_argument("--samples", type=int, default=32, help="calibration windows")
    parser.add_argument("--seq-len", type=int, default=512, help="tokens in a window")
    parser.add_argument("--windows", type=int, default=12, help="evaluation windows")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--progress", action="store_true", help="show progress bars")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser.parse_args()


if __name__ == "__main__":
    main()
