"""Preference pairs and labelled replies to rows as TRL reads them, and what two of them don't share."""

from __future__ import annotations

from typing import Any

from chatwright.conversations.differences import differences
from chatwright.conversations.preference_formats import OTHER_PROMPTS, convert_kto, convert_trl
from chatwright.conversations.preference_types import LabelledReply, Preference, PreferencePair
from chatwright.conversations.schema import Conversation
from chatwright.conversations.writers import Row, message_row, with_rest, write_messages


def write_preference(preference: PreferencePair | LabelledReply) -> Row:
    """`{"prompt", "chosen", "rejected", "margin", "tools"}` of message lists; `{"messages", "label"}` of one reply."""
    if isinstance(preference, LabelledReply):
        row = write_messages(preference.conversation)
        return {"messages": row.pop("messages"), "label": preference.desirable, **row}
    sides = {"prompt": preference.prompt, "chosen": preference.chosen, "rejected": preference.rejected}
    row = {name: [message_row(message) for message in messages] for name, messages in sides.items()}
    if preference.margin is not None:
        row["margin"] = preference.margin
    extra = {key: value for key, value in preference.extra.items() if key not in (*OTHER_PROMPTS, "margin")}
    return with_rest(row, Conversation((), tools=preference.tools, extra=extra))


def read_preference(row: Row, source: str, index: int) -> Preference:
    """A row that `write_preference` made.

    Raises:
        DataError: it is none.
    """
    return (convert_kto if "label" in row else convert_trl)(row, source, index)


def preference_differences(before: PreferencePair | LabelledReply, after: Preference) -> tuple[str, ...]:
    """What `after` lacks or has otherwise; source and row aren't compared."""
    if isinstance(before, LabelledReply) and isinstance(after, LabelledReply):
        label = () if before.desirable == after.desirable else ("the label",)
        return (*label, *differences(before.conversation, after.conversation))
    if not (isinstance(before, PreferencePair) and isinstance(after, PreferencePair)):
        return ("the pair",)
    found: dict[str, Any] = {}
    if before.margin != after.margin:
        found["the margin"] = None
    for mine, other in zip(_sides(before), _sides(after), strict=True):
        found |= dict.fromkeys(differences(mine, other))
    return tuple(found)


def _sides(pair: PreferencePair) -> tuple[Conversation, ...]:
    """Prompt and replies as conversations of their own, the prompt's with all that stands beside."""
    prompt = Conversation(pair.prompt, tools=pair.tools, extra=pair.extra)
    return prompt, Conversation(pair.chosen), Conversation(pair.rejected)
