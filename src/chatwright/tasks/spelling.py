"""Spelling: "Spell the word apple." → "a-p-p-l-e"."""

from __future__ import annotations

from collections.abc import Iterator

from chatwright.conversations.schema import Conversation, Message
from chatwright.tasks.base import GeneratedTask
from chatwright.tasks.embedded import words_of
from chatwright.tasks.grading import final_text, spelled_word
from chatwright.tasks.task import Draft, NoOptions, Split, question_and_reply, random_for

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


class Spelling(GeneratedTask[NoOptions]):
    """Words written letter by letter."""

    name = "spelling"

    def default_count(self, split: Split) -> int | None:
        """Each word of the split once."""
        return len(words_of(split))

    def grade(self, conversation: Conversation, reply: Message) -> bool:
        """Whether the last word that the reply writes letter by letter is the word asked for."""
        return spelled_word(final_text(reply)) == conversation.extra["word"]

    def drafts(self, split: Split, seed: int) -> Iterator[Draft]:
        """Distinct questions, each word once before one comes again."""
        words = list(words_of(split))
        random_for(self.name, split, seed).shuffle(words)
        for round_ in range(len(PHRASINGS)):
            for word in words:
                order = random_for(self.name, split, seed, word).sample(PHRASINGS, len(PHRASINGS))
                phrasing, between = order[round_]
                answer = between.join(word)
                messages = question_and_reply(phrasing.format(word=word), Message.of("assistant", answer))
                yield Draft(messages, {"answer": answer, "word": word})
