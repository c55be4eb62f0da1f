"""Settings of low-rank adapters."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from chatwright.settings import Settings

ALL_LINEAR = "all-linear"
"""The target that means every `nn.Linear` except the output head."""


class LoraSettings(Settings):
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685) on linear layers.

    Args:
        rank: r, the width of the bottleneck.
        alpha: strength of the update.
        scaling: the update's factor: `standard` alpha/r, `rslora` alpha/√r (arXiv:2312.03732), `raw` alpha.
        dropout: on the adapter's input, while training.
        targets: `all-linear` (every linear layer but the output head), globs on module names, or name endings
            such as `q_proj` or `mlp.*`. One that matches nothing is an error.
        base: `nf4` keeps the base's linear weights in 4 bits while training (QLoRA, arXiv:2305.14314; needs
            bitsandbytes). The saved adapter belongs on the full base all the same.
        double_quantization: with `nf4`, the scales of the weights are kept in 8 bits, too.
    """

    rank: PositiveInt = 16
    alpha: PositiveFloat = 32.0
    scaling: Literal["standard", "rslora", "raw"] = "standard"
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: tuple[str, ...] = Field((ALL_LINEAR,), min_length=1)
    base: Literal["full", "nf4"] = "full"
    double_quantization: bool = False

    @model_validator(mode="after")
    def _something_to_quantize(self) -> LoraSettings:
        if self.double_quantization and self.base != "nf4":
            raise ValueError("double_quantization has no effect with base: full; set base: nf4, or remove it")
        return self

    @property
    def scale(self) -> float:
        """The factor of the update."""
        return self.alpha / {"standard": self.rank, "rslora": math.sqrt(self.rank), "raw": 1.0}[self.scaling]
