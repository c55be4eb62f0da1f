"""A conversation read as questions and replies: what filters, transforms and lint look at.

This module knows nothing of formats, templates or tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from chatwright.conversations.schema import Conversation, Message


class Exchange(NamedTuple):
    """A reply and what was asked right before it.

    Args:
        prompt: the text of the last user message before the reply, `""` where there is none.
        reply: the assistant message. place: its number among the conversation's messages.
    """

    prompt: str
    reply: Message
    place: int


def exchanges(conversation: Conversation) -> Iterator[Exchange]:
    """Each reply that may be trained (`train` isn't False), in order."""
    prompt = ""
    for index, message in enumerate(conversation.messages):
        if message.role == "user":
            prompt = message.text
        elif message.role == "assistant" and message.train is not False:
            yield Exchange(prompt, message, index)


def answers(message: Message) -> bool:
    """Whether a reply says or calls something: a text that isn't blank, or a tool call. Thinking alone is no answer."""
    return any(part.kind == "tool_call" or (part.kind == "text" and part.text.strip()) for part in message.parts)


def written_length(message: Message) -> int:
    """Characters of a message that its speaker wrote: all parts but tool results."""
    return sum(len(part.text) for part in message.parts if part.kind != "tool_result")
