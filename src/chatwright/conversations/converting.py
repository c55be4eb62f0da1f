"""From any source to one file of a named format, row by row, each row read back and compared before it counts.

Memory holds a batch of rows, however long the sources are (JSON, CSV and YAML files are read whole).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from chatwright.conversations.converters import CONVERTERS, ROWS_TO_DETECT, are_preferences, detect_format
from chatwright.conversations.data_settings import BadRow
from chatwright.conversations.differences import differences
from chatwright.conversations.preference_types import Dropped, LabelledReply, PreferencePair
from chatwright.conversations.preference_writer import preference_differences, read_preference, write_preference
from chatwright.conversations.preferences import PREFERENCE_CONVERTERS, detect_preference_format
from chatwright.conversations.regrouping import regroup
from chatwright.conversations.row_files import RowFile, check_free, kind_of_file, new_file
from chatwright.conversations.schema import Conversation
from chatwright.conversations.sources import general_field, scan_rows
from chatwright.conversations.writers import WRITERS, Row
from chatwright.errors import DataError, UserError

Item = Conversation | PreferencePair | LabelledReply
Fate = Literal["skipped", "dropped", "refused", "changed"]
_OPTIONS = {
    "set on_bad_row: skip": "give --on-bad-row skip",
    "name the format yourself": "name the format by --from",
    "name the format: oasst_flat": "name the format: --from oasst_flat",
    "; format: text trains on the text as it is": "",
}
"""What errors advise for a recipe, and what does the same here."""
_MOST_REASONS = 20
_LONGEST_REASON = 120


class Target(NamedTuple):
    """What is written, and how: rows are read by `converters`, written by `write`, read back by `read` and compared."""

    converters: Mapping[str, Callable[[Any, str, int], Any]]
    detect: Callable[[Sequence[Any], str], str]
    write: Callable[[Any], Row]
    read: Callable[[Any, str, int], Any]
    compare: Callable[[Any, Any], tuple[str, ...]]

    def lost(self, item: Item, row: Row) -> tuple[str, ...]:
        """What a written row lacks of its item."""
        return self.compare(item, self.read(row, "the written row", 0))


TARGETS: dict[str, Target] = {
    **{
        name: Target(CONVERTERS, detect_format, write, CONVERTERS[name], differences) for name, write in WRITERS.items()
    },
    "preference": Target(
        PREFERENCE_CONVERTERS, detect_preference_format, write_preference, read_preference, preference_differences
    ),
}


def _target(to: str) -> Target:
    if to not in TARGETS:
        raise UserError(_unknown("target", to, TARGETS), place="--to")
    return TARGETS[to]


def _unknown(what: str, given: str, known: Iterable[str]) -> str:
    return f"there is no {what} {given!r}; valid: {', '.join(known)}"


@dataclass(slots=True)
class Conversion:
    """What became of the rows: read = written + skipped + dropped + refused.

    Args:
        read: rows read. written: rows in the new file; changed: those of them that lost something.
        skipped: bad rows, left out on request. dropped: preference rows that make no pair.
        refused: rows that the target can't hold, left out.
        reasons: (one of the last four, why) → rows; a row may count under several.
        first: the place where each reason was met first.
        formats: source → its format.
    """

    read: int = 0
    written: int = 0
    changed: int = 0
    skipped: int = 0
    dropped: int = 0
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
    on_bad_row: str = "error",
    lossy: bool = False,
    force: bool = False,
    watch: Callable[[Conversion], None] = lambda _: None,
) -> Conversion:
    """Write the conversations of all sources to one new file; complete, or not at all.

    Args:
        sources: files, folders, globs or hub names, as in a recipe's `data`.
        out: the file to write; its ending tells `jsonl` or `parquet`, as `file_format` may.
        to: a name of `TARGETS`. format: the rows' format, or `auto` for each source's own.
        on_bad_row: `skip` leaves out and counts rows that can't be read, or that the target can't hold.
        lossy: keep what can be kept of rows that the target can't hold, and count what was lost.
        force: replace a file of this name.
        watch: called after each row, for progress.

    Raises:
        DataError: a bad row, or no rows. UserError: the target can't hold some rows (counted by reason over all of
            them), or the file can't be written.
    """
    target = _target(to)
    if format not in ("auto", *target.converters):
        raise UserError(_unknown("format", format, target.converters), place="--from")
    if on_bad_row not in get_args(BadRow):
        raise UserError(_unknown("on_bad_row", on_bad_row, get_args(BadRow)), place="--on-bad-row")
    out, result = Path(out), Conversion()
    kind = kind_of_file(out, file_format)
    check_free(out, force)
    with new_file(out, kind, to, force=force) as file:
        for source in sources:
            for item in _items(str(source), format, on_bad_row, target, result):
                _write(item, target, file, lossy, result)
                watch(result)
        if result.refused and on_bad_row == "error":
            raise _cannot_hold(result, to, lossy)
        if not result.written:
            reasons = "".join(f"\n  - {line}" for line in result.lines("skipped", "dropped", "refused"))
            raise DataError(f"all {result.read:,} rows were left out{reasons}", source=", ".join(map(str, sources)))
    return result


def _write(item: Item, target: Target, file: RowFile, lossy: bool, result: Conversion) -> None:
    place = _place(item)
    row = file.shape(target.write(item))
    try:
        lost = target.lost(item, row)
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


def _place(item: Item) -> str:
    where = item.conversation if isinstance(item, LabelledReply) else item
    return f"{where.source}, row {where.row}"


def losses(item: Item, row: Row, to: str) -> tuple[str, ...]:
    """What a written row lacks of what it was written from, by reading it back.

    Raises:
        DataError: the row isn't one of that format, whatever is left out.
    """
    return _target(to).lost(item, row)


def _cannot_hold(result: Conversion, to: str, lossy: bool) -> UserError:
    hint = "--on-bad-row skip leaves them out"
    if not lossy:
        hint = f"--lossy keeps what {to} can hold of these rows; {hint}"
    reasons = "".join(f"\n  - {line}" for line in result.lines("refused"))
    message = f"{result.refused:,} of {result.read:,} rows hold what {to} can't; nothing was written{reasons}"
    return UserError(message, hint=hint)


def _detected(rows: Sequence[Any], source: str, target: Target) -> str:
    """The format of rows.

    Raises:
        DataError: with what to do about it by this command's own options.
    """
    try:
        return target.detect(rows, source)
    except DataError as error:
        hint = None
        if target.converters is CONVERTERS and are_preferences(rows):
            hint = (
                "--to preference keeps all sides and verdicts; --from names a format that takes them as conversations"
            )
        raise _in_own_options(error, hint) from None


def _in_own_options(error: DataError, hint: str | None = None) -> DataError:
    """The error with options of `chatwright convert` in place of a recipe's settings."""
    told = hint or error.hint
    for setting, option in _OPTIONS.items() if told else ():
        told = told.replace(setting, option) if told else None
    return DataError(error.message, source=error.source, row=error.row, field=error.field, hint=told)


def _items(source: str, format: str, on_bad_row: str, target: Target, result: Conversion) -> Iterator[Item]:
    """What the rows of a source hold, as they are read; its format is found from the first rows."""
    rows = iter(regroup(format, scan_rows(source)))
    head = list(islice(rows, ROWS_TO_DETECT))
    if not head:
        raise DataError("there are no rows", source=source, hint="give a source that has rows")
    if format == "auto":
        readable = [raw.value for raw in head if not raw.error]
        if readable or on_bad_row == "skip":
            format = _detected(readable, source, target)
    result.formats[source] = format
    for raw in chain(head, rows):
        result.read += 1
        place = f"{raw.source}, row {raw.number}"
        try:
            if raw.error:
                raise raw.error
            found = target.converters[format](raw.value, raw.source, raw.number)
        except DataError as error:
            if on_bad_row == "error" or error.row is None:
                raise _in_own_options(error) from None
            result.count("skipped", [f"bad {general_field(error.field)}"], place)
            continue
        if isinstance(found, Dropped):
            result.count("dropped", [found.reason], place)
        else:
            yield found
