"""The demo's report: one HTML file that needs nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from fastlr.cli.charts import Dot, Line, Marker, Panel, dot_chart, legend, line_panel, significant
from fastlr.cli.console import megabytes, percent

_STYLES = {"svd_llm": "blue", "two_sided": "teal", "sparse": "purple"}
_IN_WORDS = {
    "svd_llm": "keeps the directions that carry the layer's output on the calibration text, as two "
    "factors.",
    "two_sided": "weighs the outputs, too, by their effect on the model's loss, gives the most "
    "numbers to the layers where the loss needs them, and stores a matrix in fewer numbers than "
    "two factors of its rank.",
    "sparse": "weighs the outputs, too, by their effect on the model's loss, gives the most "
    "numbers to the layers where the loss needs them, and keeps single entries of the weight "
    "instead of directions: one bit says which, and those are fitted anew to make up for the "
    "others.",
}


def render(result: Mapping[str, Any]) -> str:
    """Turn the demo's result into a page.

    Parameters
    ----------
    result : mapping
        What ``fastlr demo --json`` prints.

    Returns
    -------
    str
        HTML with its style and its charts inline: it opens from disk, without a network.
    """
    style = files("fastlr.cli").joinpath("page.css").read_text(encoding="utf-8")
    title = _title(result)
    sections = [
        _headline(result),
        _perplexity(result),
        _layers(result),
        _spectra(result),
        _predictions(result),
        _generation(result),
        _machine(result),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>fastlr: {escape(title)}</title><style>{style}</style></head>"
        f"<body><main>{''.join(sections)}</main></body></html>\n"
    )


def _headline(result: Mapping[str, Any]) -> str:
    settings, dense, kept = result["settings"], result["dense"], _kept(result)
    cards = [
        (
            f"{significant(dense['perplexity'])} → {significant(kept['perplexity'])}",
            "perplexity on held-out text",
        ),
        (percent(kept["removed_from_linears"]), "of the compressed layers' parameters removed"),
        (percent(kept["removed_from_model"]), "of the whole model's parameters removed"),
        (f"{result['seconds_total']:.0f} s", "for everything on this page"),
    ]
    boxes = "".join(f'<div class="card"><b>{b}</b><span>{s}</span></div>' for b, s in cards)
    return (
        f"<h1>{escape(_title(result))}</h1>"
        f'<p class="lead">fastlr {escape(result["fastlr"])} made the linear layers of the '
        f"model's {result['model']['blocks']} blocks smaller by its default method, "
        f"{kept['method']}, calibrated on {settings['calibration_tokens']:,} tokens; nothing was "
        "trained. Perplexity is measured on text that the calibration never saw.</p>"
        f'<div class="cards">{boxes}</div>'
    )


def _title(result: Mapping[str, Any]) -> str:
    removed = 100 * result["settings"]["ratio"]
    return f"{result['model']['name']} without {removed:g} % of its layers' parameters"


def _perplexity(result: Mapping[str, Any]) -> str:
    dense = result["dense"]["perplexity"]
    dots = [Dot("dense", dense, "grey")]
    dots += [
        Dot(variant["name"], variant["perplexity"], _STYLES[variant["method"]])
        for variant in result["variants"]
    ]
    drawable = [dot for dot in dots if math.isfinite(dot.value)]
    chart = dot_chart(drawable, dense) if math.isfinite(dense) else ""
    settings = result["settings"]
    methods = dict.fromkeys(variant["method"] for variant in result["variants"])
    words = " ".join(f"<b>{method}</b> {_IN_WORDS[method]}" for method in methods)
    return (
        "<h2>Perplexity before and after</h2>"
        "<p>All compressed models have about the same number of parameters. "
        f"{words}</p>"
        f'<div class="wide">{chart}</div>'
        f'<p class="note">{settings["windows"]} windows of {settings["seq_len"]} tokens of '
        "Python's own documentation; logarithmic axis; lower is better.</p>"
        + _table(
            ["model", "perplexity", "× dense", "mean error", "parameters", "removed", "seconds"],
            _rows(result),
            best=1 + result["variants"].index(_kept(result)),
        )
        + '<p class="note">Mean error: the relative error of a layer\'s output, '
        "‖(W − W′)X‖ / ‖WX‖ on the calibration text, averaged over the layers.</p>"
    )


def _rows(result: Mapping[str, Any]) -> list[list[str]]:
    dense = result["dense"]["perplexity"]
    parameters = f"{result['model']['parameters']:,}"
    rows = [["dense", significant(dense), "1.00", "0", parameters, "–", "–"]]
    for variant in result["variants"]:
        errors = [layer["error"] for layer in variant["layers"]]
        rows.append(
            [
                variant["name"],
                significant(variant["perplexity"]),
                significant(variant["perplexity"] / dense),
                f"{sum(errors) / len(errors):.3f}",
                f"{variant['parameters']:,}",
                percent(variant["removed_from_model"]),
                f"{variant['seconds']:.1f}",
            ]
        )
    return rows


def _layers(result: Mapping[str, Any]) -> str:
    shown = {variant["method"]: variant["layers"] for variant in result["variants"]}
    key = legend([(method, _STYLES[method]) for method in shown])
    return (
        "<h2>Error of each layer</h2>"
        "<p>Relative error of the layer's output on the calibration text, by block. svd_llm makes "
        "it as small as its rank allows; the other looks at what it does to the model's loss.</p>"
        + key
        + _panels(shown, "error")
        + "<h2>Share of its numbers that each layer keeps</h2>"
        "<p>svd_llm spends the budget uniformly, the other where a number saves the most loss."
        "</p>" + key + _panels(shown, "share")
    )


def _panels(series: Mapping[str, Sequence[Mapping[str, Any]]], value: str) -> str:
    """One panel a kind of layer, by block; all on one scale so that kinds can be compared."""
    kinds = list(dict.fromkeys(layer["kind"] for layers in series.values() for layer in layers))
    everything = [layer for layers in series.values() for layer in layers]
    blocks = (
        min(layer["block"] for layer in everything),
        max(layer["block"] for layer in everything),
    )
    limits = (0.0, 1.08 * max(layer[value] for layer in everything))
    drawn = []
    for kind in kinds:
        lines = [
            Line(
                name,
                _STYLES[name],
                [(layer["block"], layer[value]) for layer in layers if layer["kind"] == kind],
            )
            for name, layers in series.items()
        ]
        drawn.append(line_panel(Panel(kind, lines, blocks, limits, "block", width=250, height=180)))
    return f'<div class="panels">{"".join(drawn)}</div>'


def _spectra(result: Mapping[str, Any]) -> str:
    panels = []
    for spectrum in result["spectra"]:
        floor = 10.0 ** math.floor(math.log10(max(min(_visible(spectrum)), 1e-6)))
        count = max(len(values) for values in spectrum["values"].values())
        lines = [
            Line(
                method,
                _STYLES[method],
                [(i + 1.0, value) for i, value in enumerate(values) if value >= floor],
                dots=False,
            )
            for method, values in spectrum["values"].items()
        ]
        markers = [
            Marker(float(kept["rank"]), f"{kept['form']} {kept['rank']}", _STYLES[kept["method"]])
            for kept in spectrum["ranks"]
        ]
        panels.append(
            line_panel(
                Panel(
                    spectrum["layer"],
                    lines,
                    (1.0, float(count)),
                    (floor, 1.0),
                    "index",
                    log_y=True,
                    y_format=lambda value: f"1e{math.log10(value):.0f}" if value < 1 else "1",
                    markers=markers,
                    height=230,
                )
            )
        )
    return (
        "<h2>Spectra of three layers</h2>"
        "<p>Singular values relative to the largest, of the weight as a method sees it: svd_llm "
        "through its inputs, W G<sup>½</sup>, and two_sided through the loss as well, "
        "H<sup>½</sup> W G<sup>½</sup>. The faster they fall, the less a truncation costs. The "
        "dashed lines are the ranks kept.</p>"
        + legend([(method, _STYLES[method]) for method in result["spectra"][0]["values"]])
        + f'<div class="panels three">{"".join(panels)}</div>'
    )


def _visible(spectrum: Mapping[str, Any]) -> Iterable[float]:
    return [value for values in spectrum["values"].values() for value in values if value > 0]


def _predictions(result: Mapping[str, Any]) -> str:
    rows = [
        [entry["name"], *(f"{entry[key]:.1e}" for key in ("predicted", "measured"))]
        for entry in result["predictions"]
    ]
    return (
        "<h2>Predicted against measured</h2>"
        f"<p>{_kept(result)['method']} shares the budget out by what it predicts that a smaller "
        "layer costs. Some layers, made smaller one at a time and by the uniform share, check it: "
        "nats a token, measured as the divergence from the dense model's output.</p>"
        + _table(["layer", "predicted", "measured"], rows, style="plain")
    )


def _generation(result: Mapping[str, Any]) -> str:
    generation, saved = result["generation"], result["saved"]
    outputs = "".join(
        f"<div><h3>{name}</h3><pre>{escape(generation['prompt'] + generation[key])}</pre></div>"
        for name, key in (("Dense", "dense"), ("Compressed", "compressed"))
    )
    came_back = (
        "were identical to the last bit"
        if saved["identical"]
        else "<b>differed, which is a bug of fastlr: please report it</b>"
    )
    return (
        "<h2>Saved, reloaded, generating</h2>"
        f"<p>The model of {result['kept']} was saved ({megabytes(saved['bytes'])}; the "
        f"dense one: {megabytes(saved['dense_bytes'])}) and loaded again in a new process, where "
        f"its logits {came_back}. Both models continue the same prompt, always "
        f"with the likeliest token:</p><div class='pair'>{outputs}</div>"
        f"<h2>Use it</h2><pre>{escape(result['usage'])}</pre>"
    )


def _machine(result: Mapping[str, Any]) -> str:
    facts = {**result["machine"], **result["settings"], **result["text"]}
    facts["model"] = result["model"]["path"]
    rows = [[key.replace("_", " "), _fact(value)] for key, value in facts.items()]
    times = [[stage, f"{seconds:.1f} s"] for stage, seconds in result["seconds"].items()]
    times.append(["total", f"{result['seconds_total']:.1f} s"])
    return (
        f"<h2>Where the time went</h2>{_table(['stage', 'time'], times, style='plain')}"
        f"<h2>Machine and settings</h2>{_table(['', ''], rows, style='plain facts')}"
    )


def _fact(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and value >= 10_000 else str(value)


def _table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    best: int | None = None,
    style: str = "",
) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in header) if any(header) else ""
    body = "".join(
        f"<tr{' class=best' if index == best else ''}>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in row)
        + "</tr>"
        for index, row in enumerate(rows)
    )
    top = f"<tr>{head}</tr>" if head else ""
    return f'<div class="scroll"><table class="{style}">{top}{body}</table></div>'


def _kept(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """Find the variant that the demo saves."""
    return next(variant for variant in result["variants"] if variant["name"] == result["kept"])
