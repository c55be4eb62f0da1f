"""Tasks whose replies are programs, judged by running them with tests, away from this process."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable
from typing import Self

from chatwright.conversations.schema import Conversation, Message
from chatwright.errors import UserError
from chatwright.tasks.base import Options
from chatwright.tasks.data_task import DataTask
from chatwright.tasks.grading import final_text

Executor = Callable[[str], bool]
"""Runs a whole program away from this process: True if it ended in time and without an error."""

_CODE_BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)\n?```", re.DOTALL)


class CodeTask(DataTask[Options]):
    """A data set of programming problems. Grading runs code, so it needs an executor handed in."""

    max_new_tokens = 512
    executor: Executor | None = None

    def with_executor(self, executor: Executor) -> Self:
        """The same task, able to grade."""
        task = type(self)(self.options)
        task.executor = executor
        return task

    @abstractmethod
    def program(self, conversation: Conversation, reply: Message) -> str:
        """The program that fails unless the reply is right."""

    def grade(self, conversation: Conversation, reply: Message) -> bool:
        """Whether the reply's program passes the row's tests.

        Raises:
            UserError: no executor was handed in.
        """
        if self.executor is None:
            raise UserError(
                "grading runs the model's code, and no executor was handed in to run it safely",
                place=f"task {self.name}",
                hint="grade with task.with_executor(run), where run(program) -> bool runs it in a sandbox",
            )
        return self.executor(self.program(conversation, reply))


def code_of(reply: Message) -> str:
    """The code of a reply: its first block between fences, else all of its final text."""
    text = final_text(reply)
    block = _CODE_BLOCK.search(text)
    return block[1] if block else text
