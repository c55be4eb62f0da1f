"""BoolQ: yes or no, by a passage of Wikipedia (Clark et al. 2019, arXiv:1905.10044)."""

from __future__ import annotations

from typing import Any

from chatwright.conversations.places import Place, read_mapping, read_text, shown
from chatwright.conversations.schema import Conversation
from chatwright.conversations.task_formats import convert_multiple_choice
from chatwright.tasks.data_task import ChoiceTask
from chatwright.tasks.task import NoOptions
from chatwright.tasks.task_data import DataPlace, locate


class BoolQ(ChoiceTask[NoOptions]):
    """Questions that people asked a search engine; graded on the validation split, as the test split is not out."""

    name = "boolq"
    splits: tuple[str, ...] = ("train", "validation")

    def place(self, split: str) -> DataPlace:
        """`boolq/validation.jsonl`, or the original `boolq/dev.jsonl`, or the hub's files in `boolq/data`."""
        files = (f"boolq/{split}[.-]*", f"boolq/data/{split}[.-]*", *(("boolq/dev.*",) if split != "train" else ()))
        return locate(self.name, files, f"google/boolq/{split}")

    def convert(self, row: Any, source: str, index: int) -> Conversation:
        """A row `{"question", "passage", "answer": true}`; the choices are yes (A) and no (B)."""
        place = Place(source, index)
        row = read_mapping(row, place)
        question, passage = (read_text(row.get(name), place.at(name)).strip() for name in ("question", "passage"))
        answer = row.get("answer")
        if not isinstance(answer, bool):
            raise place.at("answer").error(f"must be true or false, found {shown(answer)}")
        asked = f"{passage}\n\nQuestion: {question}{'' if question.endswith('?') else '?'}"
        found = {"question": asked, "choices": ["yes", "no"], "answer": 0 if answer else 1}
        return convert_multiple_choice(found, source, index)
