"""How long and how a run trains; what it keeps."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from chatwright.settings import Settings


class TrainSettings(Settings):
    """The loop's own settings. Lengths are in epochs over the data, bounded by `max_steps` if given."""

    epochs: float = Field(1.0, gt=0, le=10_000)
    max_steps: PositiveInt | None = None
    seed: int = Field(0, ge=0, lt=2**32)
    device: Literal["auto", "cpu", "cuda", "mps", "npu"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = "auto"
    threads: PositiveInt | None = None
    activation_checkpointing: bool = False
    log_every: PositiveInt = 1
    evaluate_every: PositiveInt | None = None
    save_every: PositiveInt | None = None
    keep_last: PositiveInt = 2
    early_stopping_patience: PositiveInt | None = None

    @model_validator(mode="after")
    def _early_stopping_needs_evaluation(self) -> TrainSettings:
        if self.early_stopping_patience and not self.evaluate_every:
            raise ValueError("early_stopping_patience needs evaluate_every (the held-out loss decides)")
        return self
