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

_PYTHON = ("python", "py", "python3")
_OPENING = re.compile(r" {0,3}(`{3,})[ \t]*([^\s`]*)[^`]*")  # indented further it is a docstring's
_FUTURE = re.compile(r"^from[ \t]+__future__[ \t]+import[ \t]*(?:\([^)]*\)|[^\n(]*)", re.MULTILINE)


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
    """The code of a reply, with `\\n` at the end of lines.

    The first block between fences that is labelled as Python, else the first without a label, else the first of any
    other label, else all of the final text.
    """
    text = final_text(reply).replace("\r\n", "\n")
    blocks = _blocks(text)
    for labels in (_PYTHON, ("",)):
        for label, code in blocks:
            if label in labels:
                return code
    return blocks[0][1] if blocks else text


def _blocks(text: str) -> list[tuple[str, str]]:
    """Label in lower case, and code, of each block; the last may lack its closing fence, as in a reply cut short.

    A fence is a whole line, and the closing one is no shorter and no further to the right than the opening one: so
    backticks within a docstring close nothing.
    """
    blocks, lines = [], iter(text.split("\n"))
    for line in lines:
        opening = _OPENING.fullmatch(line)
        if opening is None:
            continue
        indent, fence = opening.start(1), opening[1]
        closing = re.compile(rf" {{0,{indent}}}{fence}`*[ \t]*")
        body = []
        for inner in lines:
            if closing.fullmatch(inner):
                break
            body.append(inner.removeprefix(" " * indent))
        blocks.append((opening[2].lower(), "\n".join(body)))
    return blocks


def parted_future(code: str) -> tuple[str, str]:
    """The `from __future__ import` lines of some code, which must begin a program, and the code without them."""
    return "".join(f"{line}\n" for line in _FUTURE.findall(code)), _FUTURE.sub("", code)
