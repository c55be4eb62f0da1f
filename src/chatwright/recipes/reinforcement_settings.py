"""Settings of the stage `rl`: how many replies are drawn and how, and what becomes of their rewards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, field_validator

from chatwright.conversations.data_settings import DataSettings
from chatwright.errors import ConfigError
from chatwright.inference.tool_choice import TOOL_NAMES
from chatwright.settings import Settings
from chatwright.tasks.data_task import TrainingTask
from chatwright.tasks.registry import make_task


class RlSettings(Settings):
    """Reinforcement by a task's own grades (GRPO, Shao et al. 2024, arXiv:2402.03300, without its reference model).

    How many problems a step asks is `packing.examples_per_step`.

    Args:
        samples: replies to each problem; their mean reward is what each is measured by.
        temperature, top_k, top_p, stop: how replies are drawn, see `inference.sampling.SamplingSettings`. Trained are
            log-probabilities at temperature 1 over the whole vocabulary: with other values than 1, null and 1 the
            replies come from a somewhat other policy than the one that is trained.
        max_new_tokens: room for a reply, tool results included; one that doesn't end in it gets the reward 0.
        tools: what the model may call; `[]` for none. max_tool_calls: a reply that calls more often is unfinished.
        advantage: `mean`: reward − mean of the group (Liu et al. 2025, arXiv:2503.20783; nanochat);
            `mean_std`: that, divided by the group's standard deviation (GRPO).
        normalize: what a step's sum is divided by: its drawn tokens (`token`: Yu et al. 2025, DAPO, arXiv:2503.14476),
            or, the mean of each reply's tokens first, its replies (`sequence`: GRPO).
        batch_rows: replies drawn at once, as far as memory allows.
    """

    samples: int = Field(16, ge=2)
    temperature: float = Field(1.0, gt=0)
    top_k: PositiveInt | None = None
    top_p: float = Field(1.0, gt=0, le=1)
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    max_new_tokens: PositiveInt = 256
    tools: tuple[str, ...] = ("calculator",)
    max_tool_calls: PositiveInt = 8
    advantage: Literal["mean", "mean_std"] = "mean"
    normalize: Literal["token", "sequence"] = "token"
    batch_rows: PositiveInt = 128

    @field_validator("tools")
    @classmethod
    def _known_tools(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in names if name not in TOOL_NAMES]
        if unknown:
            raise ValueError(f"there is no tool {unknown[0]!r}; choose from {', '.join(TOOL_NAMES)}, or give []")
        return names


def against_rl(data: Sequence[DataSettings], packing_by: str, *, streamed: bool) -> Iterator[str]:
    """What a recipe of the stage `rl` can't be.

    Args:
        data: its entries. packing_by: `packing.by`.
    """
    if packing_by != "examples":
        yield "a step asks so many problems: set packing.by: examples, and packing.examples_per_step"
    if streamed:
        yield "its problems must be known before: remove streaming"
    for number, entry in enumerate(data):
        if entry.task is None:
            yield f"data.{number} ({entry.source_name}) has no grade for a reply: name a task (data: [{{task: gsm8k}}])"
            continue
        try:
            task = make_task(entry.task, **entry.task_options)
        except ConfigError as error:
            yield from (f"data.{number}: {problem}" for problem in error.problems)
            continue
        if isinstance(task, TrainingTask):
            yield f"data.{number}: the task {entry.task} has no right answers to grade by"


def rl_account(settings: RlSettings, problems_per_step: int) -> str:
    """What a plan of rows doesn't tell of a run that draws its own replies."""
    return (
        "stage rl: tokens here are those of the reference replies, which aren't trained; a step draws and trains "
        f"{settings.samples} replies to each of {problems_per_step:,} problems, of up to {settings.max_new_tokens:,} "
        "tokens"
    )
