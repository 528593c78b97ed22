"""Perplexity of a byte-level mixture of experts by how much of its numbers is removed.

The model is a directory that transformers reads, whose tokens are the bytes of the text. It is
calibrated on windows of the first nine tenths of the text and measured on the last tenth.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from fastlr.nn import compress_llm, perplexity
from fastlr.nn.compression import calibrate
from harness import machine_line, markdown

_METHODS = ["sparse", "two_sided", "svd_llm", "svd", "sub_moe"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", default=_METHODS)
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.2, 0.4, 0.6, 0.8])
    parser.add_argument("--seq-len", type=int, default=128)
    parser.add_argument("--samples", type=int, default=128, help="calibration windows")
    parser.add_argument("--windows", type=int, default=200, help="evaluation windows")
    options = parser.parse_args()

    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    tokens = torch.tensor(list(options.text.read_bytes()))
    train, test = tokens.split([9 * len(tokens) // 10, len(tokens) - 9 * len(tokens) // 10])
    test = test[: options.windows * options.seq_len]
    statistics = calibrate(
        model, train, samples=options.samples, seq_len=options.seq_len, gradients=True
    )
    rows: list[dict[str, str]] = [
        {"removed": "dense", options.methods[0]: f"{perplexity(model, test, options.seq_len):.4f}"}
    ]
    for ratio in options.ratios:
        row = {"removed": f"{ratio:.0%}"}
        for method in options.methods:
            smaller = compress_llm(
                copy.deepcopy(model), ratio, method=method, calibration=statistics, progress=False
            )
            row[method] = f"{perplexity(smaller, test, options.seq_len):.4f}"
        rows.append(row)
    print(machine_line(), markdown(rows), sep="\n\n")


if __name__ == "__main__":
    main()
