"""The shapes that preference data is converted to.

This module knows nothing of files and formats.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from chatwright.conversations.schema import Conversation, Message


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Two replies to one prompt, of which one is preferred.

    Args:
        prompt: the turns that both replies answer, the last of them not the assistant's.
        chosen: the better reply: assistant messages, with tool messages between them where it calls tools.
        rejected: the worse reply.
        tools: tool definitions in OpenAI's schema, given to the template.
        margin: how much better, where the data says (a difference of scores), else None.
        source: the file or data set; `row`: its row there, counted from 0.
        extra: the row's further fields; never rendered.
    """

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    margin: float | None = None
    source: str = "memory"
    row: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LabelledReply:
    """A conversation whose last reply is wanted or unwanted, as KTO learns from (arXiv 2402.01306).

    To train on the good ones alone, take the conversations with `desirable`; one that isn't must never be trained on as
    an ordinary conversation.

    Args:
        conversation: prompt and reply.
        desirable: the row's `label`.
    """

    conversation: Conversation
    desirable: bool


@dataclass(frozen=True, slots=True)
class Dropped:
    """A good row that makes no pair, by the rule of its format.

    Args:
        reason: a short fixed phrase, for counting.
    """

    reason: str


Preference = PreferencePair | LabelledReply | Dropped

UNWANTED = "the reply is labelled as unwanted"


def chosen_conversation(found: Preference) -> Conversation | Dropped:
    """What there is to train on as an ordinary conversation: prompt and better reply, or a reply labelled as wanted."""
    if isinstance(found, LabelledReply):
        return found.conversation if found.desirable else Dropped(UNWANTED)
    if isinstance(found, Dropped):
        return found
    messages = (*found.prompt, *found.chosen)
    return Conversation(messages, found.tools, source=found.source, row=found.row, extra=found.extra)
