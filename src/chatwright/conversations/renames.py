"""Rows whose fields and roles have other names: renamed before they are converted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MESSAGE_LISTS = ("messages", "conversations", "conversation", "prompt", "completion", "response", "chosen", "rejected")
"""Fields (by our names) whose lists of messages, or single message, get `message_columns` and `roles`."""


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
