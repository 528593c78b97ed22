"""The tables of a spectra report, as text: printed as they are, and on its page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastlr.nn.diagnostics.report import MatrixSpectrum, SpectraReport

_NUMBERS = ["effective", "of full", "stable", "90 %", "99 %", "alpha", "FARMS"]
KIND_COLUMNS = ["layers", "count", "shape", *_NUMBERS]
MATRIX_COLUMNS = ["layer", "shape", *_NUMBERS]
BLOCK_COLUMNS = ["block", "nuclear-norm"]


def kind_rows(report: SpectraReport) -> list[list[str]]:
    """A row of means for each type of layer."""
    return [
        [kind, str(len(group)), _shapes(group), *_numbers(group)]
        for kind, group in report.by_kind().items()
    ]


def matrix_row(matrix: MatrixSpectrum) -> list[str]:
    """The row of one matrix."""
    return [matrix.name, _shape(matrix), *_numbers([matrix])]


def block_rows(report: SpectraReport) -> list[list[str]]:
    """A row for each block."""
    return [[name, number(norm, 4)] for name, norm in report.nuclear_norms.items()]


def hidden_states_line(report: SpectraReport) -> str:
    """The range of the blocks' nuclear-norms."""
    norms = list(report.nuclear_norms.values())
    low, high = number(min(norms), 3), number(max(norms), 3)
    return (
        f"hidden states of {len(norms)} blocks on {report.tokens:,} tokens: "
        f"nuclear-norm {low} to {high}"
    )


def number(value: float, decimals: int) -> str:
    """A number for people; a dash where there is none."""
    if math.isnan(value):
        return "–"
    return f"{value:.{decimals}f}" if math.isfinite(value) else "∞"


def _numbers(group: Sequence[MatrixSpectrum]) -> list[str]:
    return [
        number(_mean(group, lambda m: m.effective_rank), 1),
        number(_mean(group, lambda m: m.effective_rank / min(m.shape)), 2),
        number(_mean(group, lambda m: m.stable_rank), 1),
        number(_mean(group, lambda m: m.rank_90), 0),
        number(_mean(group, lambda m: m.rank_99), 0),
        number(_mean(group, lambda m: m.alpha), 2),
        number(_mean(group, lambda m: m.alpha_farms), 2),
    ]


def _mean(group: Sequence[MatrixSpectrum], value: Callable[[MatrixSpectrum], float]) -> float:
    """Of those that have a value."""
    known = [found for found in map(value, group) if not math.isnan(found)]
    return fmean(known) if known else math.nan


def _shapes(group: Sequence[MatrixSpectrum]) -> str:
    shapes = list(dict.fromkeys(map(_shape, group)))
    return shapes[0] if len(shapes) == 1 else f"{len(shapes)} shapes"


def _shape(matrix: MatrixSpectrum) -> str:
    return "×".join(map(str, matrix.shape))
