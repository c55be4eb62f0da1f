"""A report as one self-contained page: no script, nothing loaded, the style of the inspection's page."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from string import Template

from chatwright.inspection.escaping import escape
from chatwright.inspection.page import asset
from chatwright.inspection.page_anchors import Anchors
from chatwright.inspection.page_parts import ledger_html, table_html, tiles_html
from chatwright.reports.charts import curve_svg
from chatwright.reports.document import Document, Section, Table

FIGURE = re.compile(r"(–|[\d.,]+( ?(%|×|MB|s|min|h|\d\d))*)?")
"""A cell that is read from its right end: a number, with its unit, or nothing."""


def write_page(path: str | Path, document: Document) -> None:
    """Write the page.

    Raises:
        OSError: the file can't be written.
    """
    Path(path).write_text(page(document), encoding="utf-8", newline="\n")


def page(document: Document) -> str:
    """The report as HTML; the same report gives the same page."""
    frame = (files("chatwright.reports") / "assets" / "report.html").read_text(encoding="utf-8")
    return Template(frame).substitute(
        title=escape(document.title),
        style=asset("page.css"),
        subtitle=escape(document.subtitle),
        about=escape(document.about),
        command=escape(document.made_with[0]),
        material=escape(document.made_with[1]),
        tiles=f'<dl class="tiles">{tiles_html(document.tiles)}</dl>' if document.tiles else "",
        navigation="".join(f'<a href="#{each.name}">{escape(each.title)}</a>' for each in document.sections),
        sections="\n".join(_section(each) for each in document.sections),
    )


def _section(section: Section) -> str:
    lead = f'<p class="lead">{escape(section.lead)}</p>' if section.lead else ""
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in section.notes)
    if section.ledger is not None:
        entries = section.ledger.to_dict()["entries"]
        body = ledger_html(entries, Anchors([], {entry["source"] for entry in entries}), finished=section.finished)
    else:
        body = "".join(_table(table) for table in section.tables if table.rows)
    charts = "".join(
        f"<figure><figcaption>{escape(chart.title)}{escape(f' ({chart.unit})' if chart.unit else '')}</figcaption>"
        f"{curve_svg(chart)}</figure>"
        for chart in section.charts
    )
    charts = f'<div class="curves">{charts}</div>' if charts else ""
    code = f"<pre>{escape(section.code)}</pre>" if section.code else ""
    return f'<section id="{section.name}"><h2>{escape(section.title)}</h2>{lead}{notes}{body}{charts}{code}</section>'


def _table(table: Table) -> str:
    """A table whose columns of figures are set right."""
    columns = list(zip(*table.rows, strict=True))
    numeric = {at for at, cells in enumerate(columns) if all(FIGURE.fullmatch(cell) for cell in cells)}
    rows = (
        "".join(f"<td{' class=number' if at in numeric else ''}>{escape(cell)}</td>" for at, cell in enumerate(row))
        for row in table.rows
    )
    return f'<div class="card">{table_html(table.heads, (f"<tr>{row}</tr>" for row in rows), numeric)}</div>'
