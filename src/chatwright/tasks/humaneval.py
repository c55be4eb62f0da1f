"""HumanEval: functions to write from their docstrings, judged by running tests (Chen et al. 2021, arXiv:2107.03374)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from chatwright.conversations.schema import Conversation, Message
from chatwright.conversations.task_formats import convert_humaneval
from chatwright.errors import UserError
from chatwright.tasks.data_task import DataTask
from chatwright.tasks.grading import final_text
from chatwright.tasks.task import NoOptions
from chatwright.tasks.task_data import DataPlace, locate

Executor = Callable[[str], bool]
"""Runs a whole program away from this process: True if it ended in time and without an error."""

_CODE_BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)\n?```", re.DOTALL)


class HumanEval(DataTask[NoOptions]):
    """164 beginnings of a Python function; a test set only. Grading runs code, so it needs an executor handed in."""

    name = "humaneval"
    splits: tuple[str, ...] = ("test",)
    max_new_tokens = 512
    executor: Executor | None = None

    def with_executor(self, executor: Executor) -> HumanEval:
        """The same task, able to grade."""
        task = HumanEval(self.options)
        task.executor = executor
        return task

    def place(self, split: str) -> DataPlace:
        """`humaneval/HumanEval.jsonl.gz`, or the hub's files in `humaneval/openai_humaneval`."""
        files = ("humaneval/HumanEval.*", "humaneval/openai_humaneval/test[.-]*")
        return locate(self.name, files, "openai/openai_humaneval/test")

    def convert(self, row: Any, source: str, index: int) -> Conversation:
        """A row `{"prompt", "canonical_solution", "test", "entry_point"}`; the reply is the whole function."""
        return convert_humaneval(row, source, index)

    def grade(self, conversation: Conversation, reply: Message) -> bool:
        """Whether the reply's function passes the row's tests.

        Raises:
            UserError: no executor was handed in.
        """
        if self.executor is None:
            raise UserError(
                "grading runs the model's code, and no executor was handed in to run it safely",
                place=f"task {self.name}",
                hint="grade with task.with_executor(run), where run(program) -> bool runs it in a sandbox",
            )
        return self.executor(program_to_run(conversation, reply))


def program_to_run(conversation: Conversation, reply: Message) -> str:
    """The program that fails unless the reply is right: prompt, reply, tests, call of the tests.

    Behind the prompt, a reply may be the body alone, or the whole function: that takes the place of the prompt's,
    which has no body but its docstring. The prompt's imports and helpers serve either.
    """
    text = final_text(reply)
    block = _CODE_BLOCK.search(text)
    code = block[1] if block else text
    test, entry_point = conversation.extra["test"], conversation.extra["entry_point"]
    return f"{conversation.messages[0].text}\n{code}\n\n{test}\n\ncheck({entry_point})\n"
