"""GSM8K: school mathematics in words, worked out with a calculator (Cobbe et al. 2021, arXiv:2110.14168)."""

from __future__ import annotations

from typing import Any, Literal

from chatwright.conversations.schema import Conversation, Message
from chatwright.conversations.task_formats import convert_gsm8k
from chatwright.settings import Settings
from chatwright.tasks.data_task import DataTask
from chatwright.tasks.grading import marked_number
from chatwright.tasks.task_data import DataPlace, locate


class Gsm8kOptions(Settings):
    """Which wording of the solutions: `main`, or `socratic` with a question before each step."""

    subset: Literal["main", "socratic"] = "main"


class Gsm8k(DataTask[Gsm8kOptions]):
    """Word problems; each calculator mark `<<48/2=24>>` of a solution becomes a call and its result, as in nanochat."""

    name = "gsm8k"
    options_type: type[Settings] = Gsm8kOptions
    max_new_tokens = 512

    def place(self, split: str) -> DataPlace:
        """`gsm8k/train.jsonl` (`gsm8k/train_socratic.jsonl`), or the hub's files in `gsm8k/main`."""
        subset = self.options.subset
        original = f"gsm8k/{split}[.]*" if subset == "main" else f"gsm8k/{split}_{subset}.*"
        return locate(self.name, (original, f"gsm8k/{subset}/{split}[.-]*"), f"openai/gsm8k:{subset}/{split}")

    def convert(self, row: Any, source: str, index: int) -> Conversation:
        """A row `{"question", "answer"}`."""
        return convert_gsm8k(row, source, index)

    def grade(self, conversation: Conversation, reply: Message) -> bool:
        """Whether the numbers behind `####` are the same; commas and trailing zeros don't matter."""
        said = marked_number(reply.text)
        return said is not None and said == marked_number(conversation.messages[-1].text)
