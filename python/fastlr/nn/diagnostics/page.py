"""A spectra report as one HTML page that needs nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING

from fastlr.nn.diagnostics.tables import (
    BLOCK_COLUMNS,
    KIND_COLUMNS,
    MATRIX_COLUMNS,
    kind_rows,
    matrix_row,
    number,
)
from fastlr.nn.html_page import bar, cards, document, table

if TYPE_CHECKING:
    from fastlr.nn.diagnostics.report import MatrixSpectrum, SpectraReport

_DECADES = 3
_WIDTH, _HEIGHT = 120, 28
_POINTS = 60


def page(report: SpectraReport) -> str:
    """The page: each type of layer, each matrix with its decay, each block's hidden states."""
    facts = [
        (f"{len(report.matrices):,}", "matrices"),
        (f"{sum(math.prod(m.shape) for m in report.matrices):,}", "numbers in them"),
        (f"{report.seconds:.1f} s", "for their spectra"),
    ]
    sections = [
        f"<h1>Spectra of {escape(report.model)}</h1>",
        "<p>Effective rank: exp of the entropy of σ²/Σσ², and its share of the full rank. Stable "
        "rank: ‖W‖<sub>F</sub>²/‖W‖₂². 90 % and 99 %: the least rank that keeps so much of "
        "‖W‖<sub>F</sub>². Alpha: the exponent of the tail of the eigenvalues σ², by Hill's "
        "estimator from the larger half; smaller is heavier. FARMS: the same from "
        f"{report.samples} submatrices of aspect ratio {report.aspect_ratio:g}, seed "
        f"{report.seed}, comparable between shapes.</p>",
        cards(facts),
        "<h2>By type of layer</h2><p>Means over the matrices of a type.</p>",
        table(KIND_COLUMNS, (_row(map(escape, row)) for row in kind_rows(report)), "numbers"),
        "<h2>Every matrix</h2><p>Decay: singular values relative to the largest, from 1 down to "
        f"10<sup>−{_DECADES}</sup> on a logarithmic axis.</p>",
        table([*MATRIX_COLUMNS, "decay"], map(_matrix, report.matrices)),
    ]
    if report.nuclear_norms:
        sections += [
            "<h2>Hidden states</h2><p>Matrix nuclear-norm of what each block gives, on "
            f"{report.tokens:,} tokens: the larger, the more directions they spread over.</p>",
            table(
                BLOCK_COLUMNS,
                (_block(name, norm) for name, norm in report.nuclear_norms.items()),
            ),
        ]
    return document(f"spectra of {report.model}", "".join(sections))


def _matrix(matrix: MatrixSpectrum) -> str:
    return _row([*map(escape, matrix_row(matrix)), _decay(matrix)])


def _block(name: str, norm: float) -> str:
    part = norm if math.isfinite(norm) else 0.0
    return _row([escape(name), bar(part, number(norm, 4))])


def _decay(matrix: MatrixSpectrum) -> str:
    """A small line from the largest singular value to the smallest, those too small at the foot."""
    values = matrix.singular_values / (matrix.norm or 1)
    count = min(_POINTS, len(values))
    chosen = [round(i * (len(values) - 1) / max(count - 1, 1)) for i in range(count)]
    levels = values[chosen].clamp(min=10.0**-_DECADES).log10() / -_DECADES
    points = " ".join(
        f"{_WIDTH * i / max(count - 1, 1):.1f},{1 + (_HEIGHT - 2) * level:.1f}"
        for i, level in enumerate(levels.tolist())
    )
    return f'<svg width="{_WIDTH}" height="{_HEIGHT}"><polyline points="{points}"/></svg>'


def _row(cells: Iterable[str]) -> str:
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
