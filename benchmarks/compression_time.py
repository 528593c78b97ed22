"""Time to compress all layers of a model, beside calibration and the procedure that was published.

The published procedure of SVD-LLM, for every layer: a Cholesky factor S of the Gram matrix of its
inputs (float64), a full singular value decomposition of W S and the inverse of S (float32). All
from one calibration of the texts of wikitext_compression.py; of --ratios the first one counts.
"""

from __future__ import annotations

import copy
import time
from typing import Any

import torch

from fastlr.nn import compress_llm
from fastlr.nn.compression import Statistics
from fastlr.nn.evaluate import tokenize
from harness import machine_line, markdown
from wikitext_compression import load, options_of, statistics_of, wikitext

METHODS = ("sparse", "two_sided", "svd_llm")


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    options = parser.parse_args()
    model, tokenizer = load(options.model, options.dtype)
    statistics = statistics_of(model, tokenize(wikitext(options.train_text), tokenizer), options)

    published = published_seconds(model, statistics)
    rows: list[dict[str, Any]] = [
        {"what": "calibration: forward, backward, moments", "seconds": f"{statistics.seconds:.1f}"},
        {"what": "Cholesky + SVD + inverse of every layer", "seconds": f"{published:.1f}"},
    ]
    for method in options.methods:
        start = time.perf_counter()
        smaller = compress_llm(
            copy.deepcopy(model),
            options.ratios[0],
            method=method,
            calibration=statistics,
            progress=options.progress,
        )
        seconds = time.perf_counter() - start
        parts = smaller.fastlr_report.seconds
        rows.append(
            {
                "what": f"compress_llm, {method}",
                "seconds": f"{seconds:.1f}",
                "of it measuring": f"{parts['measuring']:.1f}",
                "/ calibration": f"{seconds / statistics.seconds:.2f}",
                "/ published": f"{seconds / published:.2f}",
            }
        )
    print(machine_line(), markdown(rows), sep="\n\n")


def published_seconds(model: Any, statistics: Statistics) -> float:
    """How long the published factorizations take, one layer after the other."""
    total = 0.0
    for name, gram in statistics.grams.items():
        weight = model.get_submodule(name).weight.detach().float()
        matrix = gram.matrix.clone()
        # As published, eigenvalues that are not positive are lifted.
        matrix.diagonal().add_(1e-6 * matrix.diagonal().mean())
        start = time.perf_counter()
        root = torch.linalg.cholesky(matrix).float()
        torch.linalg.svd(weight @ root, full_matrices=False)
        torch.linalg.inv(root)
        total += time.perf_counter() - start
    return total


if __name__ == "__main__":
    main()
