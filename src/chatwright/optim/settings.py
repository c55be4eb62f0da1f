"""Settings of the optimizer and of the learning-rate schedule."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from chatwright.settings import Settings


class Rule(Settings):
    """What is different for the parameters whose name matches; the first matching rule decides.

    Args:
        pattern: glob on the parameter name, such as `model.layers.[0-3].*` or `*lora_B`.
        learning_rate: absolute, before the schedule. multiplier: times the optimizer's learning rate.
        weight_decay: for all matching parameters, vectors included; None keeps the optimizer's.
        optimizer: with `name: muon` only, which of its two updates they get; None = Muon for hidden matrices.
    """

    pattern: str = Field(min_length=1)
    learning_rate: NonNegativeFloat | None = None
    multiplier: NonNegativeFloat | None = None
    weight_decay: NonNegativeFloat | None = None
    optimizer: Literal["muon", "adamw"] | None = None

    @model_validator(mode="after")
    def _says_one_thing(self) -> Rule:
        if self.learning_rate is not None and self.multiplier is not None:
            raise ValueError("give either learning_rate or multiplier, not both")
        if (self.learning_rate, self.multiplier, self.weight_decay, self.optimizer) == (None, None, None, None):
            raise ValueError("changes nothing: give learning_rate, multiplier, weight_decay or optimizer")
        return self


class MuonSettings(Settings):
    """Muon's own numbers (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

    Args:
        learning_rate: of the matrices that Muon updates, before the schedule; times √(rows / columns) for tall ones.
            The default is for pre-training; to tune a trained model nanochat takes a fiftieth (`rate_factor`).
        momentum: share of the average that stays at each step.
        momentum_start: where it begins. momentum_warmup_steps: steps of its linear rise to `momentum`; 0 = none.
        nesterov: look one step ahead along the average.
        newton_schulz_steps: iterations of the orthogonalization.
    """

    learning_rate: PositiveFloat = 0.02
    momentum: float = Field(0.95, ge=0, lt=1)
    momentum_start: float = Field(0.85, ge=0, lt=1)
    momentum_warmup_steps: NonNegativeInt = 0
    nesterov: bool = True
    newton_schulz_steps: PositiveInt = 5

    def momentum_after(self, steps: int) -> float:
        """The momentum of the update that follows `steps` updates."""
        if steps >= self.momentum_warmup_steps:
            return self.momentum
        risen = steps / self.momentum_warmup_steps
        return (1 - risen) * self.momentum_start + risen * self.momentum


EMBEDDING_PATTERN = "*embed_tokens*"
PRESETS: dict[str, dict[str, Any]] = {
    # nanochat, GPT.setup_optimizers and base_train (December 2025): Muon for the layers' matrices; AdamW with a rate
    # for the embedding and one for the output layer, both tuned at a width of 768
    "nanochat": {
        "name": "muon",
        "learning_rate": 0.004,
        "betas": (0.8, 0.95),
        "eps": 1e-10,
        "reference_width": 768,
        "rules": ({"pattern": EMBEDDING_PATTERN, "learning_rate": 0.2},),
        "muon": {"learning_rate": 0.02, "momentum": 0.95, "momentum_start": 0.85, "momentum_warmup_steps": 300},
    },
}


class OptimizerSettings(Settings):
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) in float32 or with 8-bit moments (arXiv:2110.02861), or Muon.

    Args:
        preset: takes what the recipe doesn't write itself from `PRESETS`; a `muon:` section is filled up key by key.
        name: `adamw`; `adamw8bit` through bitsandbytes; `muon`: Muon for the matrices of the layers, AdamW with the
            settings here for everything else: embedding, output layer, vectors, adapters.
        learning_rate: before the schedule's multiplier; with `muon` that of AdamW's part.
        betas, eps: AdamW's.
        weight_decay: decoupled; on matrices only unless a rule says otherwise.
        max_grad_norm: gradients with a larger global norm are scaled down to it; None = never.
        rules: layered rates; the first rule that matches a parameter decides.
        muon: Muon's own settings, with `name: muon`.
        rate_factor: times every learning rate, those of rules and of Muon too (nanochat's init_lr_frac).
        reference_width: AdamW's rates were tuned for a model of this hidden size, and are multiplied by
            (hidden size / reference_width)^−½; None takes them as they are.
        warm_start: begin with the optimizer state of the checkpoint that the model is; see `optim.warm_start`.
    """

    preset: Literal["nanochat"] | None = None
    name: Literal["adamw", "adamw8bit", "muon"] = "adamw"
    learning_rate: PositiveFloat = 2e-5
    betas: tuple[float, float] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat | None = 1.0
    rules: tuple[Rule, ...] = ()
    muon: MuonSettings | None = None
    rate_factor: PositiveFloat = 1.0
    reference_width: PositiveInt | None = None
    warm_start: bool = False

    @model_validator(mode="before")
    @classmethod
    def _fill_up(cls, given: Any) -> Any:
        """The preset's values and Muon's defaults, where nothing else is written."""
        if not isinstance(given, dict):
            return given
        preset = PRESETS.get(given["preset"], {}) if isinstance(given.get("preset"), str) else {}
        filled = {**preset, **given}
        if filled.get("name") != "muon":
            return filled if "muon" in given else {key: value for key, value in filled.items() if key != "muon"}
        own = given.get("muon")
        if own is None or isinstance(own, dict):
            filled["muon"] = {**preset.get("muon", {}), **(own or {})}
        return filled

    @model_validator(mode="after")
    def _muon_only(self) -> OptimizerSettings:
        if self.name != "muon" and self.muon is not None:
            raise ValueError(f"muon has no effect with name: {self.name}; set name: muon, or remove it")
        named = [rule.pattern for rule in self.rules if rule.optimizer is not None]
        if self.name != "muon" and named:
            raise ValueError(f"the rule for {named[0]!r} chooses an optimizer, which needs name: muon")
        return self

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
