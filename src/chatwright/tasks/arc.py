"""ARC: science questions of American schools, easy and hard (Clark et al. 2018, arXiv:1803.05457)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from chatwright.conversations.places import Place, read_list, read_mapping, read_text, shown
from chatwright.conversations.schema import Conversation
from chatwright.conversations.task_formats import convert_multiple_choice
from chatwright.settings import Settings
from chatwright.tasks.data_task import ChoiceTask
from chatwright.tasks.task_data import DataPlace, locate

_INLINE = re.compile(
    r"Please choose the correct answer to the question: (.*)\n\n(Answer1: .*)\n\nAnswer format: ", re.DOTALL
)
_LABEL = re.compile(r"(?:^| )(Answer\d): ")


class ArcOptions(Settings):
    """Which of the two sets: `ARC-Easy` or `ARC-Challenge`."""

    subset: Literal["ARC-Easy", "ARC-Challenge"] = "ARC-Easy"


class Arc(ChoiceTask[ArcOptions]):
    """Questions with three to five choices.

    Choices get the letters A to E by their place, also where the exam had 1 to 4 (nanochat keeps those digits): so
    the hub's rows and LLM-Adapters', which lack the labels, say the same.
    """

    name = "arc"
    options_type: type[Settings] = ArcOptions
    splits: tuple[str, ...] = ("train", "validation", "test")

    def place(self, split: str) -> DataPlace:
        """`arc/ARC-Easy/train.json`, or the hub's files in that folder."""
        subset = self.options.subset
        return locate(self.name, (f"arc/{subset}/{split}[.-]*",), f"allenai/ai2_arc:{subset}/{split}")

    def convert(self, row: Any, source: str, index: int) -> Conversation:
        """A row of either layout."""
        place = Place(source, index)
        row = read_mapping(row, place)
        found = (_inline if "instruction" in row else _separate)(row, place)
        return convert_multiple_choice({**found._asdict(), "subset": self.options.subset}, source, index)


class _Question(NamedTuple):
    question: str
    choices: Sequence[str]
    answer: int


def _separate(row: Mapping[str, Any], place: Place) -> _Question:
    """The hub's layout: `question`, `choices: {text: […], label: […]}`, `answerKey`."""
    at = place.at("choices")
    columns = read_mapping(row.get("choices"), at)
    labels, texts = (read_list(columns.get(name), at.at(name)) for name in ("label", "text"))
    if len(labels) != len(texts):
        raise at.error(f"has {len(labels)} labels for {len(texts)} texts")
    return _Question(row.get("question", ""), texts, _find(row.get("answerKey"), labels, place.at("answerKey")))


def _inline(row: Mapping[str, Any], place: Place) -> _Question:
    """LLM-Adapters' layout: question and choices (`Answer1: … Answer2: …`) inside `instruction`; `answer: answer2`."""
    at = place.at("instruction")
    text = read_text(row["instruction"], at)
    match = _INLINE.match(text)
    if not match:
        raise at.error(f"is no question with choices 'Answer1: … Answer2: …': {shown(text)}")
    pieces = _LABEL.split(match[2])
    labels = [label.lower() for label in pieces[1::2]]
    return _Question(match[1], pieces[2::2], _find(row.get("answer"), labels, place.at("answer")))


def _find(key: Any, labels: Sequence[str], place: Place) -> int:
    if key not in labels:
        raise place.error(f"must be one of {', '.join(labels)}, found {shown(key)}")
    return labels.index(key)
