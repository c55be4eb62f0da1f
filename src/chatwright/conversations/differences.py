"""What two conversations don't share, in words that can be counted.

`convert` compares every conversation with what its written row reads back as; this module knows no format.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from chatwright.conversations.message_formats import name_results
from chatwright.conversations.schema import Conversation, Message, Part

_ASPECTS: dict[str, Callable[[Message], Any]] = {
    "turns": lambda m: m.role if m.role in ("user", "assistant") else None,
    "system prompts": lambda m: m.text if m.role == "system" else None,
    "texts": lambda m: m.text if m.role in ("user", "assistant") and m.text else None,
    "thinking": lambda m: _of_kind(m, "thinking", lambda part: part.text),
    "tool calls": lambda m: _of_kind(m, "tool_call", lambda part: (part.tool, part.text)),
    "tool results": lambda m: _of_kind(m, "tool_result", lambda part: (part.tool, part.text)),
    "ids of tool calls": lambda m: tuple(part.call_id for part in m.parts if part.call_id is not None) or None,
    "train flags": lambda m: m.train,
    "weights": lambda m: m.weight if m.weight != 1.0 else None,
}


def differences(before: Conversation, after: Conversation) -> tuple[str, ...]:
    """What `after` lacks or has otherwise, empty where the two are the same; source and row aren't compared.

    A result's tool counts as known where its call has the same id, and a weight of 0 as `train: false`, since every
    converter reads them so.
    """
    before, after = normal_form(before), normal_form(after)
    found = [
        name for name, aspect in _ASPECTS.items() if _values(before.messages, aspect) != _values(after.messages, aspect)
    ]
    if not found and before.messages != after.messages:
        found = ["the order of parts inside turns"]
    if before.tools != after.tools:
        found.append("tool definitions")
    if before.variables != after.variables:
        found.append("template variables")
    fields = dict.fromkeys([*before.extra, *after.extra])
    found += [f"the field {key!r}" for key in fields if not _same(before.extra, after.extra, key)]
    return tuple(found)


def normal_form(conversation: Conversation) -> Conversation:
    """The conversation as a converter would have read it: results named, weights of 0 untrained, no empty extras."""
    messages = tuple(replace(m, train=False) if m.weight == 0 and m.train is None else m for m in conversation.messages)
    extra = {key: value for key, value in conversation.extra.items() if value is not None}
    return replace(conversation, messages=name_results(messages), extra=extra)


def _of_kind(message: Message, kind: str, value: Callable[[Part], Any]) -> Any:
    return tuple(value(part) for part in message.parts if part.kind == kind) or None


def _values(messages: tuple[Message, ...], aspect: Callable[[Message], Any]) -> list[Any]:
    """The aspect's values in order; messages that have none don't count."""
    return [value for value in map(aspect, messages) if value is not None]


def _same(before: Any, after: Any, key: str) -> bool:
    return key in before and key in after and bool(before[key] == after[key])
