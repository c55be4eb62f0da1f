"""Who the assistant is: its name and maker, in English and Chinese, alone and within a longer conversation."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import Field

from chatwright.conversations.schema import Conversation, Message
from chatwright.settings import Settings
from chatwright.tasks.base import GeneratedTask
from chatwright.tasks.embedded import read_records
from chatwright.tasks.general import general_drafts
from chatwright.tasks.grading import final_text, mentions_any
from chatwright.tasks.task import Draft, Split, question_and_reply, random_for

DEFAULT_AUTHOR = "the Chatwright project"
DEFAULT_AUTHOR_ZH = "Chatwright项目"
CASUAL = 0.2
MULTI_TURN = 0.25


class PersonaOptions(Settings):
    """Who the assistant shall be.

    Args:
        name: the assistant's name.
        author: who made it, as in "made by …".
        author_zh: the same in Chinese sentences; None takes `author`.
    """

    name: str = Field("Chatwright", min_length=1)
    author: str = Field(DEFAULT_AUTHOR, min_length=1)
    author_zh: str | None = None

    def author_in(self, language: str) -> str:
        """The maker as written in a sentence of `language` (`en` or `zh`)."""
        if language == "zh":
            return self.author_zh or (DEFAULT_AUTHOR_ZH if self.author == DEFAULT_AUTHOR else self.author)
        return self.author


class Persona(GeneratedTask[PersonaOptions]):
    """Questions about the assistant; train and test phrasings differ, and every answer says the name."""

    name = "persona"
    options_type: type[Settings] = PersonaOptions

    def default_count(self, split: Split) -> int | None:
        """Each phrasing of the split once."""
        return sum(len(topic[split]) for topic in read_records("persona.jsonl"))

    def grade(self, conversation: Conversation, reply: Message) -> bool:
        """Whether the final text has the name (or, where the last question is a general one, its keyword)."""
        return mentions_any(final_text(reply), conversation.extra["keywords"])

    def drafts(self, split: Split, seed: int) -> Iterator[Draft]:
        """Every phrasing once before one comes again with another answer."""
        topics = read_records("persona.jsonl")
        asked = [(topic, question) for topic in topics for question in topic[split]]
        company = {language: self._company(language, split) for language in ("en", "zh")}
        for round_ in range(max(len(topic["answers"]) for topic in topics)):
            rng = random_for(self.name, split, seed, round_)
            for topic, question in rng.sample(asked, len(asked)):
                answers = random_for(self.name, split, seed, question).sample(topic["answers"], len(topic["answers"]))
                if round_ < len(answers):
                    alone = self._turn(topic["language"], _casual(question, rng), answers[round_])
                    in_company = topic["topic"] != "greeting" and rng.random() < MULTI_TURN
                    yield _join(alone, company[topic["language"]], split, rng) if in_company else alone

    def _turn(self, language: str, question: str, answer: str) -> Draft:
        said = answer.format(name=self.options.name, author=self.options.author_in(language))
        messages = question_and_reply(question, Message.of("assistant", said))
        return Draft(messages, {"answer": said, "keywords": (self.options.name,)})

    def _company(self, language: str, split: Split) -> _Company:
        topic = next(
            row for row in read_records("persona.jsonl") if (row["topic"], row["language"]) == ("greeting", language)
        )
        return _Company(
            greetings=[self._turn(language, said, answer) for said in topic[split] for answer in topic["answers"]],
            general=[
                draft for draft in general_drafts(split) if draft.messages[0].text.isascii() == (language == "en")
            ],
        )


@dataclass(frozen=True, slots=True)
class _Company:
    """Turns of one language that may stand beside a question about the assistant."""

    greetings: list[Draft]
    general: list[Draft]


def _join(draft: Draft, company: _Company, split: Split, rng: random.Random) -> Draft:
    """The draft after a greeting, after a general question or (in training only) before a general question."""
    place = rng.choice(("after a greeting", "after", "before") if split == "train" else ("after a greeting", "after"))
    if place == "before":
        last = rng.choice(company.general)
        return Draft(draft.messages + last.messages, last.extra)
    first = rng.choice(company.general if place == "after" else company.greetings)
    return Draft(first.messages + draft.messages, draft.extra)


def _casual(question: str, rng: random.Random) -> str:
    """The question as typed in a hurry, now and then: lower case, no closing mark."""
    return question.lower().rstrip("?.!？。！") if rng.random() < CASUAL else question
