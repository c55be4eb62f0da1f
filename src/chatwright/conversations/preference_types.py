"""The shapes that preference data is converted to.

This module knows nothing of files and formats.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from chatwright.conversations.schema import Conversation, Message
from chatwright.errors import DataError


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
class PairConversation(Conversation):
    """A pair on its way to tokens: a conversation that ends in the better reply, which carries the one with the worse.

    Args:
        rejected: the messages of the prompt and the worse reply.
    """

    rejected: tuple[Message, ...] = ()

    @property
    def worse(self) -> Conversation:
        """The conversation that ends in the worse reply."""
        return Conversation(self.rejected, self.tools, self.variables, self.source, self.row, self.extra)


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

NO_PAIR = (
    "is one reply with a verdict, and training on pairs needs two replies to one prompt; take data of pairs, or train "
    "on the wanted replies with stage: sft and preference: chosen"
)
UNWANTED = "the reply is labelled as unwanted"


def chosen_conversation(found: Preference) -> Conversation | Dropped:
    """What there is to train on as an ordinary conversation: prompt and better reply, or a reply labelled as wanted."""
    if isinstance(found, LabelledReply):
        return found.conversation if found.desirable else Dropped(UNWANTED)
    if isinstance(found, Dropped):
        return found
    messages = (*found.prompt, *found.chosen)
    return Conversation(messages, found.tools, source=found.source, row=found.row, extra=found.extra)


def pair_conversation(found: Preference) -> PairConversation | Dropped:
    """A pair as one conversation with its twin, flags and weights of messages left out: all of a reply counts alike.

    Raises:
        DataError: it is a labelled reply.
    """
    if isinstance(found, LabelledReply):
        where = found.conversation
        raise DataError(f"row {where.row} {NO_PAIR}", source=where.source)  # no single bad row: nothing skips it
    if isinstance(found, Dropped):
        return found
    sides = [
        tuple(replace(message, train=None, weight=1.0) for message in (*found.prompt, *reply))
        for reply in (found.chosen, found.rejected)
    ]
    return PairConversation(
        sides[0], found.tools, source=found.source, row=found.row, extra=found.extra, rejected=sides[1]
    )
