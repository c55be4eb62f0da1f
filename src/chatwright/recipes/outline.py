"""What a recipe alone says of its run: no row is read or fetched, and tokenizer and model may be yet to be trained.

Steps and tokens are those of runs whose length the recipe gives (streamed ones, and `train.max_steps` as a bound); how
long other runs are, their data decide.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from chatwright.errors import ModelError
from chatwright.models.config import DecoderConfig
from chatwright.optim.schedules import multipliers
from chatwright.recipes.data import prepare_text
from chatwright.recipes.model_figures import ModelFigures, figures_of, model_figures, trained_parameters
from chatwright.recipes.new_model import new_config
from chatwright.recipes.planning import some_rates
from chatwright.recipes.run_settings import RunSettings

FULL = "counted as if every pack were full and every example had max_tokens: the run takes no more than this"
BY_DATA = "how many steps and tokens the run takes isn't known before its data are read"
BY_REPLIES = "how many tokens the run takes, the replies decide that the model gives to its problems"


@dataclass(frozen=True, slots=True)
class OutlinePlan:
    """The figures of a run by its recipe.

    Args:
        steps, tokens, training_flops: at most; None where the data decide.
        tokens_per_step: at most; None where the model's own replies are trained.
        learning_rates: of up to 60 evenly spaced steps; empty where their number isn't known.
        parameters … memory: see `RunPlan`.
        unknown: what these figures leave open.
    """

    steps: int | None
    tokens: int | None
    tokens_per_step: int | None
    training_flops: float | None
    parameters: int | None
    trainable_parameters: int | None
    memory: dict[str, int] = field(default_factory=dict)
    learning_rates: list[float] = field(default_factory=list)
    unknown: str = FULL
    outline: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def outline_run(settings: RunSettings, config: DecoderConfig | None = None) -> OutlinePlan:
    """The plan of a recipe without its data.

    Args:
        config: the model's shapes, where the recipe's model is yet to be trained by another stage.

    Raises:
        ModelError: a new model's tokenizer isn't there. ConfigError: the new model is impossible.
    """
    packing = settings.packing
    step_tokens = packing.tokens_per_pack * packing.packs_per_step
    if packing.by == "examples":
        step_tokens = settings.max_tokens * packing.examples_per_step
    figures, absent = _figures(settings, config, packing.tokens_per_pack)
    steps, replies = settings.stream_steps or settings.train.max_steps, settings.stage == "rl"
    tokens = None if steps is None or replies else steps * step_tokens
    rates = multipliers(settings.schedule, [1.0] * settings.stream_steps) if settings.stream_steps is not None else []
    return OutlinePlan(
        steps=steps,
        tokens=tokens,
        tokens_per_step=None if replies else step_tokens,
        training_flops=None if tokens is None else figures.flops(settings.max_tokens, tokens),
        parameters=figures.parameters,
        trainable_parameters=figures.trainable,
        memory=figures.memory,
        learning_rates=some_rates(settings, rates),
        unknown="; ".join([BY_DATA if steps is None else BY_REPLIES if replies else FULL, *absent]),
    )


def new_model_config(settings: RunSettings) -> DecoderConfig | None:
    """The shapes of a recipe's new model where it gives its vocabulary's size: no tokenizer is needed; else None."""
    new = settings.new_model
    return None if new is None or new.vocab_size is None else new_config(new, new.vocab_size)


def _figures(
    settings: RunSettings, config: DecoderConfig | None, most_tokens: int
) -> tuple[ModelFigures, tuple[str, ...]]:
    """The model's figures, and what is missing where the recipe names a model that isn't at hand (yet)."""
    config = config or new_model_config(settings)
    if config is not None:
        return figures_of(settings, config, trained_parameters(settings, config), most_tokens), ()
    try:
        return model_figures(settings, prepare_text(settings), most_tokens), ()
    except ModelError as error:
        if settings.new_model is not None:
            raise
        return ModelFigures(None), (f"parameters and compute aren't known either: {error.place}: {error.message}",)
