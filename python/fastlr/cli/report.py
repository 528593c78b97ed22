"""The demo's report: one HTML file that needs nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from fastlr.cli.charts import Dot, Line, Marker, Panel, dot_chart, legend, line_panel, significant
from fastlr.cli.console import megabytes, percent

_METHOD_STYLES = {"svd": "orange", "svd_llm": "blue"}
_FORM_STYLES = {"factored": "orange", "interpolative": "blue"}


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
    settings, dense, best = result["settings"], result["dense"], _best(result)
    cards = [
        (
            f"{significant(dense['perplexity'])} → {significant(best['perplexity'])}",
            "perplexity on held-out text",
        ),
        (percent(best["removed_from_linears"]), "of the compressed layers' parameters removed"),
        (percent(best["removed_from_model"]), "of the whole model's parameters removed"),
        (f"{result['seconds_total']:.0f} s", "for everything on this page"),
    ]
    boxes = "".join(f'<div class="card"><b>{b}</b><span>{s}</span></div>' for b, s in cards)
    return (
        f"<h1>{escape(_title(result))}</h1>"
        f'<p class="lead">fastlr {escape(result["fastlr"])} replaced every linear layer of the '
        f"model's {result['model']['blocks']} blocks by one of lower rank, calibrated on "
        f"{settings['calibration_tokens']:,} tokens. Perplexity is measured on text that the "
        f'calibration never saw.</p><div class="cards">{boxes}</div>'
    )


def _title(result: Mapping[str, Any]) -> str:
    removed = 100 * result["settings"]["ratio"]
    return f"{result['model']['name']} without {removed:g} % of its layers' parameters"


def _perplexity(result: Mapping[str, Any]) -> str:
    dense = result["dense"]["perplexity"]
    dots = [Dot("dense", dense, "grey")]
    dots += [
        Dot(_name(variant), variant["perplexity"], _METHOD_STYLES[variant["method"]])
        for variant in result["variants"]
    ]
    drawable = [dot for dot in dots if math.isfinite(dot.value)]
    chart = dot_chart(drawable, dense) if math.isfinite(dense) else ""
    settings = result["settings"]
    return (
        "<h2>Perplexity before and after</h2>"
        "<p>All four compressed models have about the same number of parameters. "
        "<b>svd</b> truncates the weights alone; <b>svd_llm</b> keeps the directions that carry "
        "the layer's output on the calibration text. The <b>interpolative</b> form stores the "
        "same kind of matrix in fewer numbers than two plain factors, so its rank is higher.</p>"
        f'<div class="wide">{chart}</div>'
        f'<p class="note">{settings["windows"]} windows of {settings["seq_len"]} tokens of '
        "Python's own documentation; logarithmic axis; lower is better.</p>"
        + _table(
            ["model", "perplexity", "× dense", "mean error", "parameters", "removed", "seconds"],
            _rows(result),
            best=1 + result["variants"].index(_best(result)),
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
                _name(variant),
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
    shown = [variant for variant in result["variants"] if variant["form"] == "interpolative"]
    error = _panels(
        {variant["method"]: variant["layers"] for variant in shown},
        "error",
        _METHOD_STYLES,
    )
    forms = {v["form"]: v["layers"] for v in result["variants"] if v["method"] == "svd_llm"}
    full = [{**layer, "rank": min(layer["shape"])} for layer in forms["factored"]]
    rank = _panels({"full rank": full, **forms}, "rank", {"full rank": "grey", **_FORM_STYLES})
    return (
        "<h2>Error of each layer</h2>"
        "<p>Relative error of the layer's output on the calibration text, interpolative form, "
        "by block. Every layer keeps the same share of its parameters.</p>"
        + legend([(method, _METHOD_STYLES[method]) for method in _METHOD_STYLES])
        + error
        + "<h2>Rank of each layer</h2>"
        "<p>The rank that the same number of parameters buys in either form.</p>"
        + legend([("full rank", "grey"), *_FORM_STYLES.items()])
        + rank
    )


def _panels(
    series: Mapping[str, Sequence[Mapping[str, Any]]], value: str, styles: Mapping[str, str]
) -> str:
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
                styles[name],
                [(layer["block"], layer[value]) for layer in layers if layer["kind"] == kind],
                dots=styles[name] != "grey",
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
                _METHOD_STYLES[method],
                [(i + 1.0, value) for i, value in enumerate(values) if value >= floor],
                dots=False,
            )
            for method, values in spectrum["values"].items()
        ]
        markers = [
            Marker(float(rank), f"{form} {rank}", "grey")
            for form, rank in spectrum["ranks"].items()
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
        "<p>Singular values relative to the largest: of the weight W (svd), and of the weight "
        "seen through its inputs, W G<sup>½</sup> (svd_llm). The faster they fall, the less a "
        "truncation costs. The dashed lines are the ranks kept.</p>"
        + legend(list(_METHOD_STYLES.items()))
        + f'<div class="panels three">{"".join(panels)}</div>'
    )


def _visible(spectrum: Mapping[str, Any]) -> Iterable[float]:
    return [value for values in spectrum["values"].values() for value in values if value > 0]


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
        f"<p>The best model (svd_llm, interpolative) was saved ({megabytes(saved['bytes'])}; the "
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


def _best(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """Find the variant that the demo saves."""
    for variant in result["variants"]:
        if (variant["method"], variant["form"]) == ("svd_llm", "interpolative"):
            found: Mapping[str, Any] = variant
            return found
    raise ValueError("the result holds no svd_llm interpolative model")


def _name(variant: Mapping[str, Any]) -> str:
    return f"{variant['method']}, {variant['form']}"
