"""Copying: "Repeat after me: apple 42 river" → "apple 42 river"."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import count

from chatwright.conversations.schema import Conversation, Message
from chatwright.tasks.base import GeneratedTask
from chatwright.tasks.embedded import words_of
from chatwright.tasks.grading import final_text
from chatwright.tasks.task import Draft, NoOptions, Split, question_and_reply, random_for, split_of

DEFAULT_COUNT = 1_000
MOST_PIECES = 5
NUMBER = 0.25
PHRASINGS = (
    "Repeat after me: {text}",
    "Repeat: {text}",
    "Repeat this: {text}",
    "repeat {text}",
    'Repeat "{text}"',
    "Say {text}",
    "Say this: {text}",
    'Say "{text}"',
    "Copy: {text}",
    "Copy this text: {text}",
    "Write {text}",
    'Write "{text}"',
    "Echo {text}",
    "Please repeat: {text}",
    "Can you repeat this? {text}",
    "Say it back to me: {text}",
)


class Copying(GeneratedTask[NoOptions]):
    """Words and numbers that are to be said again, as they are."""

    name = "copying"
    max_new_tokens = 96

    def default_count(self, split: Split) -> int | None:
        """1,000 of the texts without end."""
        return DEFAULT_COUNT

    def drafts(self, split: Split, seed: int) -> Iterator[Draft]:
        """Texts without end, of 1 to 5 words (those of the split) and numbers."""
        words = words_of(split)
        for number in count():
            rng = random_for(self.name, split, seed, number)
            text = " ".join(_piece(words, rng) for _ in range(rng.randint(1, MOST_PIECES)))
            if text.replace(" ", "").isdecimal() and split_of(text) != split:
                continue  # words keep the splits apart; numbers alone don't
            question = rng.choice(PHRASINGS).format(text=text)
            yield Draft(question_and_reply(question, Message.of("assistant", text)), {"answer": text})

    def grade(self, conversation: Conversation, reply: Message) -> bool:
        """Whether the reply is the text and nothing else, but for quotes around it and spaces at its ends."""
        return final_text(reply).strip().strip('"').strip() == conversation.extra["answer"]


def _piece(words: tuple[str, ...], rng: random.Random) -> str:
    """A word, now and then with a capital; or a number of up to four digits."""
    if rng.random() < NUMBER:
        return str(rng.randint(0, 10 ** rng.randint(1, 4) - 1))
    word = rng.choice(words)
    return word.capitalize() if rng.random() < NUMBER else word
