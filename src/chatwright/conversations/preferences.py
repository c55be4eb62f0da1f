"""The door to preference data: rows read, format found, bad rows stopped at or counted, dropped rows counted.

The formats are in `preference_formats`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from chatwright.conversations.converters import ROWS_TO_DETECT, detect_format
from chatwright.conversations.data_settings import BadRow
from chatwright.conversations.preference_formats import PREFERENCE_CONVERTERS
from chatwright.conversations.preference_types import LabelledReply, Preference, PreferencePair
from chatwright.conversations.sources import SkippedRow, Source, general_field, scan_rows, source_text
from chatwright.errors import DataError

_ONE_REPLY = "these rows have no second reply: preference data needs a chosen and a rejected reply"


@dataclass(frozen=True, slots=True)
class LoadedPreferences:
    """What a source gave.

    Args:
        pairs: better and worse replies, in the order of the rows; empty for labelled replies.
        labelled: replies with a verdict; empty for pairs.
        source: the source's name.
        format: the format, detected or given.
        num_rows: rows read = pairs + labelled + dropped + skipped.
        dropped: good rows that make no pair by the rule of their format; the reasons are few fixed phrases.
        skipped: bad rows left out.
    """

    pairs: list[PreferencePair]
    labelled: list[LabelledReply]
    source: str
    format: str
    num_rows: int
    dropped: tuple[SkippedRow, ...] = ()
    skipped: tuple[SkippedRow, ...] = ()

    @property
    def skip_counts(self) -> dict[str, int]:
        """Skipped rows by field, list positions as `*`."""
        return dict(Counter(general_field(row.field) for row in self.skipped))


def load_preferences(source: Source, *, format: str = "auto", on_bad_row: BadRow = "error") -> LoadedPreferences:
    """Read and convert all rows of a source of pairs or of labelled replies.

    Args:
        source: see `read_rows`.
        format: a name of `PREFERENCE_CONVERTERS`, or `auto`.
        on_bad_row: `error` or `skip` (counted in `skipped`), for rows that can't be read. Rows that a format's rule
            drops are counted in `dropped` either way.

    Raises:
        DataError: for a bad row (unless skipped), rows of no known format, or when nothing is left.
    """
    name = source_text(source)
    rows = list(scan_rows(source))
    if not rows:
        raise DataError("there are no rows", source=name, hint="give a source that has rows")
    for raw in rows:
        if raw.error and on_bad_row == "error":
            raise raw.error
    if format == "auto":
        format = detect_preference_format([raw.value for raw in rows if not raw.error], name)
    convert = _converter(format, name)
    pairs: list[PreferencePair] = []
    labelled: list[LabelledReply] = []
    dropped: list[SkippedRow] = []
    skipped: list[SkippedRow] = []
    for raw in rows:
        try:
            if raw.error:
                raise raw.error
            found = convert(raw.value, raw.source, raw.number)
        except DataError as error:
            if on_bad_row == "error" or error.row is None:
                raise
            skipped.append(SkippedRow(raw.number, error.field, error.message, raw.source))
            continue
        if isinstance(found, PreferencePair):
            pairs.append(found)
        elif isinstance(found, LabelledReply):
            labelled.append(found)
        else:
            dropped.append(SkippedRow(raw.number, None, found.reason, raw.source))
    if not pairs and not labelled:
        first = (*dropped, *skipped)[0]
        message = f"none of {len(rows):,} rows makes a pair; the first (row {first.row}): {first.reason}"
        raise DataError(message, source=name, hint="set the right format, or repair the rows")
    return LoadedPreferences(pairs, labelled, name, format, len(rows), tuple(dropped), tuple(skipped))


def _converter(format: str, source: str) -> Callable[[Any, str, int], Preference]:
    if format not in PREFERENCE_CONVERTERS:
        hint = f"valid formats: auto, {', '.join(PREFERENCE_CONVERTERS)}"
        raise DataError(f"unknown preference format {format!r}", source=source, hint=hint)
    return PREFERENCE_CONVERTERS[format]


def detect_preference_format(rows: Sequence[Any], source: str) -> str:
    """The format of rows: the one whose converter accepts most of the first 64, dropped rows included.

    Raises:
        DataError: if no converter accepts any; then it says why each refused the first.
    """
    sample = rows[:ROWS_TO_DETECT]
    refusals = {name: [_refusal(name, row, source) for row in sample] for name in PREFERENCE_CONVERTERS}
    votes = {name: found.count(None) for name, found in refusals.items()}
    best = max(votes, key=lambda name: votes[name])
    if not votes[best]:
        why = "".join(f"\n  - {name}: {found[0].full_text()}" for name, found in refusals.items() if found and found[0])
        hint = f"name the format yourself ({', '.join(PREFERENCE_CONVERTERS)}), or rename the fields to what it expects"
        message = f"no known preference format fits these rows{why}"
        if any(map(_is_conversation, sample)):
            message = f"{_ONE_REPLY}; {message}"
            either = "add another reply to each row, or train on these with stage: sft, without preference"
            hint = f"{either}; with two replies, {hint}"
        raise DataError(message, source=source, hint=hint)
    return best


def _is_conversation(row: Any) -> bool:
    """Whether a row can be read as a conversation."""
    try:
        detect_format([row], "")
    except DataError:
        return False
    return True


def _refusal(name: str, row: Any, source: str) -> DataError | None:
    try:
        PREFERENCE_CONVERTERS[name](row, source, 0)
    except DataError as error:
        return error
    return None
