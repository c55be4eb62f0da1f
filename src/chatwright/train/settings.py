"""How long and how a run trains; what it keeps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, PositiveInt, model_validator

from chatwright.settings import Settings


class TrainSettings(Settings):
    """The loop's own settings.

    Args:
        epochs: how often to go through the data; null: as often as `max_steps` needs.
        max_steps: the most steps; a run ends with its epochs or its steps, whichever are over first.
    """

    epochs: float | None = Field(1.0, gt=0, le=10_000)
    max_steps: PositiveInt | None = None
    seed: int = Field(0, ge=0, lt=2**32)
    device: Literal["auto", "cpu", "cuda", "mps", "npu"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto"
    threads: PositiveInt | None = None
    activation_checkpointing: bool = False
    log_every: PositiveInt = 1
    save_every: PositiveInt | None = None
    keep_last: PositiveInt = 2
    early_stopping_patience: PositiveInt | None = None

    @model_validator(mode="after")
    def _has_a_length(self) -> TrainSettings:
        if self.epochs is None and self.max_steps is None:
            raise ValueError("epochs: null needs max_steps, which then says how long to train")
        return self

    @model_validator(mode="before")
    @classmethod
    def _evaluation_has_moved(cls, data: Any) -> Any:
        """Recipes of older versions say here how often to evaluate; run folders wrote the default out."""
        if not isinstance(data, Mapping) or "evaluate_every" not in data:
            return data
        if (every := data["evaluate_every"]) is not None:
            raise ValueError(
                f"evaluate_every is eval.every now: write `eval: {{every: {every}}}` in the recipe instead; to go on "
                f"with a run of an older version: --set train.evaluate_every=null --set eval.every={every}"
            )
        return {name: value for name, value in data.items() if name != "evaluate_every"}


class MoeSettings(Settings):
    """The load-balance loss of a model with experts.

    Args:
        aux_loss_weight: what it is multiplied by; null takes the model's own (`router_aux_loss_coef` in its
            config.json), and means what it means to the model's own code: even routing costs as much as a token has
            experts, or, of MiniMind's, 1 a layer.
        exact: a loss a segment, so that any split of a step into packs and ranks trains the same; false takes one of
            all that a pack holds, as transformers does. Null keeps what the model was trained with, else true.
    """

    aux_loss_weight: float | None = Field(None, ge=0)
    exact: bool | None = None
