"""Reports of lint and of the contamination check, as plain dicts, into the page's records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from chatwright.inspection.page_data import PageFinding, PageMatch, PageSide, Place

SEVERITIES = ("error", "warning", "info")
"""In the order in which they are shown."""


def page_findings(reports: Iterable[Mapping[str, Any]]) -> tuple[PageFinding, ...]:
    """The findings of several `LintReport.to_dict()`, one of each source: one finding a rule, the gravest first.

    Args:
        reports: `{"findings": [{rule, severity, says, count, fix, places: [{source, row, what}, …], excerpt}, …]}`.
    """
    by_rule: dict[str, list[Mapping[str, Any]]] = {}
    for report in reports:
        for each in report["findings"]:
            by_rule.setdefault(each["rule"], []).append(each)
    found = [_joined(rule, each) for rule, each in by_rule.items()]
    return tuple(sorted(found, key=lambda each: (SEVERITIES.index(each.severity), -each.count, each.rule)))


def _joined(rule: str, found: Sequence[Mapping[str, Any]]) -> PageFinding:
    """One rule's findings in all sources; its places are the sources' in turn, so that each is seen."""
    places = [[Place(place["source"], place["row"], place["what"]) for place in each["places"]] for each in found]
    in_turn = [place for turn in zip_longest(*places) for place in turn if place is not None]
    first = found[0]
    count = sum(each["count"] for each in found)
    return PageFinding(
        rule, first["severity"], first["says"], count, first["fix"], tuple(in_turn), first["excerpt"] or ""
    )


def page_matches(report: Mapping[str, Any]) -> tuple[PageMatch, ...]:
    """The hits of `ContaminationReport.to_dict()`, the fullest first.

    Args:
        report: `{"hits": [{source, row, task, split, eval_row, field, kind, share, train, evaluation}, …]}`, each side
            `{text, spans, cut_before, cut_after}`.
    """
    hits = sorted(report["hits"], key=lambda hit: -hit["share"])
    return tuple(
        PageMatch(
            Place(hit["source"], hit["row"]),
            _side(hit["train"]),
            f"{hit['task']} ({hit['split']}) row {hit['eval_row']}, {hit['field']}",
            _side(hit["evaluation"]),
            f"{hit['share']:.0%} of the test's {hit['field']}" + (", nearly word for word" * (hit["kind"] != "ngram")),
        )
        for hit in hits
    )


def _side(side: Mapping[str, Any]) -> PageSide:
    spans = tuple((int(start), int(end)) for start, end in side["spans"])
    return PageSide(side["text"], spans, side["cut_before"], side["cut_after"])
