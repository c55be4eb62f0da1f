"""What is put to a subject, and what comes of it."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any, NamedTuple

from chatwright.conversations.schema import Conversation, Message


class Trial(NamedTuple):
    """A problem to put to a subject.

    Args:
        problem: its number in the task's order. sample: which of the replies to it.
        conversation: with the reference reply as its last message.
    """

    problem: int
    sample: int
    conversation: Conversation


class Outcome(NamedTuple):
    """What came of a trial: see `records.Record`."""

    score: float | None
    details: dict[str, Any]


def asked(conversation: Conversation, system: str | None = None) -> Conversation:
    """The conversation up to where the model is to speak.

    Args:
        system: takes the place of the system message, or becomes it.
    """
    messages = conversation.messages[:-1]
    if system is not None:
        rest = messages[1:] if messages and messages[0].role == "system" else messages
        messages = (Message.of("system", system), *rest)
    return replace(conversation, messages=messages)


def prompt_hash(conversation: Conversation) -> str:
    """The start of the sha256 of what a model is asked, and of how a reply of its own is weighed."""
    told: list[object] = [
        (message.role, message.train, message.weight, [(part.kind, part.text) for part in message.parts])
        for message in conversation.messages
    ]
    told += [conversation.tools, sorted(conversation.variables.items())]
    return hashlib.sha256(repr(told).encode("utf-8", "surrogatepass")).hexdigest()[:16]
