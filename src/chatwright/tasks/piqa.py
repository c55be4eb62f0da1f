"""PIQA: which of two ways to do something works in the physical world (Bisk et al. 2020, arXiv:1911.11641)."""

from __future__ import annotations

from typing import Any

from chatwright.conversations.places import Place, read_mapping, read_text, shown
from chatwright.conversations.schema import Conversation
from chatwright.conversations.task_formats import convert_multiple_choice
from chatwright.tasks.data_task import ChoiceTask
from chatwright.tasks.task import NoOptions
from chatwright.tasks.task_data import DataPlace, locate


class Piqa(ChoiceTask[NoOptions]):
    """Goals with two solutions; graded on the validation split, since the test split's labels aren't out."""

    name = "piqa"
    splits: tuple[str, ...] = ("train", "validation")

    def place(self, split: str) -> DataPlace:
        """`piqa/validation.jsonl` and its like, or the hub's files in `piqa/plain_text`."""
        files = (f"piqa/{split}[.-]*", f"piqa/plain_text/{split}[.-]*")
        return locate(self.name, files, f"ybisk/piqa:plain_text/{split}")

    def convert(self, row: Any, source: str, index: int) -> Conversation:
        """A row `{"goal", "sol1", "sol2", "label": 0}`."""
        place = Place(source, index)
        row = read_mapping(row, place)
        goal, *solutions = (read_text(row.get(name), place.at(name)) for name in ("goal", "sol1", "sol2"))
        label = row.get("label")
        if label not in (0, 1) or isinstance(label, bool):
            raise place.at("label").error(f"must be 0 or 1, found {shown(label)}")
        return convert_multiple_choice({"question": goal, "choices": solutions, "answer": label}, source, index)
