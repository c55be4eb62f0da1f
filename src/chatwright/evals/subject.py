"""What is measured: anything that replies to conversations and can weigh letters, here or on another machine.

Tasks and scores know subjects by this protocol alone. `local.LocalSubject` is a model in this process,
`endpoint.EndpointSubject` one behind an OpenAI-compatible server.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from chatwright.conversations.schema import Conversation
from chatwright.inference.responder import ChatReply
from chatwright.inference.sampling import SamplingSettings


@dataclass(frozen=True, slots=True)
class Unanswered:
    """Stands for a reply that can't be had, such as to a prompt longer than the model's context.

    It counts as wrong, and is told apart in the results.

    Args:
        reason: a few words, the same for the same cause: `prompt longer than the context of 2,048 tokens`.
    """

    reason: str


class Subject(Protocol):
    """A model to measure.

    Conversations given to it end where it is to speak: the reference reply isn't in them.
    """

    @property
    def name(self) -> str:
        """As the user typed it."""
        ...

    def identity(self) -> str:
        """What the results depend on: the weights' hash, or URL and model; the template's identity.

        An evaluation goes on only with the results of a subject of the same identity.
        """
        ...

    def replies(
        self, conversations: Sequence[Conversation], settings: Sequence[SamplingSettings]
    ) -> Iterator[tuple[int, ChatReply | Unanswered]]:
        """The reply to each conversation, with its number among them, as they finish; tools in the loop.

        A reply depends on its conversation and its settings (seed included), never on the others.

        Args:
            settings: one a conversation.

        Raises:
            UserError: the subject can't do what is asked of it.
        """
        ...

    def choose(
        self, conversations: Sequence[Conversation], letters: Sequence[Sequence[str]]
    ) -> Iterator[tuple[int, Sequence[float] | Unanswered]]:
        """The log-probability of each letter as the first token of the reply, with the conversation's number.

        Args:
            letters: the letters allowed as the answer to each conversation.

        Raises:
            UserError: a letter isn't one token, or the subject tells no log-probabilities.
        """
        ...
