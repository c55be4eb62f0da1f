"""Rows to conversations: the registry of formats, detection, and `convert`.

A new format is one function `(row, source, row_index) -> Conversation`, one entry here and one test. Detection needs
nothing more: the format whose converter accepts most of the first rows is the format.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

from chatwright.conversations.message_formats import convert_messages, convert_minimind, convert_nanochat
from chatwright.conversations.other_formats import (
    convert_alpaca,
    convert_dialogue,
    convert_prompt_completion,
    convert_sharegpt,
)
from chatwright.conversations.places import Place, shown
from chatwright.conversations.schema import Conversation
from chatwright.errors import DataError

# The order decides between formats that accept equally many rows: the stricter comes first.
CONVERTERS: dict[str, Callable[[Any, str, int], Conversation]] = {
    "messages": convert_messages,
    "nanochat": convert_nanochat,
    "minimind": convert_minimind,
    "sharegpt": convert_sharegpt,
    "prompt_completion": convert_prompt_completion,
    "alpaca": convert_alpaca,
    "dialogue": convert_dialogue,
}
ROWS_TO_DETECT = 64


def convert(row: Any, format: str, source: str, index: int) -> Conversation:
    """The conversation of one row.

    Args:
        row: a dict, or for some formats a list, as read from the source.
        format: a name of `CONVERTERS`.
        source: the file or data set, for messages and for `Conversation.source`.
        index: the row's number there, counted from 0.

    Raises:
        DataError: naming source, row and field; also for an unknown format.
    """
    if format not in CONVERTERS:
        raise DataError(
            f"unknown format {format!r}", source=source, hint=f"valid formats: auto, {', '.join(CONVERTERS)}"
        )
    return CONVERTERS[format](row, source, index)


def detect_format(rows: Sequence[Any], source: str) -> str:
    """The format of rows: the one whose converter accepts most of the first 64.

    Raises:
        DataError: if there are no rows, they are preference pairs, or no converter accepts any; then it lists the
            rows' fields and why the nearest formats refused.
    """
    sample = list(islice(rows, ROWS_TO_DETECT))
    if not sample:
        raise DataError("there are no rows", source=source, hint="give a source that has rows")
    if any(isinstance(row, Mapping) and {"chosen", "rejected"} <= row.keys() for row in sample):
        raise DataError(
            "these are preference pairs (fields 'chosen' and 'rejected'), not conversations",
            source=source,
            hint=f"name the format to train on the messages alone; valid formats: {', '.join(CONVERTERS)}",
        )
    votes = {name: sum(_accepts(name, row, source) for row in sample) for name in CONVERTERS}
    best = max(votes, key=lambda name: votes[name])
    if not votes[best]:
        raise _nothing_fits(sample[0], source)
    return "nanochat" if best == "messages" and any(map(_has_python_part, sample)) else best


def _accepts(name: str, row: Any, source: str) -> bool:
    try:
        CONVERTERS[name](row, source, 0)
    except DataError:
        return False
    return True


def _has_python_part(row: Any) -> bool:
    """Whether a row has nanochat's typed parts; the converters agree on it, only the name differs."""
    messages = row.get("messages") if isinstance(row, Mapping) else None
    return isinstance(messages, list) and any(
        isinstance(part, Mapping) and part.get("type") in ("python", "python_output")
        for message in messages
        if isinstance(message, Mapping) and isinstance(message.get("content"), list)
        for part in message["content"]
    )


def _nothing_fits(row: Any, source: str) -> DataError:
    fields = f"fields {', '.join(map(repr, row))}" if isinstance(row, Mapping) else f"{type(row).__name__} {shown(row)}"
    reasons = []
    for name, converter in CONVERTERS.items():
        try:
            converter(row, source, 0)
        except DataError as error:
            reasons.append((name, error))
    # A format that got as far as a field of the row is nearer than one whose first field is missing.
    near = [(name, error) for name, error in reasons if error.field]
    why = "".join(f"\n  - {name}: field {error.field!r}: {error.message}" for name, error in near)
    place = Place(source, 0)
    return place.error(
        f"no known format fits these rows; the first has {fields}{why}",
        f"name the format yourself ({', '.join(CONVERTERS)}), or rename the fields to what it expects",
    )
