"""Spelling: "Spell the word apple." → "a-p-p-l-e"."""

from __future__ import annotations

from collections.abc import Iterator

from chatwright.conversations.schema import Conversation, Message
from chatwright.settings import Settings
from chatwright.tasks.embedded import words_of
from chatwright.tasks.grading import final_text, spelled_word
from chatwright.tasks.task import (
    Draft,
    NoOptions,
    Split,
    build_conversations,
    check_request,
    question_and_reply,
    random_for,
)

PHRASINGS = (
    ("Spell the word {word}.", "-"),
    ("Spell {word}", "-"),
    ("Spell {word}.", "-"),
    ("Spell {word}, please.", "-"),
    ('Spell "{word}".', "-"),
    ("How do you spell {word}?", "-"),
    ("How is {word} spelled?", "-"),
    ("Can you spell {word}?", "-"),
    ("What is the spelling of {word}?", "-"),
    ("Spell {word} letter by letter.", "-"),
    ("Spell {word} with hyphens.", "-"),
    ("Spell {word} with spaces.", " "),
    ("Write {word} with a space between the letters.", " "),
    ("Split {word} into letters, with spaces.", " "),
    ("请拼写 {word}", "-"),
)
"""A phrasing and what stands between the letters of its answer."""


class Spelling:
    """Words written letter by letter."""

    name = "spelling"
    options_type: type[Settings] = NoOptions

    def __init__(self, options: NoOptions) -> None:
        self.options = options

    def conversations(self, split: Split, count: int | None = None, seed: int = 0) -> list[Conversation]:
        """Distinct questions, each word once before one comes again; None gives each word once. See `Task`."""
        check_request(self.name, split, count)
        drafts = self._drafts(split, seed)
        return build_conversations(self.name, drafts, len(words_of(split)) if count is None else count)

    def grade(self, conversation: Conversation, reply: Message) -> bool:
        """Whether the last word that the reply writes letter by letter is the word asked for."""
        return spelled_word(final_text(reply)) == conversation.extra["word"]

    def _drafts(self, split: Split, seed: int) -> Iterator[Draft]:
        words = list(words_of(split))
        random_for(self.name, split, seed).shuffle(words)
        for round_ in range(len(PHRASINGS)):
            for word in words:
                order = random_for(self.name, split, seed, word).sample(PHRASINGS, len(PHRASINGS))
                phrasing, between = order[round_]
                answer = between.join(word)
                messages = question_and_reply(phrasing.format(word=word), Message.of("assistant", answer))
                yield Draft(messages, {"answer": answer, "word": word})
