"""A compression report as one HTML page that needs nothing else."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

from fastlr.nn.html_page import bar, cards, document, table

if TYPE_CHECKING:
    from fastlr.nn.compression.report import CompressionReport, LayerReport

_COLUMNS = (
    "layer",
    "shape",
    "form",
    "rank",
    "parameters",
    "kept",
    "predicted",
    "measured",
    "note",
)


def page(report: CompressionReport) -> str:
    """The page: sizes, and for each layer what is left of its numbers and how far it is off."""
    before, after = report.model_before, report.model_after
    facts = [
        (f"{before.parameters:,} → {after.parameters:,}", "parameters of the whole model"),
        (f"{before.bytes / 1e6:,.1f} → {after.bytes / 1e6:,.1f} MB", "of the whole model"),
        (f"−{report.ratio_achieved:.1%}", f"of these layers' numbers, asked {report.ratio:.1%}"),
        (f"{report.seconds['total']:.1f} s", "for the compression"),
    ]
    calibration = f"{report.calibration_tokens:,} {report.calibration_unit}"
    return document(
        report.method,
        f"<h1>Compressed by {escape(report.method)}</h1>"
        f"<p>Stored as {escape(report.form)}; sizes by {escape(report.allocation)}; calibrated on "
        f"{calibration}. Errors are relative and squared: of a layer's output on the calibration "
        "inputs where those are known, else of its weight.</p>"
        f"{cards(facts)}{table(_COLUMNS, map(_row, report.layers))}",
    )


def _row(layer: LayerReport) -> str:
    kept = layer.parameters_after / layer.parameters_before
    cells = [
        escape(layer.name),
        "×".join(map(str, layer.shape)),
        escape(layer.form),
        "–" if layer.rank is None else str(layer.rank),
        f"{layer.parameters_before:,} → {layer.parameters_after:,}",
        bar(kept, f"{kept:.0%}"),
        "–" if layer.predicted_error is None else f"{layer.predicted_error:.2e}",
        # The error itself, of which a tenth can be seen, for the length of the bar.
        bar(math.sqrt(layer.measured_error), f"{layer.measured_error:.2e}", "error"),
    ]
    body = "".join(f"<td>{cell}</td>" for cell in cells)
    return f'<tr>{body}<td class="note">{escape(layer.note)}</td></tr>'
