"""From any source to one file of a named format, row by row, each row read back and compared before it counts.

Memory holds a batch of rows, however long the sources are (JSON, CSV and YAML files are read whole).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Literal

from chatwright.conversations.converters import CONVERTERS, ROWS_TO_DETECT, convert, detect_format
from chatwright.conversations.data_settings import BadRow
from chatwright.conversations.differences import differences
from chatwright.conversations.files import RawRow
from chatwright.conversations.row_files import RowFile, check_free, kind_of_file, new_file
from chatwright.conversations.schema import Conversation
from chatwright.conversations.sources import general_field, scan_rows
from chatwright.conversations.writers import WRITERS, Row
from chatwright.errors import DataError, UserError

Fate = Literal["skipped", "refused", "changed"]
_MOST_REASONS = 20
_LONGEST_REASON = 120


@dataclass(slots=True)
class Conversion:
    """What became of the rows: read = written + skipped + refused.

    Args:
        read: rows read. written: rows in the new file; changed: those of them that lost something.
        skipped: bad rows, left out on request. refused: rows that the target can't hold, left out.
        reasons: (`skipped`, `refused` or `changed`, why) → rows; a row may count under several.
        first: the place where each reason was met first.
        formats: source → its format.
    """

    read: int = 0
    written: int = 0
    changed: int = 0
    skipped: int = 0
    refused: int = 0
    reasons: Counter[tuple[Fate, str]] = field(default_factory=Counter)
    first: dict[tuple[Fate, str], str] = field(default_factory=dict)
    formats: dict[str, str] = field(default_factory=dict)

    def count(self, fate: Fate, reasons: Sequence[str], place: str) -> None:
        """Count one row, under each of its reasons."""
        setattr(self, fate, getattr(self, fate) + 1)
        for reason in reasons:
            self.reasons[fate, reason] += 1
            self.first.setdefault((fate, reason), place)

    def lines(self, *fates: Fate) -> list[str]:
        """The commonest reasons: how many rows, and where the first stands."""
        found = [(key, count) for key, count in self.reasons.most_common() if key[0] in fates]
        lines = [f"{reason}: {count:,} rows, first {self.first[fate, reason]}" for (fate, reason), count in found]
        more = len(lines) - _MOST_REASONS
        return lines if more <= 0 else [*lines[:_MOST_REASONS], f"and {more:,} more reasons"]


def convert_files(
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    to: str,
    file_format: str | None = None,
    format: str = "auto",
    on_bad_row: BadRow = "error",
    lossy: bool = False,
    force: bool = False,
    watch: Callable[[Conversion], None] = lambda _: None,
) -> Conversion:
    """Write the conversations of all sources to one new file; complete, or not at all.

    Args:
        sources: files, folders, globs or hub names, as in a recipe's `data`.
        out: the file to write; its ending tells `jsonl` or `parquet`, as `file_format` may.
        to: a name of `WRITERS`. format: the rows' format, or `auto` for each source's own.
        on_bad_row: `skip` leaves out and counts rows that can't be read, or that the target can't hold.
        lossy: keep what can be kept of rows that the target can't hold, and count what was lost.
        force: replace a file of this name.
        watch: called after each row, for progress.

    Raises:
        DataError: a bad row, or no rows. UserError: the target can't hold some rows (counted by reason over all of
            them), or the file can't be written.
    """
    if to not in WRITERS:
        raise UserError(f"there is no target {to!r}", place="--to", hint=f"valid: {', '.join(WRITERS)}")
    out, result = Path(out), Conversion()
    kind = kind_of_file(out, file_format)
    check_free(out, force)
    with new_file(out, kind, to, force=force) as file:
        for source in sources:
            for conversation in _conversations(str(source), format, on_bad_row, result):
                _write(conversation, to, file, lossy, result)
                watch(result)
        if result.refused and on_bad_row == "error":
            raise _cannot_hold(result, to, lossy)
        if not result.written:
            reasons = "".join(f"\n  - {line}" for line in result.lines("skipped", "refused"))
            raise DataError(f"all {result.read:,} rows were left out{reasons}", source=", ".join(map(str, sources)))
    return result


def _write(conversation: Conversation, to: str, file: RowFile, lossy: bool, result: Conversion) -> None:
    place = f"{conversation.source}, row {conversation.row}"
    row = file.shape(WRITERS[to](conversation))
    try:
        lost = losses(conversation, row, to)
    except DataError as error:
        reason = f"{general_field(error.field)} can't be written: {error.message}"
        short = reason if len(reason) <= _LONGEST_REASON else f"{reason[: _LONGEST_REASON - 1]}…"
        result.count("refused", [short], place)
        return
    if lost:
        result.count("changed" if lossy else "refused", lost, place)
    if not lost or lossy:
        file.add(row)
        result.written += 1


def losses(conversation: Conversation, row: Row, to: str) -> tuple[str, ...]:
    """What a written row lacks of its conversation, by reading it back.

    Raises:
        DataError: the row isn't one of that format, whatever is left out.
    """
    return differences(conversation, CONVERTERS[to](row, conversation.source, conversation.row))


def _cannot_hold(result: Conversion, to: str, lossy: bool) -> UserError:
    hint = "--on-bad-row skip leaves them out"
    if not lossy:
        hint = f"--lossy keeps what {to} can hold of these rows; {hint}"
    reasons = "".join(f"\n  - {line}" for line in result.lines("refused"))
    message = f"{result.refused:,} of {result.read:,} rows hold what {to} can't; nothing was written{reasons}"
    return UserError(message, hint=hint)


def _conversations(source: str, format: str, on_bad_row: BadRow, result: Conversion) -> Iterator[Conversation]:
    """The conversations of a source as they are read; its format is found from the first rows."""
    rows = scan_rows(source)
    head = list(islice(rows, ROWS_TO_DETECT))
    if not head:
        raise DataError("there are no rows", source=source, hint="give a source that has rows")
    if format == "auto":
        readable = [raw.value for raw in head if not raw.error]
        if readable or on_bad_row == "skip":
            format = detect_format(readable, source)
    result.formats[source] = format
    for raw in chain(head, rows):
        result.read += 1
        try:
            yield _converted(raw, format)
        except DataError as error:
            if on_bad_row == "error" or error.row is None:
                raise
            result.count("skipped", [f"bad {general_field(error.field)}"], f"{raw.source}, row {raw.number}")


def _converted(raw: RawRow, format: str) -> Conversation:
    if raw.error:
        raise raw.error
    return convert(raw.value, format, raw.source, raw.number)
