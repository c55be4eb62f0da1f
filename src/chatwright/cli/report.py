"""`chatwright report`: what a run folder tells, on the terminal, as JSON or as a page; two runs side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from chatwright.console import out, table
from chatwright.errors import UserError
from chatwright.inspection.escaping import visible
from chatwright.recipes.run_settings import RunSettings
from chatwright.reports.document import Document
from chatwright.reports.figures import differing_settings, final_figures
from chatwright.reports.page import write_page
from chatwright.reports.run_document import comparison, run_report
from chatwright.reports.run_record import RunRecord, read_run

NOT_SHOWN = ("curves", "recipe")
"""Sections for which a terminal is no place."""


def run_report_command(runs: list[str], html: str | None, as_json: bool) -> None:
    """Report one run, or compare two."""
    if len(runs) > 2:
        raise UserError(f"{len(runs)} runs were given", place="report", hint="give one run folder, or two to compare")
    if as_json and html is not None:
        raise UserError("--json and --html exclude each other", place="report", hint="give one of them")
    if html is not None:
        Path(html).touch()  # a place that can't be written is found before the work
    records = [read_run(run, RunSettings) for run in runs]
    if as_json:
        print(json.dumps(_plain(records), ensure_ascii=False))
        return
    document = run_report(records[0]) if len(records) == 1 else comparison(*records)
    if html is None:
        _print(document)
        return
    write_page(html, document)
    out().print(f"{html}: {Path(html).stat().st_size / 1e3:.0f} kB; open it in a browser", markup=False, soft_wrap=True)


def _plain(records: list[RunRecord]) -> dict[str, Any]:
    found: dict[str, Any] = {"runs": [_plain_run(record) for record in records]}
    if len(records) == 2:
        found["differing_settings"] = differing_settings(records[0].recipe, records[1].recipe)
    return found


def _plain_run(run: RunRecord) -> dict[str, Any]:
    return {
        "run": run.path,
        "finished": run.finished,
        "figures": final_figures(run),
        "evaluations": [each.model_dump() for each in run.evaluations],
        "sources": [source.model_dump() for source in run.plan.sources] if run.plan else None,
        "ledger": run.ledger.to_dict() if run.ledger else None,
        "balances": all(each.holds for each in run.sums) if run.ledger else None,
        "checkpoints": [{"name": each.name, "bytes": each.bytes, "damage": each.damage} for each in run.checkpoints],
        "missing": run.missing,
    }


def _print(document: Document) -> None:
    """Tables and sentences; of the ledger what was left out, the whole being on the page and in report.md."""
    console = out()
    console.print(visible(document.title), style="bold", markup=False, soft_wrap=True)
    console.print(visible(document.subtitle), markup=False, soft_wrap=True)
    for section in document.sections:
        if section.name in NOT_SHOWN:
            continue
        for each in section.tables[:1] if section.ledger is not None else section.tables:
            if each.rows:
                rows = [[visible(cell) for cell in row] for row in each.rows]
                console.print(table(section.title.lower(), each.heads, rows))
        for line in ("" if section.name == "result" else section.lead, *section.notes, *section.code.splitlines()):
            if line:
                console.print(visible(line), markup=False, soft_wrap=True)
