"""The texts of the evaluations that training rows are compared with: questions, choices and answers of test splits.

Every task gives conversations, so one reading fits them all: the last user message is the question (with its choices,
where the task has any), the last assistant message the answer.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from chatwright.conversations.schema import Conversation
from chatwright.errors import UserError
from chatwright.tasks.registry import TASKS, make_task
from chatwright.tasks.task import Task

TextField = Literal["question", "choices", "answer"]

SPLITS = ("test", "validation")
"""What tasks are graded on, by preference; see `compared_split`."""
SUBSETS = {"arc": ("ARC-Easy", "ARC-Challenge")}
"""Tasks whose subsets are evaluations of their own; `arc` means both, `arc:ARC-Easy` one."""
NOT_HERE = "the data isn't here; set CHATWRIGHT_DATA, or name it under contamination.evaluations to fetch it"
NO_EVALUATIONS = ("smoltalk",)
"""Tasks with a test split that nobody grades."""

SAME_FRAME = 20
"""From so many questions on, the words that all of them begin or end with are the task's, not the question's."""
SHORT_STEM = 13
"""A multiple-choice question of fewer words ("Which of these is true?") is also looked for with its choices: without
letters, and with the letters where this program puts them."""

_LABEL = r"\(?[A-J][.):]\s+"
_CHOICE = re.compile(rf"^\s*(?:-\s+.*=[A-J]|{_LABEL}.*)$")
_AROUND_CHOICE = re.compile(rf"^\s*(?:-\s+|{_LABEL})|=[A-J]$")


@dataclass(frozen=True, slots=True)
class EvalText:
    """A piece of one evaluation item.

    Args:
        task: the task's name, with its subset where it has several: `arc:ARC-Easy`. split: such as `test`.
        source, row: where the task took the item from.
        text: as the task has it, without what all its items say.
        field: `question`, `choices` (their texts, behind the question where that is short) or `answer`.
    """

    task: str
    split: str
    source: str
    row: int
    text: str
    field: TextField

    @property
    def made_here(self) -> bool:
        """Whether a task made it from a template, which its train split shares: then only all of it tells."""
        return self.source.startswith("task:")

    @property
    def item(self) -> tuple[str, str, str, int]:
        """What the pieces of one item have in common."""
        return self.task, self.split, self.source, self.row


@dataclass(frozen=True, slots=True)
class Evaluations:
    """What could be collected.

    Args:
        texts: of all evaluations, in their order. items: how many items each gave.
        unchecked: the evaluations whose data isn't at hand, and why.
    """

    texts: tuple[EvalText, ...]
    items: Mapping[str, int]
    unchecked: Mapping[str, str] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        """sha256 of all texts: what an index of them can be kept under."""
        digest = hashlib.sha256()
        for text in self.texts:
            digest.update(repr((*text.item, text.field, text.text)).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()


def collect_evaluations(names: Sequence[str] | None = None) -> Evaluations:
    """The texts of the named evaluations, or of all whose data is at hand: made here, or below `CHATWRIGHT_DATA`.

    Args:
        names: task names, such as `mmlu`, `arc` or `arc:ARC-Easy`; their data is fetched from the hub where it isn't
            here. None takes all that need no fetching.

    Raises:
        UserError: an evaluation asked for by name is unknown, or its data can't be had.
    """
    texts: list[EvalText] = []
    items: dict[str, int] = {}
    unchecked: dict[str, str] = {}
    for name, options in _expand(sorted(_evaluations()) if names is None else names):
        try:
            task = make_task(name.partition(":")[0], **options)
            split = compared_split(name) or SPLITS[0]
            if names is None and task.fingerprint(split) is None:
                unchecked[name] = NOT_HERE
                continue
            conversations = task.conversations(split)
        except UserError as error:
            if names is not None:
                raise
            unchecked[name] = error.message
            continue
        items[name] = len(conversations)
        texts += evaluation_texts(name, split, conversations)
    return Evaluations(tuple(texts), items, unchecked)


def evaluation_name(task: Task) -> str:
    """What contamination reports call a task as an evaluation: `gsm8k`, `arc:ARC-Easy`.

    A subject of MMLU is counted with all of `mmlu`, whose rows are compared together.
    """
    return f"{task.name}:{task.options.subset}" if task.name in SUBSETS else task.name


def _evaluations() -> list[str]:
    return [name for name in TASKS if compared_split(name) is not None and name not in NO_EVALUATIONS]


def compared_split(name: str) -> str | None:
    """The split of an evaluation that rows are compared with, the one that it is graded on; None for no evaluation.

    `test`, or `validation` where no test split is out (BoolQ, PIQA).
    """
    splits = TASKS[name.partition(":")[0]].splits if name.partition(":")[0] in TASKS else ()
    return next((split for split in SPLITS if split in splits), None)


def _expand(names: Iterable[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Each evaluation once, with the options of its task."""
    seen = set()
    for name in names:
        task, _, subset = name.partition(":")
        for one in (subset,) if subset else SUBSETS.get(task, ("",)):
            label = f"{task}:{one}" if one else task
            if label not in seen:
                seen.add(label)
                yield label, {"subset": one} if one else {}


def evaluation_texts(task: str, split: str, conversations: Iterable[Conversation]) -> list[EvalText]:
    """The texts of one task's items; pieces of which nothing is left are left out."""
    items = list(conversations)
    questions = [_parted(question) for question in without_frame([_last(item, "user") for item in items])]
    asked = Counter(stem for stem, _, _ in questions)
    found = []
    for item, (stem, choices, lettered) in zip(items, questions, strict=True):
        pieces: list[tuple[TextField, str]] = []
        short = len(stem.split()) < SHORT_STEM
        if not choices or not short or asked[stem] == 1:  # "Which of these is true?" is asked of many choices
            pieces.append(("question", stem))
        if choices and short:
            pieces += [("choices", f"{stem}\n{choices}"), ("choices", f"{stem}\n{lettered}")]
        elif choices:
            pieces.append(("choices", choices))
        answer = _last(item, "assistant").removeprefix(_last(item, "user"))  # HumanEval's reply begins with the prompt
        for kind, text in [*pieces, ("answer", answer)]:
            if text.strip() and not (kind == "answer" and item.source.startswith("task:")):
                found.append(EvalText(task, split, item.source, item.row, text, kind))
    return found


def without_frame(texts: Sequence[str]) -> list[str]:
    """The texts without the words that all of them begin with and end with; unchanged where there are only a few."""
    if len(texts) < SAME_FRAME:
        return list(texts)
    begin = _words_at_start(texts)
    rest = [text[begin:] for text in texts]
    end = _words_at_start([text[::-1] for text in rest])
    return [text[: len(text) - end] for text in rest]


def _words_at_start(texts: Sequence[str]) -> int:
    """How many characters all texts begin with, up to the last one that is white space."""
    first, last = min(texts), max(texts)  # what these two share, all do
    same = next((i for i, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first))
    return len(re.sub(r"\S*\Z", "", first[:same]))


def _parted(question: str) -> tuple[str, str, str]:
    """The question, its choices and its choices with their letters; no choices unless two or more lines look so."""
    lines = question.split("\n")
    listed = [line for line in lines if _CHOICE.match(line)]
    if len(listed) < 2:
        return question, "", ""
    stem = "\n".join(line for line in lines if not _CHOICE.match(line)).strip()
    return stem, "\n".join(_AROUND_CHOICE.sub("", line) for line in listed), "\n".join(listed)


def _last(conversation: Conversation, role: str) -> str:
    return next((message.text for message in reversed(conversation.messages) if message.role == role), "")
