"""A run = stage + model + data + template + packing + adapter + optimizer + schedule + length.

Every setting of a recipe stands here or in the settings class of the room it belongs to; nowhere else.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from chatwright.adapters.settings import LoraSettings
from chatwright.conversations.data_settings import DataSettings
from chatwright.conversations.files import file_kind, is_text_file
from chatwright.conversations.filters import ExactDuplicates, NearDuplicates
from chatwright.conversations.foreign_configs import foreign_system
from chatwright.errors import ConfigError, UserError
from chatwright.inspection.contamination import ContaminationSettings
from chatwright.losses.settings import DpoSettings, RewardSettings
from chatwright.optim.settings import OptimizerSettings, ScheduleSettings
from chatwright.packing.mixture import MixtureSettings
from chatwright.packing.plan import PackingSettings
from chatwright.preparation.work import PreparationSettings, StreamingSettings
from chatwright.recipes.evaluation_settings import EvaluationSettings
from chatwright.recipes.new_model_settings import NewModelSettings
from chatwright.recipes.pair_settings import PAIR_STAGES, against_pairs, with_pairs
from chatwright.recipes.reinforcement_settings import RlSettings, against_rl
from chatwright.settings import Settings, apply_overrides, build, read_yaml
from chatwright.templates.overflow import Overflow
from chatwright.templates.template import TemplateSettings
from chatwright.train.settings import MoeSettings, TrainSettings


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
    """Trackers beside the run's own `metrics.jsonl`.

    Args:
        nanochat_names: log `lrm` and `num_tokens` as well, nanochat's names for the learning rate's multiplier and for
            the supervised tokens of a step.
    """

    nanochat_names: bool = False
    tensorboard: bool = False
    wandb_project: str | None = None


class RunSettings(Settings):
    """A whole recipe.

    Args:
        data: the sources; mixture: their order, and what `weight` and `epochs` of the sources mean.
        model: Hugging Face folder, hub name, run or checkpoint folder, GGUF file, or alias.
        new_model: a model to make instead: a preset's shapes and a tokenizer.
        stage: a name of `recipes.stages.STAGES`: `pretrain` and `mid` train every token, of plain text and of
            conversations; `sft` trains the replies; `dpo` prefers the better of two replies; `reward` trains a model
            that scores replies; `rl` trains the model's own replies to the problems of tasks.
        dpo, reward: of the stages of these names.
        rl: of the stage `rl`: how replies are drawn, and what becomes of their rewards.
        max_tokens: longest example in tokens; `overflow` says what happens to longer ones.
        contamination: compare the rows with evaluations; null doesn't.
        moe: of a model with experts: the loss that keeps its routers even; null is as its config.json says.
        eval: what is measured while training, and which metric tells the best checkpoint.
        streaming: `true`, or its settings: read the rows while training, for `train.max_steps` steps.
        out: the run folder.
    """

    recipe_version: Literal[1] = 1
    stage: Literal["pretrain", "mid", "sft", "dpo", "reward", "rl"] = "sft"
    model: str | None = None
    new_model: NewModelSettings | None = None
    data: tuple[DataSettings, ...] = ()
    mixture: MixtureSettings = MixtureSettings()
    heldout: HeldoutSettings = HeldoutSettings()
    template: TemplateSettings = TemplateSettings()
    max_tokens: PositiveInt = 2048
    overflow: Overflow = Overflow.ERROR
    packing: PackingSettings = PackingSettings()
    preparation: PreparationSettings = PreparationSettings()
    contamination: ContaminationSettings | None = None
    streaming: StreamingSettings | None = None
    adapter: LoraSettings | None = None
    moe: MoeSettings | None = None
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    train: TrainSettings = TrainSettings()
    eval: EvaluationSettings = EvaluationSettings()
    tracking: TrackingSettings = TrackingSettings()
    dpo: DpoSettings | None = None
    reward: RewardSettings | None = None
    rl: RlSettings | None = None
    out: str = "runs/sft"

    @model_validator(mode="after")
    def _one_model(self) -> RunSettings:
        if (self.model is None) == (self.new_model is None):
            given = "both are given" if self.model else "neither is given"
            raise ValueError(f"the model must be named by one of model and new_model; {given}")
        if self.new_model is not None and self.adapter is not None:
            raise ValueError("an adapter adapts a trained model: remove adapter, or name a model instead of new_model")
        return self

    @property
    def model_name(self) -> str:
        """The model as the recipe names it."""
        return self.new_model.name if self.new_model is not None else str(self.model)

    @model_validator(mode="before")
    @classmethod
    def _takes_pairs(cls, value: Any) -> Any:
        return with_pairs(value) if isinstance(value, Mapping) else value

    @model_validator(mode="after")
    def _can_learn_preferences(self) -> RunSettings:
        if problems := list(against_pairs(self)):
            raise ValueError("; ".join(problems))
        return self

    @property
    def reinforcement(self) -> RlSettings:
        """The settings of the stage `rl`, given or not."""
        return self.rl or RlSettings()

    @model_validator(mode="after")
    def _can_be_reinforced(self) -> RunSettings:
        if self.stage != "rl" and self.rl is not None:
            raise ValueError(f"rl belongs to stage: rl, found stage: {self.stage}")
        if self.stage == "rl":
            problems = list(against_rl(self.data, self.packing.by, streamed=self.streaming is not None))
            if problems:
                raise ValueError("with stage: rl, " + "; ".join(problems))
        return self

    @model_validator(mode="after")
    def _examples_fit_a_pack(self) -> RunSettings:
        if self.max_tokens > self.packing.tokens_per_pack and self.packing.exact:  # else what is longer is cut
            raise ValueError(
                f"max_tokens ({self.max_tokens}) is more than packing.tokens_per_pack "
                f"({self.packing.tokens_per_pack}); an example must fit a pack"
            )
        other = "packs_per_step" if self.packing.by == "examples" else "examples_per_step"
        if getattr(self.packing, other) != type(self.packing).model_fields[other].default:
            raise ValueError(
                f"packing.{other} has no effect with packing.by: {self.packing.by}; remove it, or change by"
            )
        return self

    @model_validator(mode="after")
    def _can_be_evaluated(self) -> RunSettings:
        problems = list(self.eval.problems(has_heldout=self.has_heldout, pairs=self.stage in PAIR_STAGES))
        ends = {0.0, 1.0}
        if self.train.early_stopping_patience and not self.eval.every and set(self.eval.at) <= ends:
            problems.append(
                "train.early_stopping_patience needs evaluations between the first step and the last: set eval.every, "
                "or more points in eval.at"
            )
        elif self.train.early_stopping_patience and self.eval.chosen_best(has_heldout=self.has_heldout) is None:
            problems.append("train.early_stopping_patience follows eval.best, but no such metric is measured")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @model_validator(mode="after")
    def _can_be_joined(self) -> RunSettings:
        if not self.packing.exact:
            problem = next(_against_constant_length(self), None)
            if problem:
                raise ValueError(f"with packing.by: constant_length, {problem}")
        return self

    @property
    def has_heldout(self) -> bool:
        """Whether some data are held out."""
        return bool(self.heldout.share or self.heldout.data)

    @property
    def stream_steps(self) -> int | None:
        """The steps of a streamed run; `streaming.max_tokens` counts every pack as full. None: it isn't streamed."""
        if self.streaming is None or self.streaming.max_tokens is None:
            return self.train.max_steps if self.streaming else None
        return max(1, self.streaming.max_tokens // (self.packing.tokens_per_pack * self.packing.packs_per_step))

    @field_validator("streaming", mode="before")
    @classmethod
    def _true_or_settings(cls, value: Any) -> Any:
        return ({} if value else None) if isinstance(value, bool) else value

    @model_validator(mode="after")
    def _can_be_streamed(self) -> RunSettings:
        if self.streaming is not None:
            problem = next(_against_streaming(self, self.streaming), None)
            if problem:
                raise ValueError(f"with streaming, {problem}")
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


def _against_constant_length(settings: RunSettings) -> Iterator[str]:
    """What a stream of joined conversations can't be."""
    if settings.streaming is not None:
        yield "the whole data is joined before it is cut, so that it can't be streamed; set packing.by: tokens"
    if settings.data and settings.data[0].weight is not None:
        yield "every row is in the stream as often as data.epochs says: replace weight by epochs"


def _against_streaming(settings: RunSettings, streaming: StreamingSettings) -> Iterator[str]:
    """What asks for the whole data, of which a stream sees a window at a time."""
    if (settings.train.max_steps is None) == (streaming.max_tokens is None):
        yield "the run's length must be given by one of train.max_steps and streaming.max_tokens"
    if streaming.max_tokens and settings.packing.by == "examples":
        yield "streaming.max_tokens counts packs, but packing.by is examples; set train.max_steps"
    if settings.train.epochs not in (1, None):
        yield "train.epochs has no effect; remove it (train.max_steps gives the length)"
    if settings.heldout.share:
        yield "heldout.share can't be drawn, since not all rows are seen; set heldout.data"
    if settings.mixture != MixtureSettings():
        yield "mixture has no effect, since sources have no end; remove it (weight gives the shares)"
    if len(settings.data) > 1 and settings.data[0].weight is None:
        yield "how many rows a source has isn't known: give every data entry a weight, its share of the rows"
    for entry in settings.data:
        if entry.epochs != 1:
            yield f"data.epochs has no effect ({entry.source_name}); give entries weights"
        if entry.max_rows is not None:
            yield f"max_rows can't be drawn ({entry.source_name}), since not all rows are seen; set stop"
        for each in (own for own in entry.filters if isinstance(own, ExactDuplicates | NearDuplicates)):
            yield f"the filter {each.kind} can't run ({entry.source_name}), since not all rows are seen; remove it"


SHIPPED = Path(__file__).parent / "shipped"
RECIPE_NAME, CHAIN_NAME = "recipe.yaml", "chain.yaml"
"""What a run folder keeps of its recipe, and the folder of a chain of its own."""


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.yaml"))}


def find_recipe(name: str) -> Path:
    """The file of a recipe given by path, by the folder of a run or chain, or by shipped name (`-` is as good as `_`).

    Raises:
        ConfigError: neither exists; lists the shipped names.
    """
    path = Path(name)
    if path.is_file():
        return path
    for kept in (RECIPE_NAME, CHAIN_NAME):
        if path.is_dir() and (path / kept).is_file():
            return path / kept
    if (shipped := name.replace("-", "_")) in shipped_recipes():
        return shipped_recipes()[shipped]
    near = difflib.get_close_matches(shipped, shipped_recipes(), n=1, cutoff=0.6)
    meant = f"did you mean {near[0]}? The" if near else "the"
    known = ", ".join(shipped_recipes())
    raise ConfigError([f"there is no recipe file {name!r}; {meant} shipped recipes are: {known}"], source=name)


def load_recipe(name: str, overrides: Sequence[str] = ()) -> RunSettings:
    """Read a recipe by path or shipped name and apply `a.b=value` overrides.

    Relative paths are looked for from the working folder. A run folder given as the recipe is itself the `out`,
    so that it can be resumed from anywhere.

    Raises:
        ConfigError: with every unknown or impossible setting at once.
        UserError: the file is a configuration of another system, which `import-recipe` reads.
    """
    path = find_recipe(name)
    if is_text_file(path) or file_kind(path) not in (None, ".json", ".yaml", ".yml"):
        hint = f"chatwright init {name} --model MODEL writes a recipe from it"
        raise UserError("this is data, not a recipe", place=name, hint=hint)
    plain = read_yaml(path)
    if system := foreign_system(plain):
        hint = f"chatwright import-recipe {path} -o recipe.yaml, then give recipe.yaml"
        raise UserError(f"this is a configuration of {system}, not a recipe", place=str(path), hint=hint)
    if "stages" in plain:
        hint = "`chatwright train` and `plan` take it; here give the folder of one of its stages, once that is trained"
        raise UserError("this is a chain of stages, and one run is needed", place=str(path), hint=hint)
    if Path(name).is_dir():
        plain["out"] = name  # a run that was moved, or is named from another working folder, stays itself
    return build(RunSettings, apply_overrides(plain, overrides), str(path))
