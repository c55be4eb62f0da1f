"""Tasks over a data set: rows found locally or on the hub, each converted to one conversation."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from chatwright.conversations.schema import Conversation, Message
from chatwright.errors import UserError
from chatwright.tasks.base import BaseTask, Options
from chatwright.tasks.grading import final_text
from chatwright.tasks.task_data import DataPlace, draw_rows


class DataTask(BaseTask[Options]):
    """A task whose problems are the rows of a data set, one conversation a row, in an order of the seed."""

    @abstractmethod
    def place(self, split: str) -> DataPlace:
        """Where the rows of a split are."""

    @abstractmethod
    def convert(self, row: Any, source: str, index: int) -> Conversation:
        """The conversation of one row, as the converters of `chatwright.conversations` make it.

        Raises:
            DataError: naming the field that can't be used.
        """

    def build(self, split: str, count: int | None, seed: int) -> list[Conversation]:
        """The conversations of `count` rows of the split; their source and row are those of the data set."""
        rows = draw_rows(self.place(split), count, seed)
        return [self.convert(raw.value, raw.source, raw.number) for raw in rows]

    def fingerprint(self, split: str) -> str | None:
        """sha256 of the split's files; None where it comes from the hub."""
        return self.place(split).fingerprint()


class ChoiceTask(DataTask[Options]):
    """A data set of multiple-choice questions, asked and graded as nanochat does."""

    max_new_tokens = 64

    def grade(self, conversation: Conversation, reply: Message) -> bool:
        """Whether the final text is the letter of the right choice, as the question demands."""
        return final_text(reply).strip().strip("().:*`").strip() == conversation.extra["answer"]


class TrainingTask(DataTask[Options]):
    """A data set of conversations without a right answer: to train on, not to grade."""

    def grade(self, conversation: Conversation, reply: Message) -> bool:
        """Never answers.

        Raises:
            UserError: always.
        """
        raise UserError(
            "these conversations have no right answer to grade by",
            place=f"task {self.name}",
            hint="measure the held-out loss on them (heldout.data), or grade another task",
        )
