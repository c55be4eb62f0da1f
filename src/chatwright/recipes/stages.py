"""The stages of training: each is data + objective + defaults; one trainer serves all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chatwright.preparation.crew import Crew
from chatwright.recipes.data import build_rows
from chatwright.recipes.model import ModelSetup
from chatwright.recipes.preferences import build_pairs, dpo_objective, reward_objective
from chatwright.recipes.reinforcement import build_rollouts, rollout_objective
from chatwright.recipes.run_settings import RunSettings
from chatwright.runtime import Runtime
from chatwright.train.objectives import Objective, next_token_nll

if TYPE_CHECKING:
    from chatwright.recipes.streaming import TrainingData

BuildData = Callable[[RunSettings, Mapping[str, Any] | None, Crew | None], "TrainingData"]
BuildObjective = Callable[[RunSettings, "TrainingData", ModelSetup, Runtime], Objective]


def _next_token(settings: RunSettings, data: TrainingData, model: ModelSetup, runtime: Runtime) -> Objective:
    return next_token_nll


@dataclass(frozen=True, slots=True)
class Stage:
    """A kind of training.

    Args:
        summary: what it does, in a line.
        build_data: recipe, rows in memory or None, ranks → what is trained on (see `recipes.data.build_data`).
        build_objective: recipe, data, model, ranks → what a step minimizes.
    """

    summary: str
    build_data: BuildData = build_rows
    build_objective: BuildObjective = _next_token


STAGES: dict[str, Stage] = {
    "pretrain": Stage("plain text: every token"),
    "mid": Stage("conversations: every token"),
    "sft": Stage("conversations: the replies"),
    "dpo": Stage("pairs: the better of two replies, against the model before", build_pairs, dpo_objective),
    "reward": Stage("pairs: a score that is higher for the better of two replies", build_pairs, reward_objective),
    "rl": Stage("problems: the model's own replies, by their reward", build_rollouts, rollout_objective),
}
"""Every stage by the name that a recipe gives."""


def stage_of(settings: RunSettings) -> Stage:
    """The stage of a recipe."""
    return STAGES[settings.stage]
