"""SmolTalk: general conversations, in the selection for small models (Ben Allal et al. 2025, arXiv:2502.02737)."""

from __future__ import annotations

from typing import Any

from chatwright.conversations.converters import convert
from chatwright.conversations.schema import Conversation
from chatwright.tasks.data_task import TrainingTask
from chatwright.tasks.task import NoOptions
from chatwright.tasks.task_data import DataPlace, locate


class SmolTalk(TrainingTask[NoOptions]):
    """About 460,000 train and 24,000 test conversations of several turns, some with a system prompt."""

    name = "smoltalk"

    def place(self, split: str) -> DataPlace:
        """`smoltalk/train.jsonl` and its like, or the hub's files in `smoltalk/data`."""
        files = (f"smoltalk/{split}[.-]*", f"smoltalk/data/{split}[.-]*")
        return locate(self.name, files, f"HuggingFaceTB/smol-smoltalk/{split}")

    def convert(self, row: Any, source: str, index: int) -> Conversation:
        """A row `{"messages": [{"role", "content"}, …]}`."""
        return convert(row, "messages", source, index)
