"""Reports of lint and of the contamination check, as plain dicts, into the page's records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chatwright.inspection.page_data import PageFinding, PageMatch, PageSide, Place

SEVERITIES = ("error", "warning")
"""In the order in which they are shown; every other severity comes behind them."""


def page_findings(report: Mapping[str, Any]) -> tuple[PageFinding, ...]:
    """The findings of `LintReport.to_dict()`, the gravest first.

    Args:
        report: `{"findings": [{rule, severity, count, fix, places: [[source, row, message], …], excerpt}, …]}`.
    """
    found = [
        PageFinding(
            each["rule"],
            each["severity"],
            each["count"],
            each["fix"],
            tuple(Place(*place) for place in each["places"]),
            each["excerpt"] or "",
        )
        for each in report["findings"]
    ]
    return tuple(sorted(found, key=lambda each: (_rank(each.severity), -each.count, each.rule)))


def _rank(severity: str) -> int:
    return SEVERITIES.index(severity) if severity in SEVERITIES else len(SEVERITIES)


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
