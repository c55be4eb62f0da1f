"""Formats whose conversations aren't rows one to one: rows are grouped or cut into new rows before they are converted.

A new one is a function from all rows of a source to new rows and one entry here. Such a source can't be read by row
ranges, since any two of its rows may belong together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from chatwright.conversations.files import RawRow
from chatwright.conversations.oasst import group_messages, split_threads

REGROUPINGS: dict[str, Callable[[Iterable[RawRow]], Iterator[RawRow]]] = {
    "oasst_flat": group_messages,
    "oasst_threads": split_threads,
}


def regroup(format: str, rows: Iterable[RawRow]) -> Iterable[RawRow]:
    """The rows as `format` converts them: those of `REGROUPINGS` grouped, all others as they are."""
    return REGROUPINGS[format](rows) if format in REGROUPINGS else rows
