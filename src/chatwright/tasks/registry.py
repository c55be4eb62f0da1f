"""Every task by its name."""

from __future__ import annotations

import difflib
from typing import Any

from chatwright.errors import ConfigError
from chatwright.settings import build
from chatwright.tasks.arc import Arc
from chatwright.tasks.arithmetic import Arithmetic
from chatwright.tasks.boolq import BoolQ
from chatwright.tasks.copying import Copying
from chatwright.tasks.custom_json import CustomJson
from chatwright.tasks.general import General
from chatwright.tasks.gsm8k import Gsm8k
from chatwright.tasks.humaneval import HumanEval
from chatwright.tasks.ifeval import Ifeval
from chatwright.tasks.instructions import Instructions
from chatwright.tasks.letter_counting import LetterCounting
from chatwright.tasks.mbpp import Mbpp
from chatwright.tasks.mmlu import Mmlu
from chatwright.tasks.persona import Persona
from chatwright.tasks.piqa import Piqa
from chatwright.tasks.simple_spelling import SimpleSpelling
from chatwright.tasks.smoltalk import SmolTalk
from chatwright.tasks.spelling import Spelling
from chatwright.tasks.spelling_bee import SpellingBee
from chatwright.tasks.task import Task

_ALL: tuple[type[Task], ...] = (
    *(Arithmetic, Copying, General, Instructions, LetterCounting, Persona, SimpleSpelling, Spelling, SpellingBee),
    *(Arc, BoolQ, CustomJson, Gsm8k, HumanEval, Ifeval, Mbpp, Mmlu, Piqa, SmolTalk),
)
TASKS: dict[str, type[Task]] = {task.name: task for task in _ALL}
"""Those that make their problems, then those over a data set."""


def make_task(task: str, /, **options: Any) -> Task:
    """The task of that name with its options, such as `make_task("persona", name="Robin", author="Ann")`.

    Raises:
        ConfigError: for an unknown task or option, with the nearest name.
    """
    if task not in TASKS:
        near = difflib.get_close_matches(task, TASKS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(sorted(TASKS))}"
        raise ConfigError([f"task: there is no task {task!r}; {hint}"], source="task")
    chosen = TASKS[task]
    return chosen(build(chosen.options_type, options, f"task {task}"))
