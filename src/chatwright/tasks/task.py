"""What a task is, and the few steps that every task shares: splits, seeded randomness, building conversations.

This module knows nothing of templates, tokens or models.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal, Protocol

from chatwright.conversations.schema import Conversation, Message, Part
from chatwright.conversations.task_formats import CALCULATOR
from chatwright.errors import ConfigError
from chatwright.settings import Settings

Split = Literal["train", "test"]

TEST_PERCENT = 20


class Task(Protocol):
    """Conversations to train on, and a grade for a reply to the same conversations.

    The last message of a conversation is the reference reply; a model under test is shown the messages before it.
    """

    name: str
    options_type: type[Settings]
    splits: tuple[str, ...]
    max_new_tokens: int
    """Room for a reply when an evaluation lets a model answer by itself, reasoning and tool results included."""
    options: Any

    def __init__(self, options: Any) -> None:
        """Keep the options, an instance of `options_type`."""

    def conversations(self, split: str, count: int | None = None, seed: int = 0) -> list[Conversation]:
        """A pure function of its arguments (and data files): the first conversations are the same for any `count`.

        Args:
            split: one of `splits`. What a task makes itself is distinct, with no word, problem or question in both
                `train` and `test`; a data set's rows come as they are.
            count: how many; fewer come back only where the task has no more. None: each word, question or row once
                (for endless tasks a fixed number).
            seed: another seed gives another choice and order.

        Raises:
            ConfigError: for another split, or a count below 0.
            UserError: when its data set isn't at hand.
        """
        ...

    def grade(self, conversation: Conversation, reply: Message) -> bool | float:
        """Whether `reply` is a right last message for `conversation`, or how far (0 to 1), by the text the user sees.

        Raises:
            UserError: when the task can't judge: it has no right answers, or code to run and no executor.
        """
        ...

    def fingerprint(self, split: str) -> str | None:
        """sha256 of the data files behind a split, empty where there are none; None where it can't be told (hub)."""
        ...


class NoOptions(Settings):
    """Options of a task that has none."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A conversation before it has a source and a row: its messages and what grading needs."""

    messages: tuple[Message, ...]
    extra: Mapping[str, Any] = field(default_factory=dict)


def build_conversations(task: str, drafts: Iterable[Draft], count: int | None) -> list[Conversation]:
    """The first `count` distinct drafts (None: all) as conversations of `task:<name>`, rows counted from 0."""
    seen: dict[tuple[Message, ...], Draft] = {}
    distinct = (seen.setdefault(draft.messages, draft) for draft in drafts if draft.messages not in seen)
    return [
        Conversation(draft.messages, source=f"task:{task}", row=row, extra=draft.extra)
        for row, draft in enumerate(islice(distinct, count))
    ]


def check_request(task: str, splits: Sequence[str], split: str, count: int | None) -> None:
    """Refuse a split or count that no task has.

    Raises:
        ConfigError: naming the value and the valid ones.
    """
    problems = []
    if split not in splits:
        problems.append(f"split: must be one of {', '.join(splits)} (found {split!r})")
    if count is not None and count < 0:
        problems.append(f"count: must be 0 or more, or null for all (found {count})")
    if problems:
        raise ConfigError(problems, source=f"task {task}")


def random_for(*key: str | int) -> random.Random:
    """A generator seeded by the key alone, the same in every process and on every machine."""
    return random.Random("/".join(map(str, key)))


def split_of(key: str) -> Split:
    """The split that owns `key`, by its hash: 20 % of the keys are `test`, whatever the seed."""
    digest = hashlib.sha256(key.encode()).digest()
    return "test" if int.from_bytes(digest[:4], "big") % 100 < TEST_PERCENT else "train"


def question_and_reply(question: str, reply: Message) -> tuple[Message, ...]:
    """One user turn and its reply."""
    return (Message.of("user", question), reply)


def calculator_reply(code: str, result: str, answer: str) -> Message:
    """An assistant turn that calls the calculator, gets its result and answers: one turn of three parts."""
    return Message(
        "assistant",
        (
            Part("tool_call", code, tool=CALCULATOR),
            Part("tool_result", result, tool=CALCULATOR),
            Part("text", answer),
        ),
    )
