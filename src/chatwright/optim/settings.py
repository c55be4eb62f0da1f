"""Settings of the optimizer and of the learning-rate schedule."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from chatwright.settings import Settings


class Rule(Settings):
    """What is different for the parameters whose name matches; the first matching rule decides.

    Args:
        pattern: glob on the parameter name, such as `model.layers.[0-3].*` or `*lora_B`.
        learning_rate: absolute, before the schedule. multiplier: times the optimizer's learning rate.
        weight_decay: for all matching parameters, vectors included; None keeps the optimizer's.
    """

    pattern: str = Field(min_length=1)
    learning_rate: NonNegativeFloat | None = None
    multiplier: NonNegativeFloat | None = None
    weight_decay: NonNegativeFloat | None = None

    @model_validator(mode="after")
    def _says_one_thing(self) -> Rule:
        if self.learning_rate is not None and self.multiplier is not None:
            raise ValueError("give either learning_rate or multiplier, not both")
        if self.learning_rate is None and self.multiplier is None and self.weight_decay is None:
            raise ValueError("changes nothing: give learning_rate, multiplier or weight_decay")
        return self


class OptimizerSettings(Settings):
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101), in float32 or with 8-bit moments (arXiv:2110.02861).

    Args:
        name: `adamw`, or `adamw8bit` through bitsandbytes.
        learning_rate: before the schedule's multiplier.
        weight_decay: decoupled; on matrices only unless a rule says otherwise.
        max_grad_norm: gradients with a larger global norm are scaled down to it; None = never.
        rules: layered rates; the first rule that matches a parameter decides.
    """

    name: Literal["adamw", "adamw8bit"] = "adamw"
    learning_rate: PositiveFloat = 2e-5
    betas: tuple[float, float] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat | None = 1.0
    rules: tuple[Rule, ...] = ()

    @model_validator(mode="after")
    def _betas_below_one(self) -> OptimizerSettings:
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"betas must be at least 0 and below 1, found {self.betas}")
        return self


MINIMIND_FORMS = ("minimind_cosine", "minimind_notebook_cosine")


class ScheduleSettings(Settings):
    """How the learning rate moves with progress, the planned fraction of supervised tokens.

    Args:
        name: `constant`, `linear`, `cosine`, `wsd` (constant, then linear down over the last `decay_fraction`), and
            MiniMind's two: `minimind_cosine` = 0.1 + 0.45·(1 + cos πx), from 1 to 0.1 (its trainer), and
            `minimind_notebook_cosine` = 0.1 + 0.5·(1 + cos πx), from 1.1 to 0.1 (its notebook).
        warmup_fraction: linear rise over this share of the plan. warmup_steps: over so many steps instead.
        min_ratio: the multiplier at the end.
        decay_fraction: share of the plan that `wsd` spends going down.
        counted_from: progress of a step is what was done before it (`start`) or including it (`end`).
    """

    name: Literal["constant", "linear", "cosine", "wsd", "minimind_cosine", "minimind_notebook_cosine"] = "cosine"
    warmup_fraction: float = Field(0.0, ge=0, lt=1)
    warmup_steps: PositiveInt | None = None
    min_ratio: float = Field(0.0, ge=0, le=1)
    decay_fraction: float = Field(0.2, gt=0, le=1)
    counted_from: Literal["start", "end"] = "start"

    @model_validator(mode="after")
    def _possible(self) -> ScheduleSettings:
        if self.warmup_fraction and self.warmup_steps:
            raise ValueError("give either warmup_fraction or warmup_steps, not both")
        if self.min_ratio and self.name in MINIMIND_FORMS:
            raise ValueError(f"{self.name} always ends at 0.1; min_ratio can't be set")
        return self
