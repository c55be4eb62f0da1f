"""The terminal: one console for results, one for everything else, tables, progress, a user's errors.

Results go to standard output, progress and errors to standard error, so that output can be piped.
rich is loaded when something is shown, not on import.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from chatwright.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID
    from rich.table import Table

SECONDS_BETWEEN_LINES = 10.0
"""How often progress writes a plain line where there is no terminal."""


@cache
def out() -> Console:
    """The console of standard output: results."""
    from rich.console import Console

    return Console(highlight=False)


@cache
def err() -> Console:
    """The console of standard error: progress, notes, warnings, errors."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def note(message: str) -> None:
    """Tell the user something that is no result."""
    err().print(message, markup=False, soft_wrap=True)


def warn(message: str) -> None:
    """Warn the user, in yellow where there are colours."""
    err().print(f"warning: {message}", style="yellow", markup=False, soft_wrap=True)


def print_error(error: UserError) -> None:
    """Show a user's mistake: place and message in red, then the next step. No traceback, no wrapping of paths."""
    from rich.text import Text

    head = f"{error.place}: {error.message}" if error.place else error.message
    text = Text.assemble(("error: ", "bold red"), (head, "red"))
    if error.hint:
        text.append(f"\n  → {error.hint}")
    err().print(text, soft_wrap=True)


def table(title: str | None, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """A table to print; columns of numbers are set right, with thousands separated.

    Args:
        title: shown above, or None.
        columns: the headings.
        rows: a cell a column: text, number or None (an empty cell); text is shown as it is, without markup.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    body = [list(row) for row in rows]
    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for place, heading in enumerate(columns):
        cells = [row[place] for row in body if row[place] is not None]
        numeric = bool(cells) and all(_is_number(cell) for cell in cells)
        made.add_column(Text(heading), justify="right" if numeric else "left", overflow="fold")
    for row in body:
        made.add_row(*(Text(_cell(cell)) for cell in row))
    return made


def _is_number(cell: Any) -> bool:
    if isinstance(cell, str):
        return cell.replace(",", "").removesuffix("%").strip().lstrip("-+").replace(".", "", 1).isdigit()
    return True


def _cell(cell: Any) -> str:
    if cell is None:
        return ""
    if isinstance(cell, int) and not isinstance(cell, bool):
        return f"{cell:,}"
    return f"{cell:,.4g}" if isinstance(cell, float) else str(cell)


def duration(seconds: float) -> str:
    """Seconds in words: `42 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class ProgressLine:
    """A bar with rate and remaining time on a terminal; plain lines now and then elsewhere.

    Use `progress(…)` where a `with` block fits; this class where start and end lie in different places.

    Args:
        description: what is being done, such as `training`.
        unit: what is counted, in the plural.
        clock: seconds that only grow; tests give their own.
    """

    def __init__(self, description: str, unit: str = "steps", clock: Callable[[], float] = time.monotonic) -> None:
        self.description, self.unit, self.clock = description, unit, clock
        self.done, self.note = 0, ""
        self.total: int | None = None
        self._first = 0
        self._began = self._last_line = clock()
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def start(self, *, done: int = 0, total: int | None = None) -> None:
        """Begin at `done` (a resumed run's own position) of `total` (None: unknown)."""
        self.done = self._first = done
        self.total, self.note = total, ""
        self._began = self._last_line = self.clock()
        if err().is_terminal:
            self._bar = _make_bar()
            self._task = self._bar.add_task(self.description, total=total, completed=done, tail="")
            self._bar.start()

    def update(self, done: int, note: str | None = None) -> None:
        """Set the position, and what stands behind it (such as the loss)."""
        self.done = done
        self.note = self.note if note is None else note
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, tail=self._tail())
        elif self.clock() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._print_line()

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """Move on by `count`."""
        self.update(self.done + count, note)

    def stop(self) -> None:
        """End the bar, or write the last line. Stopping twice is fine."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        elif self.done != self._first and self._last_line != float("inf"):
            self._print_line()
        self._last_line = float("inf")

    def _print_line(self) -> None:
        self._last_line = self.clock()
        count = f"{self.done:,}" if self.total is None else f"{self.done:,}/{self.total:,}"
        err().print(f"{self.description}: {count} {self.unit} · {self._tail()}", markup=False, soft_wrap=True)

    def _tail(self) -> str:
        """Rate, time and note, for instance `12.5 steps/s · 40 s left · loss 2.1`."""
        seconds = self.clock() - self._began
        moved = self.done - self._first
        rate = moved / seconds if seconds > 0 else 0.0
        parts = [f"{rate:,.{1 if rate < 100 else 0}f} {self.unit}/s" if rate >= 0.1 or not moved else ""]
        if rate and not parts[0]:
            parts = [f"{1 / rate:,.1f} s each"]
        if self.total is not None and rate and self.done < self.total:
            parts.append(f"{duration((self.total - self.done) / rate)} left")
        else:
            parts.append(f"after {duration(seconds)}")
        return " · ".join([*parts, self.note] if self.note else parts)


def _make_bar() -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.table import Column

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24 if err().width >= 110 else 6),
        MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=9)),
        TextColumn("{task.fields[tail]}", markup=False, table_column=Column(no_wrap=True)),
        console=err(),
    )


@contextmanager
def progress(total: int | None, description: str, unit: str = "rows") -> Iterator[ProgressLine]:
    """Show progress for a block: `with progress(len(rows), "rendering") as bar: … bar.advance()`.

    Args:
        total: how many there are, or None when unknown.
        description: what is being done.
        unit: what is counted, in the plural.
    """
    line = ProgressLine(description, unit)
    line.start(total=total)
    try:
        yield line
    finally:
        line.stop()
