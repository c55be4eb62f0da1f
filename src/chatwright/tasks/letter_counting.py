"""Counting letters with the calculator: "How many r are in strawberry?" → `"strawberry".count("r")` → 3."""

from __future__ import annotations

import random
from collections.abc import Iterator

from chatwright.conversations.schema import Conversation, Message
from chatwright.tasks.base import GeneratedTask
from chatwright.tasks.embedded import words_of
from chatwright.tasks.grading import final_text, last_number
from chatwright.tasks.task import Draft, NoOptions, Split, calculator_reply, question_and_reply, random_for

PHRASINGS = (
    "How many {letter} are in {word}?",
    "How many {letter} are there in {word}?",
    "How many {letter}'s are in {word}?",
    "How many {letter}s in {word}?",
    "how many {letter} in {word}",
    "how many {letter}'s are in {word}",
    "How many {letter} are in the word {word}?",
    'How many {letter} are in "{word}"?',
    'How many "{letter}" are in "{word}"?',
    "How many '{letter}' are in '{word}'?",
    "How many times does {letter} appear in {word}?",
    "How many times is {letter} in {word}?",
    "How often does {letter} occur in {word}?",
    "How many letters {letter} does {word} have?",
    "How many {letter} does {word} have?",
    "How many {letter} does {word} contain?",
    "Count the {letter} in {word}.",
    "Count {letter} in {word}",
    "Count the letter {letter} in {word}.",
    "Count the {letter}'s in {word}.",
    "Number of {letter} in {word}?",
    "What is the number of {letter} in {word}?",
    "In {word}, how many {letter} are there?",
    "The word {word} has how many {letter}?",
    "Can you count the {letter} in {word}?",
    "Tell me how many {letter} are in {word}.",
    "How many {upper} are in {word}?",
    "How many {upper}'s are in {title}?",
    "{word} 里有几个 {letter}？",
    "{word} 有多少个 {letter}？",
)
ABSENT_FIRST = 0.1
REPEATED_FIRST = 0.5


class LetterCounting(GeneratedTask[NoOptions]):
    """Counts of one letter in one word; a word's every letter, and one that it lacks, is a problem of its own."""

    name = "letter_counting"

    def default_count(self, split: Split) -> int | None:
        """Each word of the split once."""
        return len(words_of(split))

    def grade(self, conversation: Conversation, reply: Message) -> bool:
        """Whether the last number of the final text is the count."""
        return last_number(final_text(reply)) == float(conversation.extra["answer"])

    def drafts(self, split: Split, seed: int) -> Iterator[Draft]:
        """Distinct (word, letter) problems, each word once before one comes again."""
        words = list(words_of(split))
        random_for(self.name, split, seed).shuffle(words)
        place, found = 0, True
        while found:
            found = False
            for word in words:
                rng = random_for(self.name, split, seed, word)
                letters = _letters_to_ask(word, rng)
                if place < len(letters):
                    found = True
                    yield _draft(word, letters[place], random_for(self.name, split, seed, word, place))
            place += 1


def _letters_to_ask(word: str, rng: random.Random) -> list[str]:
    """The letters of `word` and one absent letter, each once: often the most repeated or the absent one first."""
    letters = rng.sample(sorted(set(word)), len(set(word)))
    absent = rng.choice(sorted(set("abcdefghijklmnopqrstuvwxyz") - set(word)))
    draw = rng.random()
    if draw < ABSENT_FIRST:
        return [absent, *letters]
    if draw < ABSENT_FIRST + REPEATED_FIRST:
        letters.sort(key=word.count, reverse=True)
    return [*letters, absent]


def _draft(word: str, letter: str, rng: random.Random) -> Draft:
    phrasing = rng.choice(PHRASINGS)
    question = phrasing.format(word=word, letter=letter, upper=letter.upper(), title=word.capitalize())
    count = word.count(letter)
    answer = f"There {'is' if count == 1 else 'are'} {count} {letter} in {word}."
    if not phrasing.isascii():
        answer = f"{word} 里有 {count} 个 {letter}。"
    reply = calculator_reply(f'"{word}".count("{letter}")', str(count), answer)
    return Draft(question_and_reply(question, reply), {"answer": count, "word": word, "letter": letter})
