"""Reading one row strictly: each helper checks a value and names source, row and field when it can't be used.

This module knows nothing of formats; converters are built from it.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from chatwright.errors import DataError

_SHOWN_LENGTH = 80
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = _SHOWN_LENGTH


_REPAIR = "repair the text: a JSON \\ud800–\\udfff escape must come in pairs"


class Place(NamedTuple):
    """Where a value stands: source, row (from 0) and the steps to the field inside the row."""

    source: str
    row: int
    steps: tuple[str | int, ...] = ()

    def at(self, *keys: str | int) -> Place:
        """The place one or more steps further inside, such as `place.at("messages", 3, "role")`."""
        return Place(self.source, self.row, self.steps + keys)

    def error(self, message: str, hint: str | None = None) -> DataError:
        """A `DataError` at this place, to be raised by the caller."""
        field = ".".join(map(str, self.steps)) or None
        return DataError(message, source=self.source, row=self.row, field=field, hint=hint)


def shown(value: Any) -> str:
    """A value for a message: its `repr`, cut to a readable length, whatever its size, depth or cycles."""
    if isinstance(value, str | bytes):
        text = repr(value[:_SHOWN_LENGTH])
        return text if len(value) <= _SHOWN_LENGTH else f"{text[:_SHOWN_LENGTH]}… ({len(value):,} characters)"
    try:
        text = _SHORT.repr(value)
    except ValueError:  # an integer of thousands of digits
        return f"a very large {type(value).__name__}"
    return text if len(text) <= _SHOWN_LENGTH else f"{text[:_SHOWN_LENGTH]}…"


def read_text(value: Any, place: Place) -> str:
    """A string that can be encoded as UTF-8.

    Raises:
        DataError: for any other type, and for a lone surrogate (half of a character).
    """
    if not isinstance(value, str):
        found = "nothing (null)" if value is None else f"{type(value).__name__} {shown(value)}"
        raise place.error(f"must be text, found {found}", "write a string here, or leave the row out")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise place.error(
            f"holds half a character ({value[error.start]!r} at character {error.start}) that UTF-8 can't write",
            _REPAIR,
        ) from None
    return value


def read_mapping(value: Any, place: Place) -> Mapping[str, Any]:
    """A JSON object.

    Raises:
        DataError: for anything else.
    """
    if not isinstance(value, Mapping):
        raise place.error(f"must be an object with named fields, found {type(value).__name__} {shown(value)}")
    return value


def read_list(value: Any, place: Place) -> list[Any]:
    """A list that isn't empty; a string is parsed as JSON first (CSV and parquet columns often hold JSON text).

    Raises:
        DataError: for anything else.
    """
    value = read_json(value, place)
    if not isinstance(value, list | tuple):
        raise place.error(f"must be a list, found {type(value).__name__} {shown(value)}")
    if not value:
        raise place.error("is an empty list", "a conversation needs at least one message; leave the row out")
    return list(value)


def read_json(value: Any, place: Place) -> Any:
    """`value`, or what its JSON text says when it is a string.

    Raises:
        DataError: if the string isn't JSON.
    """
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise place.error(f"is not JSON ({error}): {shown(value)}") from None
    except RecursionError:
        raise place.error(f"is JSON nested too deeply: {shown(value)}") from None


def compact_json(value: Any, place: Place) -> str:
    """`value` as JSON without spaces, letters of every script as they are.

    Raises:
        DataError: if it holds what JSON has no word for, such as a date from a parquet column, or what UTF-8 has no
            bytes for.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        text.encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise place.error(f"holds half a character ({half!r}) that UTF-8 can't write", _REPAIR) from None
    except RecursionError:
        raise place.error(f"is nested too deeply: {shown(value)}") from None
    except (TypeError, ValueError) as error:
        raise place.error(f"can't be written as JSON ({error}): {shown(value)}") from None
    return text


def without_nulls(value: Any) -> Any:
    """A copy of a row that came through Arrow, without the keys whose value is null.

    Arrow gives each struct the keys of all rows and fills the foreign ones with null, which would put other tools'
    parameters into a tool schema. Nulls inside lists are real values and stay.
    """
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value
