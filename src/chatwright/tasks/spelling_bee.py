"""Counting letters in nanochat's long form: spell, count by hand, check with the calculator, answer `#### n`."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from functools import cache
from itertools import count, islice
from string import ascii_lowercase

from chatwright.conversations.schema import Conversation, Message, Part
from chatwright.settings import Settings
from chatwright.tasks.base import GeneratedTask
from chatwright.tasks.embedded import read_text
from chatwright.tasks.grading import marked_number
from chatwright.tasks.task import CALCULATOR, Draft, Split, question_and_reply, random_for
from chatwright.tasks.word_lists import WordOptions

ABSENT, LOWER_CASE, NO_MARK = 0.1, 0.3, 0.5
QUOTES = ("", "'", '"')


class SpellingBee(GeneratedTask[WordOptions]):
    """How many of a letter a word has, asked in ten languages, tidily and in a hurry; worked out in English."""

    name = "spelling_bee"
    options_type: type[Settings] = WordOptions
    max_new_tokens = 512

    def drafts(self, split: Split, seed: int) -> Iterator[Draft]:
        """`size` problems, each word of the split once before one comes again."""
        words = list(self.options.of(split))
        random_for(self.name, split, seed).shuffle(words)
        asked = ((word, round_) for round_ in count() for word in words)
        for word, round_ in islice(asked, self.options.size):
            yield _draft(word, random_for(self.name, split, seed, word, round_))

    def grade(self, conversation: Conversation, reply: Message) -> bool:
        """Whether the number behind `####` is the count."""
        return marked_number(reply.text) == float(conversation.extra["answer"])

    def fingerprint(self, split: str) -> str | None:
        """sha256 of the word list, if it isn't the shipped one."""
        return self.options.fingerprint()


@cache
def _phrasings() -> list[tuple[str, str]]:
    """Every phrasing with its language."""
    by_language = json.loads(read_text("letter_questions.json"))
    return [(phrasing, language) for language, phrasings in by_language.items() for phrasing in phrasings]


def _draft(word: str, rng: random.Random) -> Draft:
    letter = rng.choice(ascii_lowercase if rng.random() < ABSENT else word)
    question, language = _question(word, letter, rng)
    found = word.count(letter)
    reply = Message(
        "assistant",
        (
            Part("text", f"{_by_hand(word, letter)}\n\nNow the calculator checks it:\n\n"),
            Part("tool_call", f'"{word}".count("{letter}")', tool=CALCULATOR),
            Part("tool_result", str(found), tool=CALCULATOR),
            Part("text", f"\n\nThe calculator says {found} too.\n\n#### {found}"),
        ),
    )
    extra = {"answer": found, "word": word, "letter": letter, "language": language}
    return Draft(question_and_reply(question, reply), extra)


def _question(word: str, letter: str, rng: random.Random) -> tuple[str, str]:
    """A phrasing filled in: word and letter with or without quotes, now and then all lower case or without a mark."""
    phrasing, language = rng.choice(_phrasings())
    phrasing = phrasing.lower() if rng.random() < LOWER_CASE else phrasing
    around_letter, around_word = rng.choice(QUOTES), rng.choice(QUOTES)
    asked = phrasing.format(letter=f"{around_letter}{letter}{around_letter}", word=f"{around_word}{word}{around_word}")
    mark = "" if asked.endswith("?") or rng.random() < NO_MARK else "？" if language in ("zh", "ja") else "?"
    return asked + mark, language


def _by_hand(word: str, letter: str) -> str:
    """The word spelled, then one line a letter; no space before a letter, which would make it another token."""
    lines, found = [], 0
    for place, here in enumerate(word, 1):
        found += here == letter
        lines.append(f"{place}:{here} yes, that makes {found}" if here == letter else f"{place}:{here}")
    walk = "\n".join(lines)
    spelled = f"{word}:{','.join(word)}"
    return f"First by hand. The letters of '{word}':\n{spelled}\n\nEach '{letter}' counts:\n{walk}\n\nBy hand: {found}."
