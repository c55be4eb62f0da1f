"""IFEval: prompts with instructions that a program can check (Zhou et al. 2023, arXiv:2311.07911)."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

from chatwright.console import warn
from chatwright.conversations.places import Place, read_list, read_mapping, read_text
from chatwright.conversations.schema import Conversation, Message
from chatwright.settings import Settings
from chatwright.tasks.data_task import DataTask
from chatwright.tasks.grading import final_text
from chatwright.tasks.instruction_checks import CHECKS, FollowingOptions
from chatwright.tasks.task_data import DataPlace, draw_rows, locate

OTHERS = {
    "language:response_language": "which language a text is in",
    "length_constraints:number_sentences": "what a sentence is",
    "change_case:capital_word_frequency": "what a word in capitals is",
    "change_case:english_capital": "whether a text is English",
    "change_case:english_lowercase": "whether a text is English",
}
"""IFEval's instructions that aren't checked here, and what other programs' tables would have to say."""


class Ifeval(DataTask[FollowingOptions]):
    """541 prompts without reference replies, to grade only; those that hold instructions of `OTHERS` are left out."""

    name = "ifeval"
    options_type: type[Settings] = FollowingOptions
    splits: tuple[str, ...] = ("test",)
    max_new_tokens = 1024

    def place(self, split: str) -> DataPlace:
        """`ifeval/ifeval_input_data.jsonl`, the original's `ifeval/input_data.jsonl`, or the hub's rows."""
        return locate(self.name, ("ifeval/*input_data[.]*", "ifeval/train[.-]*"), "google/IFEval/train")

    def build(self, split: str, count: int | None, seed: int) -> list[Conversation]:
        """The first `count` prompts that can be checked whole."""
        rows = [self.convert(raw.value, raw.source, raw.number) for raw in draw_rows(self.place(split), None, seed)]
        missing = [sorted({name for name, _ in row.extra["instructions"]} - set(CHECKS)) for row in rows]
        if left_out := Counter(name for names in missing for name in names):
            _tell(sum(map(bool, missing)), len(rows), tuple(sorted(left_out.items())))
        return [row for row, names in zip(rows, missing, strict=True) if not names][:count]

    def convert(self, row: Any, source: str, index: int) -> Conversation:
        """A row `{"prompt", "instruction_id_list", "kwargs"}`; the hub fills each kwargs with nulls for all others'."""
        place = Place(source, index)
        row = read_mapping(row, place)
        names = read_list(row.get("instruction_id_list"), at := place.at("instruction_id_list"))
        given = read_list(row.get("kwargs"), place.at("kwargs"))
        if len(names) != len(given) or not names:
            raise at.error(f"has {len(names)} ids for {len(given)} kwargs")
        for name in names:
            if name not in CHECKS and name not in OTHERS:
                raise at.error(f"{name!r} is no instruction of IFEval")
        kwargs = (read_mapping(each or {}, place.at("kwargs").at(place_)) for place_, each in enumerate(given))
        chosen = tuple(
            (name, {key: value for key, value in each.items() if value is not None})
            for name, each in zip(names, kwargs, strict=True)
        )
        asked = Message.of("user", read_text(row.get("prompt"), place.at("prompt")))
        return Conversation((asked, Message("assistant", ())), source=source, row=index, extra={"instructions": chosen})

    def grade(self, conversation: Conversation, reply: Message) -> bool | float:
        """Whether the reply follows the instructions, strictly."""
        return self.options.grade(final_text(reply), conversation.extra["instructions"])


@cache
def _tell(rows: int, total: int, left_out: tuple[tuple[str, int], ...]) -> None:
    """Say once what isn't graded."""
    names = ", ".join(f"{name} ({count})" for name, count in left_out)
    warn(f"ifeval: {rows} of {total} prompts are left out, since they hold instructions not checked here: {names}")
