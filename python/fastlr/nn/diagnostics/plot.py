"""Singular values drawn by matplotlib, one chart for each type of layer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from fastlr.nn.figures import new_figure

if TYPE_CHECKING:
    from fastlr.nn.diagnostics.report import SpectraReport

_COLUMNS = 4
_FLOOR = 1e-3


def draw(report: SpectraReport) -> Any:
    """A figure with a chart for each type of layer, its lines coloured by depth."""
    groups = report.by_kind()
    columns = min(_COLUMNS, len(groups))
    rows = math.ceil(len(groups) / columns)
    # One column of charts needs room for its titles.
    figure = new_figure(max(4.5, 3.2 * columns + 0.8), 2.7 * rows + 0.6)
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
    depths = [matrix.depth for matrix in report.matrices if matrix.depth is not None]
    scale: Any = ScalarMappable(
        Normalize(min(depths, default=0), max(depths, default=0) or 1), cmap="viridis"
    )
    for axis, (kind, group) in zip(axes.flat, groups.items(), strict=False):
        for matrix in group:
            values = matrix.singular_values / (matrix.norm or 1)
            ranks = [(index + 1) / len(values) for index in range(len(values))]
            colour = "black" if matrix.depth is None else scale.to_rgba(matrix.depth)
            axis.plot(ranks, values.clamp(min=_FLOOR / 10), color=colour, linewidth=0.9)
        axis.set_title(kind, fontsize=9)
        axis.set_yscale("log")
        axis.set_xlim(0, 1)
        # So few that those of neighbours do not touch.
        axis.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        axis.tick_params(labelsize=8)
        axis.set_ylim(_FLOOR, 1.2)
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(groups) :]:
        axis.set_visible(False)
    figure.suptitle(f"Spectra of {report.model}", fontsize=11)
    figure.supxlabel("index of the singular value / number of them", fontsize=9)
    figure.supylabel("singular value / largest", fontsize=9)
    if len(set(depths)) > 1:
        figure.colorbar(scale, ax=axes, label="block").ax.tick_params(labelsize=8)
    return figure
