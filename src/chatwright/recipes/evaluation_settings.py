"""What a recipe measures while it trains: `eval:`.

These settings stand here since they join what no other room may: `train` never imports `evals`, and which metric tells
the best checkpoint is the recipe's own choice.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field, PositiveInt, model_validator

from chatwright.errors import ConfigError
from chatwright.settings import Settings
from chatwright.tasks.data_task import TrainingTask
from chatwright.tasks.registry import make_task
from chatwright.tasks.task import Task
from chatwright.train.evaluation import LOSSES, PAIR_METRICS

Part = Annotated[float, Field(ge=0, le=1)]


class EvaluationTask(Settings):
    """A task that is measured while training.

    Args:
        task, task_options: as in `data`.
        split: which of its parts; `test` where not given, or the last one of a task that has no test split.
        name: what its metric is called; the task's name where not given.
        limit: at most so many problems, the same ones each time; null takes all.
        samples: replies to each problem; the score is their mean, and where they are right or wrong, `NAME pass@k`
            tells how likely one of k is right.
        temperature: how replies are drawn, 0 takes the most likely token; where not given, as `chatwright eval`: 0 for
            one reply a problem, 0.8 for several.
        max_new_tokens: room for a reply; the task's own where not given.
    """

    task: str
    task_options: dict[str, Any] = Field(default_factory=dict)
    split: str | None = None
    name: str | None = None
    limit: PositiveInt | None = 100
    samples: PositiveInt = 1
    temperature: float | None = Field(None, ge=0)
    max_new_tokens: PositiveInt | None = None

    @property
    def metric(self) -> str:
        """What its score is called."""
        return self.name or self.task

    def make(self) -> Task:
        """The task.

        Raises:
            ConfigError: for an unknown task or option.
        """
        return make_task(self.task, **self.task_options)

    @model_validator(mode="after")
    def _can_be_graded(self) -> EvaluationTask:
        try:
            task = self.make()
        except ConfigError as error:
            raise ValueError("; ".join(error.problems)) from None
        if isinstance(task, TrainingTask):
            raise ValueError(f"{self.task} has no right answers to grade by; hold such data out (heldout.data)")
        if self.split is not None and self.split not in task.splits:
            raise ValueError(f"split {self.split!r}: {self.task} has {', '.join(task.splits)}")
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(f"samples: {self.samples} equal replies at temperature 0; set temperature, or samples: 1")
        if self.metric in LOSSES:
            raise ValueError(f"name: {self.metric} is the held-out data's metric; choose another name")
        return self


class EvaluationSettings(Settings):
    """When a run is evaluated, and on what.

    Args:
        at: parts of the run after which to evaluate: 0 is before training, 1 the end.
        every: besides, after every so many steps. tasks_every: the same for tasks and prompts, which take longer than
            the held-out loss; `every` where not given.
        heldout: the loss and the bits per byte of the held-out data (`heldout`); by default where there are any.
        tasks: tasks to score.
        prompts: prompts whose replies are kept in samples.jsonl, to see the model change.
        prompt_tokens: room for each of these replies.
        best: the metric whose best checkpoint is saved when it's found, kept and marked (`RUN:best`), and that early
            stopping follows. By default the held-out loss, else the first task; then only the best of those
            checkpoints is marked that are saved anyway.
        batch_rows: conversations answered at once, as far as memory allows.
    """

    at: tuple[Part, ...] = (0.0, 1.0)
    every: PositiveInt | None = None
    tasks_every: PositiveInt | None = None
    heldout: bool | None = None
    tasks: tuple[EvaluationTask, ...] = ()
    prompts: tuple[str, ...] = ()
    prompt_tokens: PositiveInt = 64
    best: str | None = None
    batch_rows: PositiveInt = 64

    @model_validator(mode="after")
    def _names_of_their_own(self) -> EvaluationSettings:
        names = [task.metric for task in self.tasks]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"several of eval.tasks are called {', '.join(twice)}; give each a name")
        if not all(prompt.strip() for prompt in self.prompts):
            raise ValueError("eval.prompts holds an empty prompt")
        return self

    def steps(self, num_steps: int) -> frozenset[int]:
        """The steps after which to evaluate, of a run of so many."""
        return self.task_steps(num_steps).union(_regular(self.every, num_steps))

    def task_steps(self, num_steps: int) -> frozenset[int]:
        """Those after which tasks and prompts are measured, too."""
        points = {round(part * num_steps) for part in self.at}
        return frozenset(points.union(_regular(self.tasks_every or self.every, num_steps)))

    def metrics(self, *, has_heldout: bool, pairs: bool = False) -> tuple[str, ...]:
        """Every metric that can tell the best checkpoint; `pairs`: what is held out are preference pairs."""
        losses = (PAIR_METRICS if pairs else LOSSES) if self.measures_heldout(has_heldout) else ()
        return (*losses, *(task.metric for task in self.tasks))

    def measures_heldout(self, has_heldout: bool) -> bool:
        """Whether the held-out loss is measured."""
        return has_heldout if self.heldout is None else self.heldout

    def chosen_best(self, *, has_heldout: bool, pairs: bool = False) -> str | None:
        """The metric that tells the best checkpoint; None where none is measured."""
        return self.best or next(iter(self.metrics(has_heldout=has_heldout, pairs=pairs)), None)

    def problems(self, *, has_heldout: bool, pairs: bool = False) -> Iterator[str]:
        """What can't be as it's asked for, given whether there are held-out data."""
        if self.heldout and not has_heldout:
            yield "eval.heldout is set, but there is no held-out data: set heldout.share or heldout.data"
        metrics = self.metrics(has_heldout=has_heldout, pairs=pairs)
        timed = self.every or self.tasks_every or self.at != EvaluationSettings.model_fields["at"].default
        if timed and not (metrics or self.prompts):
            yield (
                "eval says when to evaluate, but there is no held-out data and nothing else to measure: set "
                "heldout.share or heldout.data, or name eval.tasks or eval.prompts"
            )
        if self.tasks_every and not (self.tasks or self.prompts):
            yield "eval.tasks_every is set, but there are no eval.tasks or eval.prompts"
        if self.best is not None and self.best not in metrics:
            yield f"eval.best: {self.best} isn't measured here; measured are: {', '.join(metrics) or 'none'}"


def _regular(every: int | None, num_steps: int) -> range:
    return range(every, num_steps + 1, every) if every else range(0)
