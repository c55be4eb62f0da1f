"""MBPP: short Python programs from a sentence, judged by running tests (Austin et al. 2021, arXiv:2108.07732)."""

from __future__ import annotations

from typing import Any, Literal

from chatwright.conversations.schema import Conversation, Message
from chatwright.conversations.task_formats import convert_mbpp
from chatwright.settings import Settings
from chatwright.tasks.code_task import CodeTask, code_of, parted_future
from chatwright.tasks.task_data import DataPlace, locate


class MbppOptions(Settings):
    """Which rows: `full`, all 974 of them, or `sanitized`, the 427 that were verified by hand."""

    subset: Literal["full", "sanitized"] = "full"


class Mbpp(CodeTask[MbppOptions]):
    """Problems for beginners; the question shows the tests, which alone name the function."""

    name = "mbpp"
    options_type: type[Settings] = MbppOptions
    splits: tuple[str, ...] = ("train", "validation", "test")

    def place(self, split: str) -> DataPlace:
        """`mbpp/full/test.jsonl` and its like, as the hub has them."""
        subset = self.options.subset
        hub = f"google-research-datasets/mbpp:{subset}/{split}"
        return locate(self.name, (f"mbpp/{subset}/{split}[.-]*",), hub)

    def convert(self, row: Any, source: str, index: int) -> Conversation:
        """A row of either subset: `text` or `prompt`, `code`, `test_list`."""
        return convert_mbpp(row, source, index)

    def program(self, conversation: Conversation, reply: Message) -> str:
        """What the tests import or set up, the reply's code, the tests.

        The blank line between keeps a backslash at the code's end from swallowing the first test.
        """
        extra = conversation.extra
        setup = [*(extra.get("test_imports") or ()), extra.get("test_setup_code") or ""]
        future, code = parted_future(code_of(reply))
        return future + "\n".join([*setup, code, "", *extra["test_list"], ""])
