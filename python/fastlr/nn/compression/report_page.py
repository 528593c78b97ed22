"""A compression report as one HTML page that needs nothing else."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastlr.nn.compression.report import CompressionReport, LayerReport

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1c2733;background:#fff;margin:0 auto;
max-width:1100px;padding:24px}
h1{font-size:24px}table{border-collapse:collapse;width:100%;font-size:13px}
th,td{padding:4px 10px;text-align:right;border-bottom:1px solid #e3e8ee;white-space:nowrap}
th:first-child,td:first-child,th:last-child,td:last-child{text-align:left}
td.note{white-space:normal;color:#5b6b7b}.scroll{overflow-x:auto}
.bar{display:inline-block;width:90px;height:9px;background:#eef2f6;margin-right:8px;
text-align:left;vertical-align:middle}
.bar i{display:block;height:9px;background:#2f74c0}.bar.error i{background:#c05a2f}
.cards{display:flex;flex-wrap:wrap;gap:12px;margin:16px 0}
.card{border:1px solid #e3e8ee;border-radius:8px;padding:10px 16px}
.card b{display:block;font-size:18px}.card span{color:#5b6b7b;font-size:13px}
"""


def page(report: CompressionReport) -> str:
    """The page: sizes, and for each layer what is left of its numbers and how far it is off."""
    before, after = report.model_before, report.model_after
    cards = [
        (f"{before.parameters:,} → {after.parameters:,}", "parameters of the whole model"),
        (f"{before.bytes / 1e6:,.1f} → {after.bytes / 1e6:,.1f} MB", "of the whole model"),
        (f"−{report.ratio_achieved:.1%}", f"of these layers' numbers, asked {report.ratio:.1%}"),
        (f"{report.seconds['total']:.1f} s", "for the compression"),
    ]
    boxes = "".join(f'<div class="card"><b>{b}</b><span>{s}</span></div>' for b, s in cards)
    calibration = f"{report.calibration_tokens:,} {report.calibration_unit}"
    rows = "".join(map(_row, report.layers))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>fastlr: {escape(report.method)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>Compressed by {escape(report.method)}</h1>"
        f"<p>Stored as {escape(report.form)}; sizes by {escape(report.allocation)}; calibrated on "
        f"{calibration}. Errors are relative and squared: of a layer's output on the calibration "
        "inputs where those are known, else of its weight.</p>"
        f'<div class="cards">{boxes}</div><div class="scroll"><table><tr><th>layer</th>'
        "<th>shape</th><th>form</th><th>rank</th><th>parameters</th><th>kept</th>"
        f"<th>predicted</th><th>measured</th><th>note</th></tr>{rows}</table></div></body></html>\n"
    )


def _row(layer: LayerReport) -> str:
    kept = layer.parameters_after / layer.parameters_before
    cells = [
        escape(layer.name),
        "×".join(map(str, layer.shape)),
        escape(layer.form),
        "–" if layer.rank is None else str(layer.rank),
        f"{layer.parameters_before:,} → {layer.parameters_after:,}",
        _bar(kept, f"{kept:.0%}"),
        "–" if layer.predicted_error is None else f"{layer.predicted_error:.2e}",
        # The error itself, of which a tenth can be seen, for the length of the bar.
        _bar(math.sqrt(layer.measured_error), f"{layer.measured_error:.2e}", "error"),
    ]
    body = "".join(f"<td>{cell}</td>" for cell in cells)
    return f'<tr>{body}<td class="note">{escape(layer.note)}</td></tr>'


def _bar(part: float, text: str, kind: str = "") -> str:
    width = 100 * min(max(part, 0.0), 1.0)
    return f'<span class="bar {kind}"><i style="width:{width:.1f}%"></i></span>{text}'
