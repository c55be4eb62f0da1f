"""From `--tasks arc:ARC-Easy,gsm8k,chatcore` to tasks."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Protocol, cast, runtime_checkable

from chatwright.checkpoints.imports import resolve_model
from chatwright.conversations.schema import Conversation
from chatwright.errors import ConfigError, UserError
from chatwright.inference.sandbox import sandbox_executor
from chatwright.inspection.evaluation_texts import SUBSETS
from chatwright.tasks.data_task import TrainingTask
from chatwright.tasks.registry import TASKS, make_task
from chatwright.tasks.task import Task

CHATCORE = {
    "arc:ARC-Easy": 0.25,
    "arc:ARC-Challenge": 0.25,
    "mmlu": 0.25,
    "gsm8k": 0.0,
    "humaneval": 0.0,
    "spelling_bee": 0.0,
}
"""The tasks of nanochat's ChatCORE, and the accuracy that it takes for guessing at each (scripts/chat_eval.py)."""
ALL = "all"
Executor = Callable[[str], bool]
"""Runs a whole program away from this process: True if it ended in time and without an error."""


@runtime_checkable
class RunsCode(Protocol):
    """A task that runs the model's programs to grade them."""

    def with_executor(self, executor: Executor) -> Task:
        """The same task, able to grade."""
        ...


@dataclass(frozen=True, slots=True)
class Selected:
    """A task with its options, by the name that the user gave."""

    label: str
    task: Task

    def split(self, wanted: str | None) -> str:
        """The split to measure on: the one asked for, else `test`, else the task's last."""
        if wanted is not None:
            return wanted
        return "test" if "test" in self.task.splits else self.task.splits[-1]

    def with_executor(self, make: Callable[[], Executor]) -> Selected:
        """The same, able to run the model's code where grading needs it."""
        return replace(self, task=self.task.with_executor(make())) if isinstance(self.task, RunsCode) else self

    def problems(self, split: str, limit: int | None, seed: int) -> list[Conversation]:
        """The first problems of a split in the seed's order.

        Raises:
            ConfigError: there is no such split. UserError: its data isn't at hand, or there are no problems.
        """
        found = self.task.conversations(split, limit, seed)
        if not found:
            raise UserError(f"there are no problems in the split {split}", place=f"task {self.label}")
        return found


def armed(selected: Sequence[Selected], allow_unsafe: bool) -> list[Selected]:
    """The tasks, with the sandbox for those that run code; it is probed once, and only if need be.

    Raises:
        SandboxError: a task runs code, this machine can't isolate it, and `allow_unsafe` isn't set.
    """

    @cache
    def executor() -> Executor:
        return sandbox_executor(allow_unsafe=allow_unsafe)

    return [each.with_executor(executor) for each in selected]


def look_ahead(names: Iterable[str], selected: Iterable[Selected], split: str | None, seed: int) -> None:
    """Find what would only be missing hours later: a model, a split, a task's data.

    Raises:
        ModelError: there is no such model. ConfigError: no such split. UserError: a task's data isn't at hand.
    """
    for name in names:
        resolve_model(name)
    for each in selected:
        each.problems(each.split(split), 1, seed)


def select_tasks(text: str) -> list[Selected]:
    """The tasks that a comma-separated list names, each once.

    A name is a task, a group (`chatcore`, `all`), or a task with options behind colons: `mmlu:anatomy` sets the first
    of its options, `spelling_bee:size=500` a named one. `arc` means both of its sets.

    Raises:
        ConfigError: a task, option or value that doesn't exist, with the nearest name.
        UserError: a task that can't be graded.
    """
    wanted = [name.strip() for name in text.split(",")]
    if not all(wanted):
        raise ConfigError([f"tasks: name them as in arc,gsm8k (found {text!r})"], source="eval")
    names = dict.fromkeys(one for name in wanted for one in _expand(name))
    return [_select(name) for name in names]


def _expand(name: str) -> Iterator[str]:
    if name == "chatcore":
        yield from CHATCORE
    elif name == ALL:
        yield from gradable_tasks()
    elif name in SUBSETS:
        yield from (f"{name}:{subset}" for subset in SUBSETS[name])
    else:
        yield name


def gradable_tasks() -> list[str]:
    """Every task that can be graded and needs no options, subsets apart."""
    gradable = [name for name, task in TASKS.items() if not _only_trains(task)]
    return [one for name in gradable for one in (_expand(name) if name in SUBSETS else (name,))]


def _only_trains(task: type[Task]) -> bool:
    return issubclass(task, TrainingTask)


def _select(label: str) -> Selected:
    name, *given = label.split(":")
    if name not in TASKS:
        known = ["chatcore", ALL, *gradable_tasks()]
        near = difflib.get_close_matches(name, [*TASKS, "chatcore", ALL], n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? Known here: " if near else "known here: "
        raise ConfigError([f"tasks: there is no task {name!r}; {hint}{', '.join(known)}"], source="eval")
    if _only_trains(TASKS[name]):
        raise UserError(
            "these conversations have no right answer to grade by",
            place=f"task {name}",
            hint=f"measure the loss on them: --heldout task:{name}",
        )
    return Selected(label, make_task(name, **_options(name, given)))


def _options(name: str, given: Sequence[str]) -> dict[str, object]:
    """The options behind a task's name: `key=value`, or the bare value of its first option."""
    fields = list(TASKS[name].options_type.model_fields)
    options: dict[str, object] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals:
            if not fields:
                raise ConfigError([f"tasks: {name} has no options (found {text!r})"], source="eval")
            key, value = fields[0], text
        options[key] = int(value) if value.isdecimal() else cast(object, value)
    return options
