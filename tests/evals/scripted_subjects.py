"""Subjects that need no model: what they say is decided by the question, their settings and nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from chatwright.conversations.schema import Conversation, Message
from chatwright.errors import UserError
from chatwright.evals.selection import Selected
from chatwright.evals.subject import Unanswered
from chatwright.inference.responder import ChatReply
from chatwright.inference.sampling import SamplingSettings
from chatwright.tasks.base import GeneratedTask
from chatwright.tasks.grading import last_number
from chatwright.tasks.task import Draft, NoOptions, Split, question_and_reply


def unit(*key: Any) -> float:
    """A number in [0, 1) that depends on the key alone."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:4], "big") / 2**32


@dataclass
class ScriptedSubject:
    """Right with a chance of `skill`, by a draw of the question and the seed.

    Args:
        stop_after: raises `KeyboardInterrupt` in place of the reply with this number.
        asked: what it was asked, in order.
    """

    name: str = "scripted"
    skill: float = 0.5
    stop_after: int | None = None
    turn: int = 1
    asked: list[str] = field(default_factory=list)
    settings: list[SamplingSettings] = field(default_factory=list)
    too_long: str = "never said"

    def identity(self) -> str:
        """Its name and skill."""
        return f"{self.name} {self.skill}"

    def _order(self, count: int) -> list[int]:
        """Replies end out of order."""
        return sorted(range(count), key=lambda number: unit("order", number, self.turn))

    def _ask(self, conversation: Conversation) -> str:
        if self.stop_after is not None and len(self.asked) >= self.stop_after:
            raise KeyboardInterrupt
        assert conversation.messages[-1].role == "user", "the reference reply is given away"
        text = "\n".join(message.text for message in conversation.messages)
        self.asked.append(text)
        return text

    def replies(
        self, conversations: Sequence[Conversation], settings: Sequence[SamplingSettings]
    ) -> Iterator[tuple[int, ChatReply | Unanswered]]:
        """The sum that the question asks for, or one more."""
        self.settings += settings
        for number in self._order(len(conversations)):
            text = self._ask(conversations[number])
            if self.too_long in text:
                yield number, Unanswered("prompt longer than the context")
                continue
            drawn = settings[number].seed if settings[number].temperature > 0 else 0
            right = unit(text, drawn, self.identity()) < self.skill
            a, b = text.split("\n")[-1].split(" + ")
            answer = int(a) + int(b) + (0 if right else 1)
            yield number, ChatReply(Message.of("assistant", f"It is {answer}."), "stop", len(text), 4)

    def choose(
        self, conversations: Sequence[Conversation], letters: Sequence[Sequence[str]]
    ) -> Iterator[tuple[int, Sequence[float] | Unanswered]]:
        """Numbers drawn for each letter."""
        for number in self._order(len(conversations)):
            text = self._ask(conversations[number])
            yield number, [-8 * unit(text, letter, self.identity()) for letter in letters[number]]


class Sums(GeneratedTask[NoOptions]):
    """Sums of two numbers; the same few come again with `repeat`."""

    name = "sums"

    def drafts(self, split: Split, seed: int) -> Iterator[Draft]:
        """Without end."""
        number = 0
        while True:
            a, b = int(100 * unit(seed, number)), number
            yield Draft(question_and_reply(f"{a} + {b}", Message.of("assistant", f"{a + b}")), {"answer": a + b})
            number += 1

    def grade(self, conversation: Conversation, reply: Message) -> bool:
        """Whether the number is right."""
        if "refuse" in reply.text:
            raise UserError("can't be graded")
        return last_number(reply.text) == conversation.extra["answer"]


class Letters(Sums):
    """Questions with letters: two for even rows, four for odd ones."""

    name = "letters"

    def drafts(self, split: Split, seed: int) -> Iterator[Draft]:
        """Without end."""
        for number, draft in enumerate(super().drafts(split, seed)):
            letters = "AB" if number % 2 == 0 else "ABCD"
            answer = letters[int(len(letters) * unit("answer", number))]
            question = f"{draft.messages[0].text}\n{' '.join(letters)}"
            yield Draft(
                question_and_reply(question, Message.of("assistant", answer)), {"letters": letters, "answer": answer}
            )


SUMS = Selected("sums", Sums(NoOptions()))
LETTERS = Selected("letters", Letters(NoOptions()))
