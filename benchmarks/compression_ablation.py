"""What each ingredient of the default compression is worth: each removed in turn.

With --plot also: what single layers were predicted to do to the model's loss, and what they did.
The texts, the model and the protocol are those of wikitext_compression.py, whose options are these.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from fastlr.nn import compress_llm
from fastlr.nn.compression import (
    Candidates,
    LayerProblem,
    Statistics,
    loss_model,
    register_method,
    run,
)
from fastlr.nn.compression.methods import METHODS, sparse
from fastlr.nn.evaluate import tokenize
from harness import machine_line, markdown
from wikitext_compression import (
    load,
    options_of,
    perplexity_of,
    statistics_of,
    texts_of,
    wikitext,
)

# Every k-th layer of a type is measured for the plot.
_LAYERS_OF_A_TYPE = 8


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--plot", type=Path, help="write predicted against measured as an image")
    parser.add_argument("--only", nargs="+", help="these ablations, by the beginning of their name")
    options = parser.parse_args()
    model, tokenizer = load(options.model, options.dtype)
    texts = texts_of(options, tokenizer)
    train = tokenize(wikitext(options.train_text), tokenizer)
    statistics = statistics_of(model, train, options)

    if options.plot:
        plot(model, statistics, options)
        return
    dense = {name: perplexity_of(model, name, tokens, options) for name, tokens in texts.items()}
    rows = []
    for ratio in options.ratios:
        for name, (arguments, changed) in ablations().items():
            if options.only and not name.startswith(tuple(options.only)):
                continue
            with changed():
                smaller = compress_llm(
                    copy.deepcopy(model),
                    ratio,
                    calibration=statistics,
                    progress=options.progress,
                    **arguments,
                )
            row: dict[str, Any] = {"ratio": str(ratio), "default": name}
            for text, tokens in texts.items():
                found = perplexity_of(smaller, text, tokens, options)
                row[f"{text} / dense"] = f"{found / dense[text]:.3f}"
            rows.append(row)
            print(*row.values(), file=sys.stderr, flush=True)
    print(machine_line(), markdown(rows), sep="\n\n")


def ablations() -> Mapping[str, tuple[dict[str, Any], Callable[[], Any]]]:
    """Name → arguments of compress_llm, and what is different while it runs."""
    for name, prepare in (("one_sided", _one_sided), ("diagonal", _diagonal)):
        if name not in METHODS:
            register_method(name, replace(METHODS["sparse"], prepare=prepare))

    def without(place: Any, name: str, value: Any) -> Callable[[], Any]:
        return lambda: mock.patch.object(place, name, value)

    return {
        "as it is": ({}, _unchanged),
        "uniform shares": ({"allocation": "uniform"}, _unchanged),
        "uniform, no gradients": ({"method": "one_sided", "allocation": "uniform"}, _unchanged),
        "no covariances (diagonals of H and G)": ({"method": "diagonal"}, _unchanged),
        "no refit": ({}, without(sparse, "fit_on_mask", lambda target, mask, *_: target * mask)),
        "damping of H 0.01": ({}, without(sparse, "DAMPING_OF_GRADIENTS", 0.01)),
        "damping of G 0.01": ({}, without(sparse, "DAMPING_OF_INPUTS", 0.01)),
        "no measured correction": ({}, without(run, "measure_layers", lambda *_: [])),
        "low rank, interpolative": ({"method": "two_sided"}, _unchanged),
        "low rank, factored": ({"method": "two_sided", "form": "factored"}, _unchanged),
        "low rank, factored, uniform": (
            {"method": "two_sided", "form": "factored", "allocation": "uniform"},
            _unchanged,
        ),
        "error propagated, adaptive": ({"propagation": "adaptive"}, _unchanged),
        "error propagated, half": ({"propagation": 0.5}, _unchanged),
    }


@contextmanager
def _unchanged() -> Iterator[None]:
    yield


def _one_sided(problem: LayerProblem, form: str, multiple: int) -> Candidates:
    return sparse.prepare(replace(problem, gradients=None), form, multiple)


def _diagonal(problem: LayerProblem, form: str, multiple: int) -> Candidates:
    inputs, gradients = (
        None if gram is None else type(gram)(gram.matrix.diagonal().diag(), gram.tokens)
        for gram in (problem.inputs, problem.gradients)
    )
    return sparse.prepare(replace(problem, inputs=inputs, gradients=gradients), form, multiple)


def plot(model: Any, statistics: Statistics, options: argparse.Namespace) -> None:
    """Predicted against measured, for some layers of every type at each ratio."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5.6, 5.2), layout="constrained")
    limits = []
    for ratio, marker in zip(options.ratios, "osv^D", strict=False):
        with mock.patch.object(loss_model, "_LAYERS_OF_A_TYPE", _LAYERS_OF_A_TYPE):
            smaller = compress_llm(copy.deepcopy(model), ratio, calibration=statistics)
        kinds: dict[str, list[tuple[float, float]]] = {}
        for found in smaller.fastlr_report.predictions:
            kind = found.name.rpartition(".")[2]
            kinds.setdefault(kind, []).append((found.predicted, found.measured))
            limits += [found.predicted, found.measured]
        for color, (kind, points) in enumerate(kinds.items()):
            label = kind if ratio == options.ratios[0] else None
            axes.scatter(*zip(*points, strict=True), 18, f"C{color}", marker, label=label)
        shown = ", ".join(f"{p:.3g} {m:.3g}" for points in kinds.values() for p, m in points)
        print(ratio, shown, file=sys.stderr)
    ends = min(limits), max(limits)
    axes.loglog(ends, ends, "k-", linewidth=0.8, label="equal")
    axes.loglog(ends, [2 * e for e in ends], "k:", linewidth=0.8, label="factor 2")
    axes.loglog(ends, [e / 2 for e in ends], "k:", linewidth=0.8)
    axes.set_xlabel("predicted increase of the loss, nats a token")
    axes.set_ylabel("measured divergence, nats a token")
    names = ", ".join(f"{ratio:.0%} {m}" for ratio, m in zip(options.ratios, "○□▽△◇", strict=False))
    axes.set_title(f"One layer compressed alone ({names})", fontsize=10)
    axes.legend(fontsize=8)
    figure.savefig(options.plot, dpi=120)


if __name__ == "__main__":
    main()
