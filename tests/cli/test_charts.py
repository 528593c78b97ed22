"""The report's drawings."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from fastlr.cli.charts import Dot, Line, Panel, dot_chart, line_panel, linear_ticks


@pytest.mark.parametrize("values", [(8.0, 9.0, 8.5), (8.0, 4000.0, 12.0), (5.0, 5.0, 5.0)])
def test_a_dot_chart_places_values_in_order(values):
    svg = ElementTree.fromstring(
        dot_chart([Dot(f"<{i}>", value, "blue") for i, value in enumerate(values)], values[0])
    )
    places = [float(circle.get("cx")) for circle in svg.iter("circle")]
    order = sorted(range(3), key=lambda i: values[i])
    assert [places[i] for i in order] == sorted(places)
    assert all(0 < place < 720 for place in places)


def test_a_panel_keeps_its_points_inside():
    points = [(i, 10.0**-i) for i in range(6)]
    panel = Panel("t & u", [Line("a", "blue", points)], (0, 5), (1e-5, 1.0), "x", log_y=True)
    svg = line_panel(panel)
    ElementTree.fromstring(svg)
    ((pairs,),) = [re.findall(r'points="([^"]*)"', svg)]
    for pair in pairs.split():
        x, y = map(float, pair.split(","))
        assert 0 <= x <= panel.width
        assert 0 <= y <= panel.height


def test_one_point_and_equal_values_draw():
    panel = Panel("one", [Line("a", "blue", [(3, 0.0)])], (3, 3), (0.0, 0.0), "x")
    ElementTree.fromstring(line_panel(panel))


def test_ticks_are_round():
    assert linear_ticks(0, 29, 4) == [0, 10, 20]
    assert linear_ticks(0, 0.31, 4) == [0, 0.1, 0.2, 0.3]
    assert linear_ticks(2, 2, 4) == [2]
