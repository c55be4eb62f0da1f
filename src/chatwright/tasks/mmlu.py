"""MMLU: four-way questions of 57 subjects (Hendrycks et al. 2021, arXiv:2009.03300)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from chatwright.conversations.hub import HUB_PREFIX
from chatwright.conversations.places import Place, read_mapping
from chatwright.conversations.schema import Conversation
from chatwright.conversations.task_formats import convert_multiple_choice
from chatwright.settings import Settings
from chatwright.tasks.data_task import ChoiceTask
from chatwright.tasks.task_data import DataPlace, locate

AUXILIARY = "auxiliary_train"


class MmluOptions(Settings):
    """Which questions: `all` subjects, one subject such as `college_biology`, or `auxiliary_train` (to train on)."""

    subset: str = Field("all", pattern=r"^[a-z_]+$")


class Mmlu(ChoiceTask[MmluOptions]):
    """Questions with four choices; only `auxiliary_train` has a train split, and it has no other."""

    name = "mmlu"
    options_type: type[Settings] = MmluOptions
    splits: tuple[str, ...] = ("test", "validation", "dev")

    def __init__(self, options: MmluOptions) -> None:
        super().__init__(options)
        if options.subset == AUXILIARY:
            self.splits = ("train",)

    def place(self, split: str) -> DataPlace:
        """`mmlu/test/anatomy_test.csv` and its like, or the hub's files in `mmlu/all` and its like."""
        subset = self.options.subset
        subject = "*" if subset == "all" else subset
        files = (f"mmlu/{split}/{subject}_{split}.csv", f"mmlu/{subset}/{split}[.-]*")
        return locate(self.name, files, f"cais/mmlu:{subset}/{split}")

    def convert(self, row: Any, source: str, index: int) -> Conversation:
        """A row of either layout: a list `choices` (hub), or columns `choice0` to `choice3` (CSV)."""
        place = Place(source, index)
        row = read_mapping(row, place)
        row = read_mapping(row.get("train", row), place.at("train"))  # the hub wraps the rows of auxiliary_train
        return convert_multiple_choice({**row, "subject": _subject(row, source)}, source, index)


def _subject(row: Mapping[str, Any], source: str) -> str:
    """As the row says, else as its file is called: `anatomy_test.csv`."""
    if "subject" in row or source.startswith(HUB_PREFIX):
        return str(row.get("subject", ""))
    return Path(source).stem.rpartition("_")[0]
