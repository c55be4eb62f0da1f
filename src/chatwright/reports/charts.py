"""Curves as SVG, for a page or a file: axes with round figures, units, a legend, and dashes beside colours."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import groupby

from chatwright.inspection.escaping import escape
from chatwright.inspection.page_charts import compact
from chatwright.reports.document import Chart, Series

WIDTH, HEIGHT = 520, 240
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 30, 34
MOST_POINTS = 300
"""A longer curve is drawn as means of equal stretches of steps, within the band of their lowest and highest values."""
MOST_DOTS = 60
SVG = "http://www.w3.org/2000/svg"

Stretch = tuple[float, float, float, float]
"""Step, mean, lowest, highest."""


def curve_svg(chart: Chart) -> str:
    """One chart; a series without points is left out."""
    shown = [series for series in chart.series if series.points]
    steps = [step for series in shown for step, _ in series.points]
    values = [value for series in shown for _, value in series.points]
    low, high = min(values + [0.0] * chart.from_zero), max(values)
    ticks = round_ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    first, last = float(min(steps)), float(max(max(steps), min(steps) + 1))

    def x(step: float) -> float:
        return LEFT + (step - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - low) / ((high - low) or 1.0) * (HEIGHT - TOP - BOTTOM)

    grid = "".join(
        f'<line class="grid" x1="{LEFT}" y1="{y(tick):.1f}" x2="{WIDTH - RIGHT}" y2="{y(tick):.1f}"/>'
        f'<text class="tick" x="{LEFT - 5}" y="{y(tick) + 3.5:.1f}" text-anchor="end">{_words(tick)}</text>'
        for tick in ticks
    )
    marks = [tick for tick in round_ticks(first, last) if first <= tick <= last and tick == int(tick)]
    base = HEIGHT - BOTTOM
    below = "".join(
        f'<text class="tick" x="{x(tick):.1f}" y="{base + 14}" text-anchor="middle">{tick:,.0f}</text>'
        for tick in marks
    )
    curves = "".join(_curve(series, number, x, y, chart.along) for number, series in enumerate(shown))
    ends = "; ".join(f"{s.name} from {s.points[0][1]:.4g} to {s.points[-1][1]:.4g}" for s in shown)
    words, along = escape(f"{chart.title}: {ends}"), escape(chart.along)
    return (
        f'<svg class="curve" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{words}">'
        f"{grid}{below}{_legend(shown)}{curves}"
        f'<line class="axis" x1="{LEFT}" y1="{base}" x2="{WIDTH - RIGHT}" y2="{base}"/>'
        f'<text class="unit" x="{(WIDTH + LEFT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">{along}</text>'
        "</svg>"
    )


COLOURS = ("#2456a6", "#c2601c", "#0b6b53", "#7a5195")
STANDALONE_STYLE = (
    "svg{font:11px system-ui,sans-serif}.ground{fill:#fff}.tick,.unit,.title{fill:#5d626c}.title{font-weight:600}"
    ".grid{stroke:#e3e0d8}.axis{stroke:#5d626c}.band{stroke:none;opacity:.22}"
    ".line{fill:none;stroke-width:1.8;stroke-linejoin:round}.line.s1,.line.s3{stroke-dasharray:6 3}"
    + "".join(f".line.s{n}{{stroke:{c}}}.band.s{n},.dot.s{n}{{fill:{c}}}" for n, c in enumerate(COLOURS))
)
"""About the page's colours (`inspection/assets/page.css`), on white: a picture in a document has no theme."""


def standalone_svg(chart: Chart) -> str:
    """One chart as an SVG file, with its style and its title in it."""
    head = f"{chart.title} ({chart.unit})" if chart.unit else chart.title
    box = f'viewBox="0 -20 {WIDTH} {HEIGHT + 20}"'
    ground = f'<rect class="ground" y="-20" width="{WIDTH}" height="{HEIGHT + 20}"/>'
    title = f'<text class="title" x="{LEFT}" y="-6">{escape(head)}</text>'
    opening, body = curve_svg(chart).split(">", 1)
    opening = opening.replace(f'<svg class="curve" viewBox="0 0 {WIDTH} {HEIGHT}"', f'<svg xmlns="{SVG}" {box}', 1)
    return f"{opening}><style>{STANDALONE_STYLE}</style>{ground}{title}{body}"


def _curve(series: Series, number: int, x: Callable[[float], float], y: Callable[[float], float], along: str) -> str:
    stretches = thinned(series.points)
    line = " ".join(f"{x(step):.1f},{y(mean):.1f}" for step, mean, _, _ in stretches)
    made = f'<polyline class="line s{number}" points="{line}"/>'
    if len(stretches) < len(series.points):
        upper = [f"{x(step):.1f},{y(most):.1f}" for step, _, _, most in stretches]
        lower = [f"{x(step):.1f},{y(least):.1f}" for step, _, least, _ in reversed(stretches)]
        made = f'<polygon class="band s{number}" points="{" ".join(upper + lower)}"/>{made}'
    if (series.dots and len(stretches) <= MOST_DOTS) or len(stretches) == 1:
        made += "".join(
            f'<circle class="dot s{number}" cx="{x(step):.1f}" cy="{y(mean):.1f}" r="3">'
            f"<title>{escape(series.name)}, {escape(along)} {step:,.0f}: {mean:.4g}</title></circle>"
            for step, mean, _, _ in stretches
        )
    return made


def _words(value: float) -> str:
    return compact(value) if abs(value) >= 1000 else f"{value:.3g}"


def _legend(shown: Sequence[Series]) -> str:
    if len(shown) < 2:
        return ""
    room = (WIDTH - LEFT - RIGHT) / len(shown)
    return "".join(
        f'<line class="line s{number}" x1="{LEFT + number * room:.0f}" y1="12" '
        f'x2="{LEFT + number * room + 22:.0f}" y2="12"/>'
        f'<text class="tick" x="{LEFT + number * room + 27:.0f}" y="15.5">{escape(series.name)}</text>'
        for number, series in enumerate(shown)
    )


def thinned(points: Sequence[tuple[float, float]]) -> list[Stretch]:
    """At most `MOST_POINTS` stretches of steps, each with its mean, lowest and highest value."""
    each = max(1, math.ceil(len(points) / MOST_POINTS))
    groups = (list(group) for _, group in groupby(enumerate(points), key=lambda item: item[0] // each))
    made = []
    for group in groups:
        steps, values = [step for _, (step, _) in group], [value for _, (_, value) in group]
        made.append((sum(steps) / len(steps), sum(values) / len(values), min(values), max(values)))
    return made


def round_ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round figures from just below `low` to just above `high`, about so many."""
    span = (high - low) or abs(high) or 1.0
    size = 10 ** math.floor(math.log10(span / about))
    step = next(factor * size for factor in (1, 2, 5, 10) if span / (factor * size) <= about + 1)
    return [number * step for number in range(math.floor(low / step), math.ceil(high / step) + 1)]
