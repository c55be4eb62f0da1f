"""Bare lists of messages, one a line, user and assistant in turn: nanochat's CustomJSON, and ChatAlpaca's rows.

Sources of the format: karpathy/nanochat (`tasks/customjson.py`), icip-cas/ChatAlpaca (README).
"""

from __future__ import annotations

from typing import Any

from chatwright.conversations.message_formats import convert_messages, read_message
from chatwright.conversations.places import Place, read_text, shown
from chatwright.conversations.schema import Conversation


def convert_custom_json(row: Any, source: str, index: int) -> Conversation:
    """`[{"role": "user", "content": …}, {"role": "assistant", "content": …}, …]` with strings as content.

    Raises:
        DataError: if the row is no list of two or more messages, the first isn't the user's, a role comes twice in a
            row, or a content is no text. Lists with a system prompt or typed parts are `nanochat`'s.
    """
    place = Place(source, index)
    if not isinstance(row, list | tuple):
        raise place.error(f"must be a bare list of messages, found {type(row).__name__} {shown(row)}")
    if len(row) < 2:
        raise place.error(f"needs two or more messages, found {len(row)}")
    for i, item in enumerate(row):
        at, wanted = place.at("messages", i), ("user", "assistant")[i % 2]
        message = read_message(item, at)
        if message.role != wanted:
            raise at.at("role").error(
                f"message {i} must be the {wanted}'s, found {message.role!r}",
                "the user begins and the two take turns; name the format nanochat for other orders",
            )
        read_text(item.get("content"), at.at("content"))
    return convert_messages({"messages": row}, source, index)
