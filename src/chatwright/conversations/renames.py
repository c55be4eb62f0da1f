"""Rows whose fields and roles have other names: renamed before they are converted."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from chatwright.errors import DataError

MESSAGE_LISTS = ("messages", "conversations", "conversation", "prompt", "completion", "response", "chosen", "rejected")
"""Fields (by our names) whose lists of messages, or single message, get `message_columns` and `roles`."""


ROWS_TO_FIND_NAMES = 10_000
"""A field is looked for in so many rows: Arrow leaves out fields that are null, which may be so in many first rows."""
_NAMES_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Renames:
    """What the fields of a row are called, ours → theirs.

    Example: `columns={"output": "answer", "input": None}` turns `{"answer": "A", "input": "I"}` into `{"output": "A"}`.

    Args:
        columns: field of the row → its name in the data, or None to leave such a field unread.
        message_columns: the same for the fields of each message.
        roles: role → the names it has in the data.
    """

    columns: Mapping[str, str | None] = field(default_factory=dict)
    message_columns: Mapping[str, str | None] = field(default_factory=dict)
    roles: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def apply(self, row: Any) -> Any:
        """The row with our names; what isn't an object or a list of messages is left as it is."""
        if isinstance(row, list | tuple):
            return self._messages(row)
        if not isinstance(row, Mapping):
            return row
        renamed = _rename(row, self.columns)
        if self.message_columns or self.roles:
            renamed.update({name: self._messages(renamed[name]) for name in MESSAGE_LISTS if name in renamed})
        return renamed

    def _messages(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return self._message(value)
        return [self._message(item) for item in value] if isinstance(value, list | tuple) else value

    def _message(self, item: Any) -> Any:
        if not isinstance(item, Mapping):
            return item
        message = _rename(item, self.message_columns)
        ours = {theirs: role for role, names in self.roles.items() for theirs in names}
        for name in ("role", "from"):
            if isinstance(message.get(name), str):
                message[name] = ours.get(message[name], message[name])
        return message


def _rename(fields: Mapping[str, Any], columns: Mapping[str, str | None]) -> dict[str, Any]:
    """The fields by our names, in their order; a mapped name wins over a field that has that name already."""
    taken = {theirs for theirs in columns.values() if theirs is not None}
    kept = {name: value for name, value in fields.items() if name not in columns and name not in taken}
    return kept | {ours: fields[theirs] for ours, theirs in columns.items() if theirs is not None and theirs in fields}


def require_names(renames: Renames, rows: Iterable[Any], source: str) -> None:
    """Refuse names of fields that no row has: a misspelled one would be passed over in silence.

    Args:
        rows: as they were read; as many are looked at as it takes to find every name.

    Raises:
        DataError: naming the setting, the field and the fields that there are.
    """
    seen: dict[str, dict[str, None]] = {"columns": {}, "message_columns": {}}
    wanted = {name: [each for each in getattr(renames, name).values() if each is not None] for name in seen}
    any_row = False
    for row in islice(rows, ROWS_TO_FIND_NAMES):
        any_row = True
        seen["columns"].update(dict.fromkeys(row if isinstance(row, Mapping) else ()))
        seen["message_columns"].update(dict.fromkeys(_message_fields(row, renames.columns)))
        if all(theirs in seen[name] for name, names in wanted.items() for theirs in names):
            return
    for name, names in wanted.items():
        for theirs in names if any_row else ():
            if theirs not in seen[name]:
                raise _absent(name, theirs, seen[name], getattr(renames, name), source)


def _message_fields(row: Any, columns: Mapping[str, str | None]) -> Iterator[str]:
    if isinstance(row, Mapping):
        renamed = _rename(row, columns)
        lists = [renamed[name] for name in MESSAGE_LISTS if name in renamed]
    else:
        lists = [row]
    for value in lists:
        for item in value if isinstance(value, list | tuple) else (value,):
            yield from item if isinstance(item, Mapping) else ()


def _absent(
    setting: str, theirs: str, seen: Iterable[str], columns: Mapping[str, str | None], source: str
) -> DataError:
    fields = list(map(str, seen))
    more = ", …" if len(fields) > _NAMES_SHOWN else ""
    there = f"the fields are {', '.join(fields[:_NAMES_SHOWN])}{more}"
    if not fields:
        there = "the rows have no named fields" if setting == "columns" else "no list of messages was found"
    ours = next(name for name, each in columns.items() if each == theirs)
    hint = f"{setting}: {{ours: theirs}} has the name that the format reads first, then what the data calls it"
    if near := difflib.get_close_matches(theirs, fields, n=1):
        hint = f"did you mean {near[0]!r}?"
    elif ours in fields and ours not in columns.values():
        hint = f"the format's name stands first, the data's second: {setting}: {{{theirs}: {ours}}}"
    return DataError(f"{setting}: there is no field {theirs!r}; {there}", source=source, hint=hint)
