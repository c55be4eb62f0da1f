"""How preference pairs are trained on: the settings of the stages `dpo` and `reward`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from chatwright.settings import Settings

DpoLoss = Literal["sigmoid", "ipo"]


class DpoSettings(Settings):
    """Direct preference optimization against the model as the run finds it.

    Args:
        beta: how strongly the policy is held to the reference; of `ipo`, its τ.
        loss: `sigmoid` (DPO) or `ipo`.
        label_smoothing: the share of pairs whose labels are taken for wrong (conservative DPO); of `sigmoid` only.
        sft_weight: adds so much of the better reply's mean negative log-likelihood (RPO's α).
    """

    beta: float = Field(0.1, gt=0, allow_inf_nan=False)
    loss: DpoLoss = "sigmoid"
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    sft_weight: float = Field(0.0, ge=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _smoothing_fits(self) -> DpoSettings:
        if self.label_smoothing and self.loss != "sigmoid":
            raise ValueError(f"label_smoothing belongs to loss: sigmoid, found loss: {self.loss}; remove it")
        return self


class RewardSettings(Settings):
    """A reward model: a score of a whole conversation, trained to be higher for the better reply.

    Args:
        margin: by how much the better reply's score should be higher, beyond being higher.
    """

    margin: float = Field(0.0, ge=0, allow_inf_nan=False)
