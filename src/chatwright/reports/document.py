"""A report before it is terminal text, Markdown or a page: sections of tables, charts, notes and lines to type."""

from __future__ import annotations

from dataclasses import dataclass

from chatwright.inspection.ledger import Ledger

Row = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """Cells as plain text."""

    heads: Row
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Series:
    """Points of one name, each a place along the chart and a value; `dots` for few that were measured apart."""

    name: str
    points: tuple[tuple[float, float], ...]
    dots: bool = False


@dataclass(frozen=True, slots=True)
class Chart:
    """Curves on common axes; `from_zero` where the value's size is to be seen, not its change alone.

    Args:
        unit: of the values. along: what the curves run over.
    """

    title: str
    unit: str
    series: tuple[Series, ...]
    from_zero: bool = True
    along: str = "step"


@dataclass(frozen=True, slots=True)
class Section:
    """One part of a report. `code`: to be shown as it is; `ledger` with `finished`: pages show it in their own way."""

    name: str
    title: str
    lead: str = ""
    tables: tuple[Table, ...] = ()
    charts: tuple[Chart, ...] = ()
    notes: tuple[str, ...] = ()
    code: str = ""
    ledger: Ledger | None = None
    finished: bool = False


@dataclass(frozen=True, slots=True)
class Document:
    """A whole report; `tiles`: (figure, words) of what tells most.

    Args:
        about: what reports of its kind are about. made_with: the command that makes them, and from what.
    """

    title: str
    subtitle: str
    tiles: tuple[tuple[str, str], ...]
    sections: tuple[Section, ...]
    about: str = "what was trained, and how it went"
    made_with: tuple[str, str] = ("chatwright report --html", "from the run's own files")
