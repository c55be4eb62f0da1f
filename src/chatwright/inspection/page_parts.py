"""The other sections of the page, each HTML from plain records: summary, packs, sources, ledger, findings, matches."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from chatwright.inspection.escaping import escape, shortened
from chatwright.inspection.ledger import Ledger, Stage
from chatwright.inspection.page_anchors import Anchors
from chatwright.inspection.page_charts import compact, histogram_svg, pack_svg
from chatwright.inspection.page_data import PageData, PageFinding, PageMatch, PageSide, Place, ShownPack, SourceFigures

MOST_PLACES = 6
MOST_EXCERPT = 900
MOST_MATCHES = 30
SEVERITY_SIGNS = {"error": "✖", "warning": "▲", "info": "●"}


def page_tiles(data: PageData) -> list[tuple[str, str]]:
    """The figures that tell most, each with its words."""
    tokens = sum(source.tokens for source in data.sources)
    trained = sum(source.supervised for source in data.sources)
    read = sum(entry["rows"] for entry in data.ledger if entry["stage"] == Stage.READ)
    capacity = data.plan.packs * data.plan.tokens_per_pack
    figures = [
        (f"{read:,}", "rows read"),
        (f"{data.num_examples:,}", "training examples"),
        (compact(tokens), "tokens" if tokens >= 1000 else "tokens in all"),
        (f"{trained / tokens:.0%}" if tokens else "–", "of tokens trained"),
        (f"{data.plan.steps:,}", f"steps of {_one_or_many(data.plan.packs, 'pack')} in all"),
        (f"{data.plan.empty_tokens / capacity:.1%}" if capacity else "–", "of the packs empty"),
    ]
    if data.run:
        figures.append((f"{data.run.mean_before:.2f} → {data.run.mean_after:.2f}", "loss of the shown tokens, nats"))
    if data.findings is not None:
        figures.append((f"{len(data.findings):,}", "lint findings"))
    return figures


def tiles_html(figures: Iterable[tuple[str, str]]) -> str:
    """Figures, large, with their words."""
    return "".join(
        f"<div{' class=broad' if len(value) > 8 else ''}><dt>{escape(words)}</dt><dd>{escape(value)}</dd></div>"
        for value, words in figures
    )


def share_html(data: PageData) -> str:
    """One bar: what part of all tokens is trained."""
    tokens = sum(source.tokens for source in data.sources)
    trained = sum(source.supervised for source in data.sources)
    words = f"{trained:,} of {tokens:,} tokens are trained; {tokens - trained:,} are given to the model"
    return (
        f'<svg class="strip share" viewBox="0 0 {max(tokens, 1)} 8" preserveAspectRatio="none" role="img" '
        f'aria-label="{words}"><rect class="off" x="0" y="0" width="{tokens}" height="8"/>'
        f'<rect class="on" x="0" y="0" width="{trained}" height="8"/></svg><p class="facts">{words}</p>'
        + (f'<p class="facts">{escape(data.contamination)}</p>' if data.contamination else "")
    )


def _one_or_many(count: int, word: str) -> str:
    return f"{count:,} {word}" + ("" if count == 1 else "s")


def packs_html(data: PageData, anchors: Anchors) -> str:
    """The shown packs as rows, each with its segments as a table for those who want figures."""
    return "\n".join(_pack(pack, anchors) for pack in data.packs)


def _pack(pack: ShownPack, anchors: Anchors) -> str:
    links = [anchors.href(*segment.key) for segment in pack.segments]
    full = pack.tokens / pack.capacity if pack.capacity else 0.0
    rows = []
    for number, segment in enumerate(pack.segments):
        end = segment.start + segment.length
        rows.append(
            f"<tr><td>{number}</td><td>{anchors.link(*segment.key)}</td><td>{segment.start:,} – {end - 1:,}</td>"
            f"<td>0 – {segment.length - 1:,}</td><td>{segment.length:,}</td><td>{segment.supervised:,}</td></tr>"
        )
    heads = ("segment", "example", "tokens of the pack", "positions", "length", "trained")
    return (
        f'<div class="packrow"><p class="facts">pack {pack.number:,} · step {pack.step:,} · epoch {pack.epoch} · '
        f"{_one_or_many(len(pack.segments), 'example')} · {pack.tokens:,} of {pack.capacity:,} tokens ({full:.1%})</p>"
        f"{pack_svg(pack, lambda number: links[number])}<details><summary>segments and positions</summary>"
        f"{table_html(heads, rows)}</details></div>"
    )


def table_html(heads: Iterable[str], rows: Iterable[str], numeric: Container[int] = ()) -> str:
    """A table that scrolls by itself where it is too wide; `rows` are HTML; `numeric` columns' heads get that class."""
    head = "".join(
        f'<th scope="col"{" class=number" if place in numeric else ""}>{escape(word)}</th>'
        for place, word in enumerate(heads)
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def sources_html(data: PageData, anchors: Anchors) -> str:
    """Each source with its figures and two histograms, on the same axes for all."""
    return "\n".join(_source(source, anchors) for source in data.sources)


def _source(source: SourceFigures, anchors: Anchors) -> str:
    share = f"{source.supervised / source.tokens:.0%}" if source.tokens else "–"
    facts = " · ".join(
        (
            f"format {escape(source.format)}",
            f"{source.rows:,} rows read",
            f"{source.examples:,} training examples",
            f"{source.tokens:,} tokens",
            f"{source.supervised:,} trained ({share})",
        )
    )
    charts = ""
    if source.examples:
        charts = (
            f"<figure>{histogram_svg(source.lengths, 'length', 'tokens', compact)}"
            "<figcaption>length of the examples</figcaption></figure>"
            f"<figure>{histogram_svg(source.shares, 'supervised share', 'of tokens trained', _percent)}"
            "<figcaption>supervised share of the examples</figcaption></figure>"
        )
    return (
        f'<article class="source"><h3>{anchors.named(source.name)}</h3><p class="facts">{facts}</p>'
        f'<div class="charts">{charts}</div></article>'
    )


def _percent(value: float) -> str:
    return f"{value:.0%}"


def ledger_html(ledger: Sequence[Mapping[str, Any]], anchors: Anchors, *, finished: bool = False) -> str:
    """How many rows and tokens of each source came to each stage, what was left out with its reason, and the sums.

    Args:
        finished: of a run that is over, so that all that was packed must have been trained.
    """
    stages = [stage for stage in Stage if any(e["stage"] == stage and e["rows"] for e in ledger)]
    groups = [(name, list(entries)) for name, entries in groupby(ledger, key=lambda e: str(e["source"]))]
    rows = [_ledger_row(anchors.named(name), entries, stages) for name, entries in groups]
    if len(groups) > 1:
        rows.append(_ledger_row("all", list(ledger), stages, "total"))
    table = table_html(("source", *(str(stage).replace("_", " ") for stage in stages)), rows)
    sums = [
        f"<li>{anchors.named(each.source)}: {each.unit}: {each.words().replace('_', ' ')} {'✓' if each.holds else '✗'}"
        "</li>"
        for each in Ledger.from_dict({"entries": ledger}).sums(finished=finished)
    ]
    return (
        f'<div class="pivot">{table}</div>{_reasons(ledger, anchors)}'
        f'<details><summary>the sums, source by source</summary><ul class="sums">{"".join(sums)}</ul></details>'
    )


def _ledger_row(name: str, entries: list[Mapping[str, Any]], stages: list[Stage], kind: str = "") -> str:
    """One source (`name` is HTML): rows of each stage, and under them tokens where they are known."""
    cells = []
    for stage in stages:
        mine = [entry for entry in entries if entry["stage"] == stage]
        rows, tokens = (sum(int(entry[unit]) for entry in mine) for unit in ("rows", "tokens"))
        small = f"<small>{tokens:,} tokens</small>" if tokens else ""
        cells.append(f"<td>{rows:,}{small}</td>" if mine else "<td>–</td>")
    return f'<tr class="{kind}"><th scope="row">{name}</th>{"".join(cells)}</tr>'


def _reasons(ledger: Sequence[Mapping[str, Any]], anchors: Anchors) -> str:
    """Every count that has a reason, the largest first."""
    lost = sorted((e for e in ledger if e["reason"] and (e["rows"] or e["tokens"])), key=lambda e: -e["rows"])
    if not lost:
        return '<p class="good">✓ nothing was left out</p>'
    most = max(max(entry["rows"] for entry in lost), 1)
    rows = []
    for entry in lost:
        width = round(100 * entry["rows"] / most, 1)
        bar = (
            '<svg class="meter" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
            f'<rect x="0" y="0" width="{width}" height="8"/></svg>'
        )
        tokens = f"{entry['tokens']:,}" if entry["tokens"] else ""
        rows.append(
            f"<tr><td>{escape(str(entry['stage']).replace('_', ' '))}</td><td>{escape(entry['reason'])}</td>"
            f"<td>{entry['rows']:,}</td><td>{bar}</td><td>{tokens}</td><td>{anchors.named(entry['source'])}</td></tr>"
        )
    heads = ("stage", "reason", "rows", "", "tokens", "source")
    return f'<h3>What was left out, and why</h3><div class="reasons">{table_html(heads, rows)}</div>'


def findings_html(findings: Iterable[PageFinding], anchors: Anchors) -> str:
    """Each finding: what, how many rows, what to do, where."""
    cards = [_finding(finding, anchors) for finding in findings]
    return "\n".join(cards) or '<p class="good">✓ lint found nothing to look at</p>'


def _finding(finding: PageFinding, anchors: Anchors) -> str:
    sign = SEVERITY_SIGNS.get(finding.severity, "●")
    excerpt, left = shortened(finding.excerpt, MOST_EXCERPT)
    shown = ""
    if excerpt:
        more = f" … {left:,} more characters" if left else ""
        shown = f'<blockquote dir="auto">{escape(excerpt)}{more}</blockquote>'
    return (
        f'<article class="finding {escape(finding.severity)}"><h3><span class="severity">{sign} '
        f"{escape(finding.severity)}</span> {escape(finding.says)}</h3>"
        f'<p class="facts">{_one_or_many(finding.count, "row")} · rule {escape(finding.rule)}</p>'
        f"{shown}<p>→ {escape(finding.fix)}</p>{_places(finding.places, finding.count, anchors)}</article>"
    )


def _places(places: tuple[Place, ...], count: int, anchors: Anchors) -> str:
    items = []
    for place in places[:MOST_PLACES]:
        words = f": {escape(shortened(place.message, MOST_EXCERPT)[0])}" if place.message else ""
        items.append(f"<li>{anchors.link(place.source, place.row)}{words}</li>")
    left = max(count - len(items), 0) if items else 0
    return f"<ul>{''.join(items)}</ul>" + (f'<p class="more">… and {left:,} more</p>' if left else "") if items else ""


def matches_html(matches: tuple[PageMatch, ...], anchors: Anchors) -> str:
    """Training rows beside the test rows whose words they hold; the words of both are marked."""
    if not matches:
        return '<p class="good">✓ no row holds text of the tests it was compared with</p>'
    cards = []
    for match in matches[:MOST_MATCHES]:
        place = match.place
        cards.append(
            f'<article class="match"><p class="facts">{escape(match.overlap)}</p><div class="pair"><div><h3>training: '
            f"{anchors.link(place.source, place.row)}</h3>"
            f"{_side(match.train)}</div><div><h3>test: {escape(match.reference)}</h3>{_side(match.evaluation)}</div>"
            "</div></article>"
        )
    more = len(matches) - len(cards)
    return "\n".join(cards) + (f'<p class="more">… and {more:,} more</p>' if more else "")


def _side(side: PageSide) -> str:
    """An excerpt with what both sides have in `<mark>`."""
    made, at = [], 0
    for start, end in side.spans:
        if start < MOST_EXCERPT and at <= start < end:
            end = min(end, MOST_EXCERPT)
            made.append(f"{escape(side.text[at:start])}<mark>{escape(side.text[start:end])}</mark>")
            at = end
    rest, left = shortened(side.text[at:], max(MOST_EXCERPT - at, 0))
    before, after = "… " if side.cut_before else "", " …" if side.cut_after or left else ""
    return f'<blockquote dir="auto">{before}{"".join(made)}{escape(rest)}{after}</blockquote>'
