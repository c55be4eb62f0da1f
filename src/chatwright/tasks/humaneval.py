"""HumanEval: functions to write from their docstrings, judged by running tests (Chen et al. 2021, arXiv:2107.03374)."""

from __future__ import annotations

from typing import Any

from chatwright.conversations.schema import Conversation, Message
from chatwright.conversations.task_formats import convert_humaneval
from chatwright.tasks.code_task import CodeTask, code_of, parted_future
from chatwright.tasks.task import NoOptions
from chatwright.tasks.task_data import DataPlace, locate


class HumanEval(CodeTask[NoOptions]):
    """164 beginnings of a Python function; a test set only."""

    name = "humaneval"
    splits: tuple[str, ...] = ("test",)

    def place(self, split: str) -> DataPlace:
        """`humaneval/HumanEval.jsonl.gz`, or the hub's files in `humaneval/openai_humaneval`."""
        files = ("humaneval/HumanEval.*", "humaneval/openai_humaneval/test[.-]*")
        return locate(self.name, files, "openai/openai_humaneval/test")

    def convert(self, row: Any, source: str, index: int) -> Conversation:
        """A row `{"prompt", "canonical_solution", "test", "entry_point"}`; the reply is the whole function."""
        return convert_humaneval(row, source, index)

    def program(self, conversation: Conversation, reply: Message) -> str:
        """Prompt, reply, tests, call of the tests.

        Behind the prompt, a reply may be the body alone, or the whole function: that takes the place of the prompt's,
        which has no body but its docstring. The prompt's imports and helpers serve either.
        """
        test, entry_point = conversation.extra["test"], conversation.extra["entry_point"]
        future, code = parted_future(code_of(reply))
        return f"{future}{conversation.messages[0].text}\n{code}\n\n{test}\n\ncheck({entry_point})\n"
