"""Which settings of a data entry make no sense for plain text, each with what to do instead."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chatwright.conversations.data_settings import DataSettings

FOR_CONVERSATIONS = frozenset(
    {"empty_reply", "repeats_prompt", "random_system", "drop_system", "keep_last_turns", "drop_empty_thinking"}
)
"""Filters and transforms that look at prompts, turns or system messages, which a document hasn't."""


def problems_of_text(entry: DataSettings) -> Iterator[str]:
    """Why an entry of plain text can't be as it is set."""
    if entry.task:
        yield "'format: text' belongs to a 'path', found a 'task'"
    if entry.train_on not in (None, "everything"):
        yield f"plain text trains every token but the first; remove train_on: {entry.train_on}"
    if entry.preference:
        yield "'preference' belongs to pairs of replies, and plain text has none"
    for name in ("columns", "message_columns", "roles"):
        if getattr(entry, name):
            yield f"{name!r} belongs to conversations; name the column of the text by text_field"
    for what, settings in (("filter", entry.filters), ("transform", entry.transforms)):
        for each in settings:
            if (why := _not_for_text(each)) is not None:
                yield f"the {what} {each.kind} {why}; plain text has no prompts, replies and turns"


def _not_for_text(each: Any) -> str | None:
    if each.kind in FOR_CONVERSATIONS:
        return "is for conversations"
    if each.kind in ("length", "language") and each.of != "conversation":
        return f"can't measure of: {each.of}"
    if each.kind == "length" and each.unit == "turns":
        return "can't count turns"
    if each.kind == "pattern" and each.role != "any":
        return f"can't search role: {each.role}"
    return None
