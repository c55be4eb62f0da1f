"""A report as Markdown, and the one that a run leaves in its folder."""

from __future__ import annotations

import re

from chatwright.inspection.escaping import visible
from chatwright.reports.document import Document, Section, Table
from chatwright.reports.run_document import run_report
from chatwright.reports.run_record import read_run
from chatwright.run_folder import RunFolder, write_whole
from chatwright.settings import Settings

REPORT_NAME = "report.md"


def write_run_report(run: RunFolder, recipe_type: type[Settings]) -> None:
    """Write report.md into the run folder.

    Raises:
        UserError: a file of the run can't be read. OSError: the report can't be written.
    """
    record = read_run(run.path, recipe_type)
    write_whole(run.path / REPORT_NAME, markdown(run_report(record)))


def markdown(document: Document) -> str:
    """The report as GitHub Markdown; curves are left to the page."""
    parts = [f"# {_escaped(document.title)}", _escaped(document.subtitle)]
    for section in document.sections:
        if section.name != "curves":
            parts += _section(section)
    return "\n\n".join(parts) + "\n"


def _section(section: Section) -> list[str]:
    parts = [f"## {_escaped(section.title)}", _escaped(section.lead)]
    parts.append("\n".join(f"- {_escaped(note)}" for note in section.notes))
    parts += [_table(table) for table in section.tables if table.rows]
    if section.code:
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", section.code)), default=0))
        parts.append(f"{fence}\n{visible(section.code).rstrip()}\n{fence}")
    return [part for part in parts if part]


def _table(table: Table) -> str:
    lines = [table.heads, tuple("---" for _ in table.heads), *table.rows]
    return "\n".join("| " + " | ".join(map(_escaped, line)) + " |" for line in lines)


def _escaped(text: str) -> str:
    """Text of strangers on one line, with nothing in it that Markdown or its HTML could act on."""
    return re.sub(r"([\\`*\[\]<>|#&~]|(?<!\w)_|_(?!\w))", r"\\\1", visible(text).replace("\n", " ").replace("\t", " "))
