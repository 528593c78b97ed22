"""Perplexity of a language model in 4 or 8 bits, with and without maps of low rank beside.

Rounded alone, rounded and then corrected (EoRA), and both found together, from one calibration.
The texts, the model and the protocol are those of wikitext_compression.py, whose options are these.
"""

from __future__ import annotations

import copy
import sys
import time
from typing import Any

from fastlr.nn import QuantizedLinear, compensate, quantize_plus_low_rank
from fastlr.nn.evaluate import tokenize
from fastlr.nn.modules.replace import replace_modules
from harness import machine_line, markdown
from wikitext_compression import (
    load,
    options_of,
    perplexity_of,
    statistics_of,
    texts_of,
    wikitext,
)


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[32])
    parser.add_argument("--quantizations", nargs="*", default=["nf4", "int8"])
    parser.add_argument("--bits", type=float, nargs="+", default=[])
    options = parser.parse_args()
    model, tokenizer = load(options.model, options.dtype)
    texts = texts_of(options, tokenizer)
    train = tokenize(wikitext(options.train_text), tokenizer)
    dense = {name: perplexity_of(model, name, tokens, options) for name, tokens in texts.items()}
    statistics = statistics_of(model, train, options)
    rows: list[dict[str, Any]] = []

    def add(name: str, changed: Any, bits: float, error: float, seconds: float) -> None:
        row = {"weights": name, "bits": f"{bits:.2f}", "error": f"{error:.2e}"}
        for text, tokens in texts.items():
            found = perplexity_of(changed, text, tokens, options)
            row[f"{text} / dense"] = f"{found / dense[text]:.4f}"
        rows.append({**row, "seconds": f"{seconds:.0f}"})
        print(*rows[-1].values(), file=sys.stderr, flush=True)

    common: Any = {"calibration": statistics, "progress": options.progress}
    for quantization in options.quantizations:
        for rank in options.ranks:
            start = time.perf_counter()
            together = quantize_plus_low_rank(
                copy.deepcopy(model), rank, quantization=quantization, **common
            )
            seconds = time.perf_counter() - start
            report = together.fastlr_report
            if rank == options.ranks[0]:
                rounded = rounded_copy(model, quantization, [layer.name for layer in report.layers])
                bits = sum(layer.weight_bytes() for layer in quantized(rounded)) * 8
                bits /= sum(layer.in_features * layer.out_features for layer in quantized(rounded))
                add(quantization, rounded, bits, report.mean_error_quantized, 0)
            start = time.perf_counter()
            corrected = compensate(copy.deepcopy(rounded), model, rank=rank, **common)
            took = time.perf_counter() - start
            error = corrected.fastlr_report.mean_error_after
            add(f"{quantization}, then rank {rank}", corrected, report.bits, error, took)
            add(
                f"{quantization} and rank {rank}", together, report.bits, report.mean_error, seconds
            )
    for bits in options.bits:
        rank = options.ranks[0]
        start = time.perf_counter()
        mixed = quantize_plus_low_rank(copy.deepcopy(model), rank, bits=bits, **common)
        seconds = time.perf_counter() - start
        report = mixed.fastlr_report
        add(f"{bits} bits with rank {rank}", mixed, report.bits, report.mean_error, seconds)
    print(machine_line(), markdown(rows), sep="\n\n")


def rounded_copy(model: Any, quantization: str, names: list[str]) -> Any:
    """The model with these layers rounded."""
    lossy = copy.deepcopy(model)
    layers = {
        name: QuantizedLinear.from_dense(lossy.get_submodule(name), quantization) for name in names
    }
    replace_modules(lossy, layers)
    return lossy


def quantized(model: Any) -> list[QuantizedLinear]:
    return [module for module in model.modules() if isinstance(module, QuantizedLinear)]


if __name__ == "__main__":
    main()
