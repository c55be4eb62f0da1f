"""A task of a user's own for reinforcement: whatever a random model says has some reward, so that there is a signal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chatwright.conversations.schema import Conversation, Message
from chatwright.recipes.run_settings import RunSettings
from chatwright.tasks.base import GeneratedTask
from chatwright.tasks.task import Draft, NoOptions, Split, question_and_reply
from training_runs import merged, recipe

STOPS = ("e", "a", " ", "o", "i", "n", "s", "t")
"""Texts that end a reply: a random model finds one soon."""


class LetterGame(GeneratedTask[NoOptions]):
    """Says a word; longer replies get more, up to a point where they get nothing."""

    name = "letter_game"

    def default_count(self, split: Split) -> int | None:
        """Twenty."""
        return 20

    def drafts(self, split: Split, seed: int) -> Iterator[Draft]:
        """Numbered questions."""
        for number in range(1_000):
            answer = Message.of("assistant", f"The answer is {number}.")
            yield Draft(question_and_reply(f"{split} question {number}?", answer), {"number": number})

    def grade(self, conversation: Conversation, reply: Message) -> float:
        """A third, two thirds, one or nothing, by the length of the text."""
        return len(reply.text) % 4 / 3


class NoGame(LetterGame):
    """Nothing is ever right."""

    name = "no_game"

    def grade(self, conversation: Conversation, reply: Message) -> float:
        """Nothing."""
        return 0.0


def rl_recipe(model: Path, out: Path, /, task: str = "letter_game", **changes: Any) -> RunSettings:
    """Five steps of four problems, six replies each."""
    plain = {
        "stage": "rl",
        "data": [{"task": task}],
        "packing": {"by": "examples", "examples_per_step": 4},
        "rl": {"samples": 6, "max_new_tokens": 12, "stop": STOPS},
    }
    return recipe(model, None, out, **merged(plain, changes))


class Parity(GeneratedTask[NoOptions]):
    """Sixteen questions with an answer of one word each: to be half learned from rows, and the rest from rewards."""

    name = "parity"

    def drafts(self, split: Split, seed: int) -> Iterator[Draft]:
        """The sixteen, in their order."""
        for number in range(16):
            answer = ("even", "odd")[number % 2]
            question = f"Is {number} even or odd?"
            yield Draft(question_and_reply(question, Message.of("assistant", answer)), {"answer": answer})

    def grade(self, conversation: Conversation, reply: Message) -> bool:
        """Whether the reply is the word, and ends there."""
        return reply.text == conversation.extra["answer"]
