"""One self-contained HTML page that shows a recipe's data: masks, packs, spreads, ledger, findings, losses.

Knows the records of `page_data`; refuses to know models, templates and the network. The page loads nothing: its
style and script stand in it, and its content policy allows nothing else, whatever a row holds.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from pathlib import Path
from string import Template

from chatwright.inspection.escaping import escape, script_json
from chatwright.inspection.page_anchors import Anchors
from chatwright.inspection.page_data import PageData
from chatwright.inspection.page_examples import example_facts, examples_html
from chatwright.inspection.page_parts import (
    findings_html,
    ledger_html,
    matches_html,
    packs_html,
    page_tiles,
    share_html,
    sources_html,
    tiles_html,
)

NAVIGATION = {
    "examples": "Conversations",
    "findings": "Lint",
    "matches": "Test overlap",
    "packing": "Packing",
    "sources": "Sources",
    "ledger": "Ledger",
    "recipe": "Recipe",
}


def write_page(path: str | Path, data: PageData) -> None:
    """Write the page.

    Raises:
        OSError: the file can't be written.
    """
    Path(path).write_text(build_page(data), encoding="utf-8", newline="\n")


def build_page(data: PageData) -> str:
    """The page as HTML; the same records give the same page."""
    anchors = Anchors([example.key for example in data.examples], _source_names(data))
    style, script = asset("page.css"), asset("page.js")
    absent = {name for name, part in (("findings", data.findings), ("matches", data.matches)) if part is None}
    facts = {"examples": [example_facts(example) for example in data.examples]}
    return Template(asset("page.html")).substitute(
        title=escape(data.title),
        style=style,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        subtitle=_subtitle(data),
        navigation="".join(
            f'<a href="#{name}">{words}</a>' for name, words in NAVIGATION.items() if name not in absent
        ),
        tiles=tiles_html(page_tiles(data)),
        share=share_html(data),
        views=_views(data),
        filters=_filters(data, anchors),
        choice=escape(_choice(data)),
        examples=examples_html(data, anchors),
        packing_facts=escape(_packing_facts(data)),
        packs=packs_html(data, anchors),
        sources=sources_html(data, anchors),
        ledger=ledger_html(data.ledger, anchors),
        findings=_section("findings", "Lint", findings_html(data.findings, anchors))
        if data.findings is not None
        else "",
        matches=_section("matches", "Test overlap", matches_html(data.matches, anchors))
        if data.matches is not None
        else "",
        recipe=escape(data.recipe),
        facts=script_json(facts),
    )


def _source_names(data: PageData) -> set[str]:
    """Every source that any part of the page names."""
    names = {source.name for source in data.sources} | {str(entry["source"]) for entry in data.ledger}
    places = [place for finding in data.findings or () for place in finding.places]
    places += [match.place for match in data.matches or ()]
    segments = [segment for pack in data.packs for segment in pack.segments]
    return names | {place.source for place in places} | {segment.key.source for segment in segments}


def asset(name: str) -> str:
    """The text of one of the page's files: its style, its script, its frame."""
    return (files("chatwright.inspection") / "assets" / name).read_text(encoding="utf-8")


def _section(name: str, heading: str, body: str) -> str:
    return f'<section id="{name}"><h2>{heading}</h2>{body}</section>'


def _subtitle(data: PageData) -> str:
    run = f" · losses: {escape(data.run.before)} → {escape(data.run.after)}" if data.run else ""
    return (
        f"model <b>{escape(data.model)}</b> · template <b>{escape(data.template)}</b> "
        f'<span class="id" title="{escape(data.identity)}">{escape(data.identity[:12])}</span>{run}'
    )


def _views(data: PageData) -> str:
    """The radio buttons of what the colours show."""
    names = [("mask", "mask")]
    if data.run:
        names += [("before", "loss before"), ("after", "loss after"), ("change", "change")]
    buttons = "".join(
        f'<label><input type="radio" name="view" value="{value}"{" checked" if value == "mask" else ""}>'
        f"<span>{words}</span></label>"
        for value, words in names
    )
    return f'<fieldset class="views"><legend>colours show</legend>{buttons}</fieldset>' if data.run else ""


def _filters(data: PageData, anchors: Anchors) -> str:
    if len(data.sources) < 2:
        return ""
    options = "".join(
        f'<option value="{at}">{escape(anchors.short(s.name))}</option>' for at, s in enumerate(data.sources)
    )
    return f'<label class="filter">source <select id="source"><option value="">all</option>{options}</select></label>'


def _choice(data: PageData) -> str:
    trained = sum(example.in_run for example in data.examples)
    others = len(data.examples) - trained
    besides = f", and {others:,} that the run doesn't train on" if others else ""
    return f"{trained:,} of {data.num_examples:,} training examples are shown{besides}: {data.choice}."


def _packing_facts(data: PageData) -> str:
    plan = data.plan
    return (
        f"{len(data.packs):,} of {plan.packs:,} packs are shown, the first ones of the run. "
        f"{plan.placed_tokens:,} tokens in packs of {plan.tokens_per_pack:,}; {plan.empty_tokens:,} places stay empty. "
        f"{plan.steps:,} steps, {plan.epochs:,} epoch{'' if plan.epochs == 1 else 's'}."
    )
