"""A run = stage + model + data + template + packing + adapter + optimizer + schedule + length.

Every setting of a recipe stands here or in the settings class of the room it belongs to; nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from chatwright.adapters.settings import LoraSettings
from chatwright.conversations.data_settings import DataSettings
from chatwright.conversations.foreign_configs import foreign_system
from chatwright.errors import ConfigError, UserError
from chatwright.optim.settings import OptimizerSettings, ScheduleSettings
from chatwright.packing.mixture import MixtureSettings
from chatwright.packing.plan import PackingSettings
from chatwright.preparation.work import PreparationSettings
from chatwright.settings import Settings, apply_overrides, build, read_yaml
from chatwright.templates.overflow import Overflow
from chatwright.templates.template import TemplateSettings
from chatwright.train.settings import TrainSettings


class HeldoutSettings(Settings):
    """What the held-out loss is measured on: a share of the training rows, or data of its own."""

    share: float = Field(0.0, ge=0, lt=1)
    data: tuple[DataSettings, ...] = ()

    @model_validator(mode="after")
    def _one_kind(self) -> HeldoutSettings:
        if self.share and self.data:
            raise ValueError("give either heldout.share or heldout.data, not both")
        return self


class TrackingSettings(Settings):
    """Trackers beside the run's own `metrics.jsonl`."""

    tensorboard: bool = False
    wandb_project: str | None = None


class RunSettings(Settings):
    """A whole recipe.

    Args:
        data: the sources; mixture: their order, and what `weight` and `epochs` of the sources mean.
        model: Hugging Face folder, hub name, run or checkpoint folder, GGUF file, or alias.
        stage: `sft` trains the replies; `mid` trains every token of the conversations.
        max_tokens: longest example in tokens; `overflow` says what happens to longer ones.
        out: the run folder.
    """

    recipe_version: Literal[1] = 1
    stage: Literal["sft", "mid"] = "sft"
    model: str
    data: tuple[DataSettings, ...] = ()
    mixture: MixtureSettings = MixtureSettings()
    heldout: HeldoutSettings = HeldoutSettings()
    template: TemplateSettings = TemplateSettings()
    max_tokens: PositiveInt = 2048
    overflow: Overflow = Overflow.ERROR
    packing: PackingSettings = PackingSettings()
    preparation: PreparationSettings = PreparationSettings()
    adapter: LoraSettings | None = None
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    train: TrainSettings = TrainSettings()
    tracking: TrackingSettings = TrackingSettings()
    out: str = "runs/sft"

    @model_validator(mode="after")
    def _examples_fit_a_pack(self) -> RunSettings:
        if self.max_tokens > self.packing.tokens_per_pack:
            raise ValueError(
                f"max_tokens ({self.max_tokens}) is more than packing.tokens_per_pack "
                f"({self.packing.tokens_per_pack}); an example must fit a pack"
            )
        other = "packs_per_step" if self.packing.by == "examples" else "examples_per_step"
        if getattr(self.packing, other) != type(self.packing).model_fields[other].default:
            raise ValueError(
                f"packing.{other} has no effect with packing.by: {self.packing.by}; remove it, or change by"
            )
        if self.train.evaluate_every and not (self.heldout.share or self.heldout.data):
            raise ValueError(
                "train.evaluate_every is set, but there is no held-out data: set heldout.share or heldout.data"
            )
        return self

    @model_validator(mode="after")
    def _all_weights_or_none(self) -> RunSettings:
        without = [entry.source_name for entry in self.data if entry.weight is None]
        if 0 < len(without) < len(self.data):
            raise ValueError(
                f"some data entries have a weight and others none ({', '.join(without)}): give every entry a weight, "
                "its share of the rows beside the other weights, or none"
            )
        if without and self.mixture.until != "all":
            raise ValueError(
                f"mixture.until: {self.mixture.until} has no effect without weights; give data entries a weight"
            )
        return self


SHIPPED = Path(__file__).parent / "shipped"


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.yaml"))}


def find_recipe(name: str) -> Path:
    """The file of a recipe given by path or by shipped name.

    Raises:
        ConfigError: neither exists; lists the shipped names.
    """
    path = Path(name)
    if path.is_file():
        return path
    if path.is_dir() and (path / "recipe.yaml").is_file():
        return path / "recipe.yaml"
    if name in shipped_recipes():
        return shipped_recipes()[name]
    known = ", ".join(shipped_recipes())
    raise ConfigError([f"there is no recipe file {name!r}, and the shipped recipes are: {known}"], source=name)


def load_recipe(name: str, overrides: Sequence[str] = ()) -> RunSettings:
    """Read a recipe by path or shipped name and apply `a.b=value` overrides.

    Relative paths are looked for from the working folder. A run folder given as the recipe is itself the `out`,
    so that it can be resumed from anywhere.

    Raises:
        ConfigError: with every unknown or impossible setting at once.
        UserError: the file is a configuration of another system, which `import-recipe` reads.
    """
    path = find_recipe(name)
    plain = read_yaml(path)
    if system := foreign_system(plain):
        hint = f"chatwright import-recipe {path} -o recipe.yaml, then give recipe.yaml"
        raise UserError(f"this is a configuration of {system}, not a recipe", place=str(path), hint=hint)
    if Path(name).is_dir():
        plain["out"] = name  # a run that was moved, or is named from another working folder, stays itself
    return build(RunSettings, apply_overrides(plain, overrides), str(path))
