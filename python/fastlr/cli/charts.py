"""Charts as inline SVG, coloured by the page's own CSS variables.

Drawing them here instead of with a plotting library keeps the report one small file that
follows the reader's light or dark setting and shows exact values on hover.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

_FONT = 12


@dataclass(frozen=True)
class Line:
    """One series: its points, its CSS class and its name for the tooltips."""

    name: str
    style: str
    points: Sequence[tuple[float, float]]
    dots: bool = True


@dataclass(frozen=True)
class Marker:
    """A vertical line at `x` with a label at its foot."""

    x: float
    label: str
    style: str


@dataclass(frozen=True)
class Panel:
    """A small line chart; several of them share a scale by sharing their limits."""

    title: str
    lines: Sequence[Line]
    x_limits: tuple[float, float]
    y_limits: tuple[float, float]
    x_label: str
    log_y: bool = False
    y_format: Callable[[float], str] = field(default=lambda value: f"{value:g}")
    markers: Sequence[Marker] = ()
    width: int = 320
    height: int = 200


@dataclass(frozen=True)
class Dot:
    """One row of a dot chart."""

    label: str
    value: float
    style: str


def dot_chart(rows: Sequence[Dot], reference: float, width: int = 720) -> str:
    """Draw one row a value on a logarithmic axis, each joined to a reference value.

    On this axis the length of a joining line is the ratio to the reference.

    Parameters
    ----------
    rows : sequence of Dot
        Finite positive values.
    reference : float
        Where the joining lines start.
    width : int
        Width of the drawing; it scales with the page.

    Returns
    -------
    str
        An ``<svg>`` element.
    """
    left, right, top, step = 190, 110, 14, 34
    bottom = top + step * len(rows)
    values = [row.value for row in rows] + [reference]
    low, high = min(values) / 1.15, max(values) * 1.15

    def across(value: float) -> float:
        share = (math.log(value) - math.log(low)) / (math.log(high) - math.log(low))
        return left + share * (width - left - right)

    parts = [
        _line(across(tick), top, across(tick), bottom, "grid")
        + _text(across(tick), bottom + 18, _number(tick), "tick", "middle")
        for tick in _log_ticks(low, high)
    ]
    parts.append(_line(across(reference), top, across(reference), bottom, "reference"))
    for index, row in enumerate(rows):
        y = top + step * (index + 0.5)
        x = across(row.value)
        parts.append(_text(left - 12, y + 4, row.label, "label", "end"))
        if x != across(reference):
            parts.append(_line(across(reference), y, x, y, f"stem {row.style}"))
        parts.append(_circle(x, y, 6, row.style, f"{row.label}: {row.value:,}"))
        parts.append(_text(x + 12, y + 4, significant(row.value), "value", "start"))
    caption = "Perplexity of each model, on a logarithmic axis"
    return _svg(width, bottom + 28, caption, parts)


def line_panel(panel: Panel) -> str:
    """Draw one panel.

    Returns
    -------
    str
        An ``<svg>`` element.
    """
    left, right, top, bottom = 46, 10, 30, panel.height - 34
    x_low, x_high = panel.x_limits
    y_low, y_high = (math.log10(v) for v in panel.y_limits) if panel.log_y else panel.y_limits

    def across(value: float) -> float:
        return left + (value - x_low) / ((x_high - x_low) or 1) * (panel.width - left - right)

    def up(value: float) -> float:
        level = math.log10(value) if panel.log_y else value
        return bottom - (level - y_low) / ((y_high - y_low) or 1) * (bottom - top)

    ticks = _decades(*panel.y_limits) if panel.log_y else linear_ticks(*panel.y_limits, 4)
    parts = [_text(left, 16, panel.title, "title", "start")]
    for tick in ticks:
        parts.append(_line(left, up(tick), panel.width - right, up(tick), "grid"))
        parts.append(_text(left - 6, up(tick) + 4, panel.y_format(tick), "tick", "end"))
    for tick in linear_ticks(x_low, x_high, 4):
        parts.append(_text(across(tick), bottom + 15, f"{tick:g}", "tick", "middle"))
    middle = (left + panel.width - right) / 2
    parts.append(_text(middle, bottom + 30, panel.x_label, "tick", "middle"))
    for line in panel.lines:
        parts.append(_path([(across(x), up(y)) for x, y in line.points], line.style))
        if line.dots:
            parts += [
                _circle(across(x), up(y), 2.6, line.style, f"{line.name}, {x:g}: {y:.4g}")
                for x, y in line.points
            ]
    for index, marker in enumerate(panel.markers):
        x = across(marker.x)
        parts.append(_line(x, top, x, bottom, f"marker {marker.style}"))
        # One above the other, and on the side with more room, so that labels never collide.
        side, anchor = (4, "start") if x < middle else (-4, "end")
        style = f"tick halo {marker.style}"
        parts.append(_text(x + side, bottom - 8 - 14 * index, marker.label, style, anchor))
    return _svg(panel.width, panel.height, panel.title, parts)


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """Return an HTML legend from (name, CSS class) pairs."""
    items = "".join(
        f'<span class="key"><i class="swatch {style}"></i>{escape(name)}</span>'
        for name, style in entries
    )
    return f'<p class="legend">{items}</p>'


def significant(value: float) -> str:
    """Write a perplexity: two decimals while they mean something, whole numbers beyond."""
    return f"{value:,.2f}" if value < 1000 else f"{value:,.0f}"


def linear_ticks(low: float, high: float, count: int) -> list[float]:
    """Return round numbers between two limits, about `count` of them."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors: Sequence[float] = (1, 2, 5)
    if high / low < 3:
        factors = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
    elif high / low > 500:
        factors = (1,)
    ticks = [factor * 10.0**decade for decade in decades for factor in factors]
    return [tick for tick in ticks if low <= tick <= high]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:g}"


def _decades(low: float, high: float) -> list[float]:
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    step = max(1, math.ceil((last - first) / 5))
    return [10.0**power for power in range(first, last + 1, step)]


def _svg(width: float, height: float, caption: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" font-size="{_FONT}" '
        f'aria-label="{escape(caption, quote=True)}">{"".join(parts)}</svg>'
    )


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, style: str, anchor: str) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="{style}" {place}>{escape(text)}</text>'


def _circle(x: float, y: float, radius: float, style: str, tooltip: str) -> str:
    return (
        f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}">'
        f"<title>{escape(tooltip)}</title></circle>"
    )


def _path(points: Sequence[tuple[float, float]], style: str) -> str:
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline class="{style}" points="{joined}"/>'
