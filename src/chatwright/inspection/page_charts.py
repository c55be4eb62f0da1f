"""Charts of the page as inline SVG: axes, units and words for every bar; patterns beside colours."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from chatwright.inspection.escaping import escape
from chatwright.inspection.page_data import Histogram, ShownPack

WIDTH, HEIGHT = 340, 178
LEFT, RIGHT, TOP, BOTTOM = 40, 18, 24, 34


def histogram_svg(histogram: Histogram, name: str, axis: str, label: Callable[[float], str]) -> str:
    """A histogram with both axes, their units, and the median marked by a dashed line.

    Args:
        name: what is counted, for those who can't see it. axis: the unit under the axis. label: an edge in words.
    """
    edges, counts = histogram.edges, histogram.counts
    most = max(max(counts, default=0), 1)
    span = edges[-1] - edges[0] or 1
    plot_width, plot_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x(value: float) -> float:
        return LEFT + (value - edges[0]) / span * plot_width

    bars = []
    for left, right, count in zip(edges, edges[1:], counts, strict=False):
        height = plot_height * count / most
        if count:
            height = max(height, 1.5)  # one row among thousands is still to be seen
        words = f"{label(left)} to {label(right)} {axis}: {count:,}"
        bars.append(
            f'<rect class="bar" x="{x(left) + 0.5:.1f}" y="{TOP + plot_height - height:.1f}" '
            f'width="{max(x(right) - x(left) - 1, 0.5):.1f}" height="{height:.1f}">'
            f"<title>{escape(words)}</title></rect>"
        )
    middle = x(min(max(histogram.median, edges[0]), edges[-1]))
    anchor = "end" if middle > WIDTH * 0.7 else "start"
    shift = -4 if anchor == "end" else 4
    base = TOP + plot_height
    described = f"{name}: {sum(counts):,} examples, median {label(histogram.median)} {axis}"
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(described)}">'
        f"{_count_axis(most, base)}{''.join(bars)}"
        f'<line class="axis" x1="{LEFT}" y1="{base}" x2="{WIDTH - RIGHT}" y2="{base}"/>'
        f'<line class="median" x1="{middle:.1f}" y1="{TOP - 14}" x2="{middle:.1f}" y2="{base}"/>'
        f'<text class="tick" x="{middle + shift:.1f}" y="{TOP - 7}" text-anchor="{anchor}">'
        f"median {escape(label(histogram.median))}</text>"
        f"{_value_axis(edges, x, label, base)}"
        f'<text class="unit" x="{LEFT + plot_width / 2}" y="{HEIGHT - 4}" text-anchor="middle">{escape(axis)}</text>'
        "</svg>"
    )


def _count_axis(most: int, base: int) -> str:
    """Three gridlines with their counts."""
    lines = []
    for count in dict.fromkeys((0, most // 2, most)):
        y = base - (base - TOP) * count / most
        lines.append(
            f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}"/>'
            f'<text class="tick" x="{LEFT - 5}" y="{y + 3.5:.1f}" text-anchor="end">{compact(count)}</text>'
        )
    return "".join(lines)


def _value_axis(edges: Sequence[float], x: Callable[[float], float], label: Callable[[float], str], base: int) -> str:
    """At most five edges, named."""
    step = max(1, -(-(len(edges) - 1) // 4))
    return "".join(
        f'<text class="tick" x="{x(edge):.1f}" y="{base + 13}" text-anchor="middle">{escape(label(edge))}</text>'
        for edge in edges[::step]
    )


def compact(count: float) -> str:
    """A count in few signs: 950, 12k, 3.4M."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            short = count / size
            return f"{short:.1f}".rstrip("0").rstrip(".") + unit if short < 10 else f"{short:.0f}{unit}"
    return f"{count:g}"


def strip_svg(runs: Sequence[tuple[int, int]], length: int, words: str) -> str:
    """A thin bar of a whole example: trained stretches dark on light, from its first token to its last."""
    marks = "".join(f'<rect class="on" x="{a}" y="0" width="{b - a}" height="8"/>' for a, b in runs)
    return (
        f'<svg class="strip" viewBox="0 0 {max(length, 1)} 8" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(words)}"><rect class="off" x="0" y="0" width="{length}" height="8"/>{marks}</svg>'
    )


def pack_svg(pack: ShownPack, link: Callable[[int], str | None]) -> str:
    """One packing row: segments side by side, position to the model as a rising line, trained stretches underneath.

    Args:
        link: the `href` of a segment (by its number), or None where its example isn't shown.
    """
    parts = []
    longest = max((segment.length for segment in pack.segments), default=1) or 1
    for number, segment in enumerate(pack.segments):
        end = segment.start + segment.length
        name = f"{segment.key.source} row {segment.key.row}" + (f" part {segment.key.part}" if segment.key.part else "")
        words = (
            f"{name}: tokens {segment.start:,} to {end - 1:,} of the pack, positions 0 to {segment.length - 1:,}, "
            f"{segment.supervised:,} trained"
        )
        trained = "".join(
            f'<rect class="on" x="{segment.start + a}" y="32" width="{b - a}" height="8"/>'
            for a, b in segment.trained_runs
        )
        shape = (
            f"<title>{escape(words)}</title>"
            f'<rect class="seg{number % 2}" x="{segment.start}" y="0" width="{segment.length}" height="30"/>{trained}'
            f'<line class="pos" x1="{segment.start}" y1="29" '
            f'x2="{end}" y2="{29 - 27 * segment.length / longest:.1f}"/>'
            f'<line class="edge" x1="{segment.start}" y1="0" x2="{segment.start}" y2="40"/>'
        )
        target = link(number)
        parts.append(f'<a href="{escape(target)}">{shape}</a>' if target else f"<g>{shape}</g>")
    described = f"pack {pack.number}: {len(pack.segments)} segments, {pack.tokens:,} of {pack.capacity:,} tokens"
    empty = f'<rect class="empty" x="{pack.tokens}" y="0" width="{max(pack.capacity - pack.tokens, 0)}" height="40"/>'
    return (
        f'<svg class="pack" viewBox="0 0 {max(pack.capacity, pack.tokens, 1)} 40" preserveAspectRatio="none" '
        f'role="group" aria-label="{escape(described)}">{empty}{"".join(parts)}</svg>'
    )
