"""Charts as files of their own: valid XML that loads nothing, with title, unit and what the curve runs over."""

from __future__ import annotations

from xml.etree import ElementTree

from chatwright.reports.charts import SVG, curve_svg, standalone_svg
from chatwright.reports.document import Chart, Series

SCORE = Series("solved <b>", ((0.0, 0.0), (5.5, 40.0), (12.25, 98.0)), dots=True)
CHART = Chart("Letters & words", "% solved", (SCORE, Series("bar", ((0.0, 98.0), (12.25, 98.0)))), along="seconds")


def test_a_picture_stands_alone() -> None:
    root = ElementTree.fromstring(standalone_svg(CHART))
    assert root.tag == f"{{{SVG}}}svg"
    texts = [each.text for each in root.iter(f"{{{SVG}}}text")]
    assert "Letters & words (% solved)" in texts and "seconds" in texts and "solved <b>" in texts
    (style,) = root.iter(f"{{{SVG}}}style")
    assert style.text and ".s1{" in style.text and "var(" not in style.text, "a file has no page to take colours from"
    assert not [name for each in root.iter() for name in each.attrib if "href" in name or name == "src"]


def test_points_between_whole_numbers_stand_where_they_belong() -> None:
    root = ElementTree.fromstring(standalone_svg(CHART))
    dots = [float(dot.attrib["cx"]) for dot in root.iter(f"{{{SVG}}}circle")]
    first, middle, last = dots[:3]
    assert abs((middle - first) / (last - first) - 5.5 / 12.25) < 0.01


def test_a_chart_on_a_page_runs_over_steps_unless_told_otherwise() -> None:
    over_steps = Chart("Loss", "nats", (Series("loss", ((1, 2.0), (2, 1.0))),))
    assert ">step</text>" in curve_svg(over_steps) and ">seconds</text>" not in curve_svg(over_steps)
    assert ">seconds</text>" in curve_svg(CHART) and ">step</text>" not in curve_svg(CHART)
