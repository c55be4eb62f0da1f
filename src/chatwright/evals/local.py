"""A model in this process as an evaluation's subject."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

from chatwright.conversations.schema import Conversation
from chatwright.evals.choice import LetterTokens
from chatwright.evals.endpoint import NO_WRITTEN_LETTER, NOT_CHOSEN, ChoiceBy, written_letter
from chatwright.evals.heldout import LossMeter
from chatwright.evals.subject import Unanswered
from chatwright.inference.responder import ChatReply, Responder
from chatwright.inference.sampling import SamplingSettings

QUESTIONS_AT_ONCE = 32
"""Questions whose letters are weighed by one call of the engine, which orders and batches them itself."""
CHOICE_TOKENS = 256
"""Room for an answer out of which the letter is read."""


class LocalSubject:
    """A model with its engine, template and tools.

    Args:
        name: as the user typed it.
        responder: replies, tools in the loop.
        weights: the identity of the model's weights and dtype; of a model that is only in memory, any text.
        choice_by: `logprobs` weighs the letters; `text` lets the model write, and reads the letter.
    """

    def __init__(self, name: str, responder: Responder, weights: str, *, choice_by: ChoiceBy = "logprobs") -> None:
        self.name, self.responder, self.weights, self.choice_by = name, responder, weights, choice_by
        self.template, self.engine = responder.template, responder.engine
        self._letters = LetterTokens(self.template)

    def identity(self) -> str:
        """The weights' identity, the template's, and how letters are chosen."""
        return f"weights {self.weights}, template {self.template.identity[:16]}, choice by {self.choice_by}"

    @cached_property
    def losses(self) -> LossMeter:
        """Measures the loss on held-out conversations."""
        return LossMeter(self.engine.model, self.template)

    @property
    def _context(self) -> int:
        return self.engine.model.max_positions

    def _too_long(self) -> Unanswered:
        return Unanswered(f"prompt longer than the context of {self._context:,} tokens")

    def replies(
        self, conversations: Sequence[Conversation], settings: Sequence[SamplingSettings]
    ) -> Iterator[tuple[int, ChatReply | Unanswered]]:
        """See `Subject`; a prompt that leaves no room in the model's context goes unanswered."""
        fits: list[int] = []
        for number, conversation in enumerate(conversations):
            if len(self.template.render_prompt(conversation)) < self._context:
                fits.append(number)
            else:
                yield number, self._too_long()
        asked = [conversations[number] for number in fits]
        for place, reply in self.responder.finished(asked, [settings[number] for number in fits]):
            yield fits[place], reply

    def choose(
        self, conversations: Sequence[Conversation], letters: Sequence[Sequence[str]]
    ) -> Iterator[tuple[int, Sequence[float] | Unanswered]]:
        """See `Subject`; log-probabilities over the whole vocabulary. A letter that is written has 0, others less."""
        if self.choice_by == "text":
            yield from self._written(conversations, letters)
            return
        for start in range(0, len(conversations), QUESTIONS_AT_ONCE):
            numbers = range(start, min(start + QUESTIONS_AT_ONCE, len(conversations)))
            asked = {number: self._letters.of(conversations[number], letters[number]) for number in numbers}
            fits = [number for number in numbers if len(asked[number].prompt) < self._context]
            found = self.engine.choose([asked[each].prompt for each in fits], [asked[each].letter_ids for each in fits])
            yield from zip(fits, found, strict=True)
            yield from ((number, self._too_long()) for number in numbers if number not in fits)

    def _written(
        self, conversations: Sequence[Conversation], letters: Sequence[Sequence[str]]
    ) -> Iterator[tuple[int, Sequence[float] | Unanswered]]:
        """The letter that the model writes, as `EndpointSubject` reads it."""
        settings = [SamplingSettings(max_new_tokens=CHOICE_TOKENS)] * len(conversations)
        for number, reply in self.replies(conversations, settings):
            if isinstance(reply, Unanswered):
                yield number, reply
                continue
            letter = written_letter(reply.message.text, letters[number])
            weighed = [0.0 if each == letter else NOT_CHOSEN for each in letters[number]]
            yield number, weighed if letter is not None else Unanswered(NO_WRITTEN_LETTER)
