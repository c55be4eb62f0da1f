"""A chain: stages that run in order, each from the last one's checkpoint, in one recipe.

    out: runs/nano                    # every stage in a folder of its own below: runs/nano/tokenizer, …/pretrain, …/sft
    template: {format: nanochat}      # what stands here is shared; a stage's own settings are laid over it
    stages:
      - {name: tokenizer, stage: tokenizer, data: [{path: texts}], tokenizer: {vocab_size: 1024}}
      - {name: pretrain, stage: pretrain, data: [{path: texts}], new_model: {preset: llama}}
      - {name: sft, stage: sft, from: previous, data: [{task: spelling}]}
    evaluate:
      tasks: [{task: spelling, limit: 100}]

Knows how such a recipe is read; runs nothing.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveInt, model_validator

from chatwright.errors import ConfigError
from chatwright.recipes.evaluation_settings import EvaluationTask
from chatwright.recipes.pair_settings import PAIR_STAGES
from chatwright.recipes.run_settings import RunSettings, find_recipe
from chatwright.recipes.stages import STAGES
from chatwright.recipes.tokenizer_recipe import TokenizerRecipe
from chatwright.settings import Settings, apply_overrides, build, read_yaml

TOKENIZER = "tokenizer"
"""The stage that trains no model."""
PREVIOUS = "previous"
BEST = ":best"
REWARD = "reward"
"""The stage whose model writes no replies: it is in no table, and only another reward model grows from it."""
TITLES = {"pretrain": "Base", "mid": "Mid", "sft": "SFT", "dpo": "DPO", "rl": "RL"}
"""What the table calls the stages, by their kind."""
_OWN = ("stages", "evaluate", "out", "reuse")
"""Keys of the chain itself; every other one beside them is shared by the stages."""
_NAME = re.compile(r"[A-Za-z][\w-]*")


class ChainEvaluation(Settings):
    """What is measured of the stages' models when all are trained: the chain's table.

    Args:
        tasks: as in `eval.tasks`.
        stages: the columns, by name; every stage whose model writes replies where not given.
        seed: of the problems' order and of what is drawn.
        batch_rows: conversations answered at once, as far as memory allows.
    """

    tasks: tuple[EvaluationTask, ...] = Field(min_length=1)
    stages: tuple[str, ...] | None = None
    seed: int = Field(0, ge=0)
    batch_rows: PositiveInt = 64

    @model_validator(mode="after")
    def _names_of_their_own(self) -> ChainEvaluation:
        names = [task.metric for task in self.tasks]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"several of evaluate.tasks are called {', '.join(twice)}; give each a name")
        return self


@dataclass(frozen=True, slots=True)
class ChainStage:
    """One stage of a chain.

    Args:
        name: the user's. parent: the stage it grows from; None where the recipe names a model, and for a tokenizer.
        settings: of its run, or of its tokenizer.
    """

    name: str
    parent: str | None
    settings: RunSettings | TokenizerRecipe

    @property
    def kind(self) -> str:
        """Which stage it is, such as `sft`."""
        return self.settings.stage

    @property
    def folder(self) -> Path:
        """Where its results are."""
        return Path(self.settings.out)

    @property
    def from_best(self) -> bool:
        """Whether it grows from its parent's best checkpoint, and not from the last."""
        settings = self.settings
        return self.parent is not None and isinstance(settings, RunSettings) and str(settings.model).endswith(BEST)


@dataclass(frozen=True, slots=True)
class Chain:
    """A whole chain, valid: every stage's parent stands before it.

    Args:
        source: the file it was read from. plain: what it says, overrides applied.
        table: what is measured at the end, or None.
        reuse: another folder of this chain, whose stages are taken where they are what this recipe says; or None.
    """

    source: str
    plain: Mapping[str, Any]
    out: Path
    stages: tuple[ChainStage, ...]
    table: ChainEvaluation | None
    reuse: Path | None = None

    def __getitem__(self, name: str) -> ChainStage:
        """The stage of that name."""
        return next(stage for stage in self.stages if stage.name == name)

    @property
    def runs(self) -> tuple[ChainStage, ...]:
        """The stages that train a model."""
        return tuple(stage for stage in self.stages if isinstance(stage.settings, RunSettings))

    @property
    def writers(self) -> tuple[ChainStage, ...]:
        """The stages whose models write replies."""
        return tuple(stage for stage in self.runs if stage.kind != REWARD)

    def behind(self, name: str) -> list[str]:
        """The stages that grow from this one, directly or not, in order."""
        found = [name]
        for stage in self.stages:
            if stage.parent in found:
                found.append(stage.name)
        return found[1:]

    def until(self, name: str | None) -> tuple[ChainStage, ...]:
        """The stages up to that one; all of them for None.

        Raises:
            ConfigError: there is no such stage.
        """
        if name is None:
            return self.stages
        names = [stage.name for stage in self.stages]
        if name not in names:
            raise ConfigError([f"--until: there is no stage {name!r}; {_nearest(name, names)}"], source=self.source)
        return self.stages[: names.index(name) + 1]


def is_chain(name: str) -> bool:
    """Whether a recipe is a chain: it has `stages`.

    Raises:
        ConfigError: there is no such recipe, or it can't be read.
    """
    path = find_recipe(name)
    return path.suffix in (".yaml", ".yml") and "stages" in read_yaml(path)


def load_chain(name: str, overrides: Sequence[str] = ()) -> Chain:
    """Read a chain by path, shipped name or its folder.

    Args:
        overrides: `a.b=value`; `STAGE.a.b=value` changes one stage, by its name.

    Raises:
        ConfigError: with every problem of every stage at once.
    """
    path = find_recipe(name)
    plain = read_yaml(path)
    if Path(name).is_dir():
        plain["out"] = name  # a chain that was moved, or is named from another working folder, stays itself
    names = [str(stage.get("name")) if isinstance(stage, Mapping) else "" for stage in _listed(plain, str(path))]
    plain = apply_overrides(plain, [_in_stages(override, names) for override in overrides])
    return make_chain(plain, str(path))


def make_chain(plain: Mapping[str, Any], source: str) -> Chain:
    """The chain that a recipe's mapping says.

    Raises:
        ConfigError: with every problem of every stage at once.
    """
    stages = _listed(plain, source)
    problems = [*_problems_of_names(stages), *_problems_of_shared(plain)]
    if problems:
        raise ConfigError(problems, source=source)
    out = Path(str(plain.get("out", "runs/chain")))
    shared = {key: value for key, value in plain.items() if key not in _OWN}
    made: list[ChainStage] = []
    kinds = {str(each["name"]): str(each["stage"]) for each in stages}
    for each in stages:
        try:
            made.append(_stage(each, shared, out, kinds))
        except ConfigError as error:
            problems += [_in_words(str(each["name"]), problem) for problem in error.problems]
    table = None
    if plain.get("evaluate") is not None:
        try:
            table = build(ChainEvaluation, plain["evaluate"], source)
        except ConfigError as error:
            problems += [f"evaluate.{problem}" for problem in error.problems]
    if not problems:
        problems += [*_problems_of_place(made), *_problems_of_table(table, made)]
    if problems:
        raise ConfigError(problems, source=source)
    reuse = Path(str(plain["reuse"])) if plain.get("reuse") else None
    return Chain(source, plain, out, tuple(made), table, reuse)


def titles(stages: Sequence[ChainStage]) -> list[str]:
    """The headings of some stages: `Base`, `Mid` …; their names, where two are of one kind or one is unknown."""
    kinds = [stage.kind for stage in stages]
    known = len(set(kinds)) == len(kinds) and all(kind in TITLES for kind in kinds)
    return [TITLES[stage.kind] if known else stage.name for stage in stages]


# One stage


def _stage(plain: Mapping[str, Any], shared: Mapping[str, Any], out: Path, kinds: Mapping[str, str]) -> ChainStage:
    """A stage with the shared settings under its own, and its parent's place filled in.

    Args:
        kinds: name → stage of all stages, in order.

    Raises:
        ConfigError: naming settings as the stage has them.
    """
    name = str(plain["name"])
    own = {key: value for key, value in plain.items() if key not in ("name", "from")}
    if own.get("stage") == TOKENIZER:
        if "from" in plain:
            raise ConfigError(["from: a tokenizer grows from nothing; remove it"])
        fields = {key: value for key, value in shared.items() if key in TokenizerRecipe.model_fields}
        return ChainStage(name, None, build(TokenizerRecipe, _over(fields, {**own, "out": str(out / name)}), name))
    parent = _parent(plain, own, kinds)
    settings = _over(shared, {**own, "out": str(out / name)})
    if parent is not None:
        best = BEST if str(plain.get("from", "")).endswith(BEST) else ""
        if isinstance(settings.get("new_model"), Mapping):
            settings["new_model"] = {"tokenizer": str(out / parent), **settings["new_model"]}
        else:
            settings["model"] = f"{out / parent}{best}"
    return ChainStage(name, parent, build(RunSettings, settings, name))


def _parent(plain: Mapping[str, Any], own: Mapping[str, Any], kinds: Mapping[str, str]) -> str | None:
    """The stage that `from` names; the nearest before that can be one where it names none.

    Raises:
        ConfigError: it stands later, is no such stage, or can't be a parent.
    """
    name, wanted, names = str(plain["name"]), plain.get("from"), list(kinds)
    before = names[: names.index(name)]
    makes_new = isinstance(own.get("new_model"), Mapping)
    named = own.get("model") is not None or (makes_new and "tokenizer" in own["new_model"])
    if named:
        if wanted is not None:
            what = "new_model.tokenizer" if makes_new else "model"
            raise ConfigError([f"from: {wanted} and {what} say two things; remove one"])
        return None
    unfit = {TOKENIZER} if own.get("stage") == REWARD else {TOKENIZER, REWARD}
    usable = [each for each in before if (kinds[each] == TOKENIZER if makes_new else kinds[each] not in unfit)]
    wanted = str(PREVIOUS if wanted is None else wanted).removesuffix(BEST)
    if wanted == PREVIOUS:
        if usable:
            return usable[-1]
        lacks = "new_model.tokenizer: FOLDER" if makes_new else "model: NAME, or new_model: {preset: …}"
        kind = "tokenizer stage" if makes_new else "trained model"
        raise ConfigError([f"from: no {kind} stands before this stage; begin with {lacks}"])
    if wanted in usable:
        return wanted
    if wanted in before:
        need = "a tokenizer" if kinds[wanted] == TOKENIZER else "a reward model, which writes no replies,"
        need = "a new model begins with a tokenizer stage" if makes_new else f"{need} is no model to go on from"
        raise ConfigError([f"from: {wanted}: {need}"])
    if wanted == name:
        raise ConfigError([f"from: {wanted}: a stage can't grow from itself"])
    if wanted in names[names.index(name) :]:
        raise ConfigError([f"from: {wanted} stands later; a stage grows from one before it"])
    raise ConfigError([f"from: there is no stage {wanted!r}; {_nearest(wanted, names)}"])


def _over(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """A stage's settings laid over the shared ones: mappings by their keys, all else whole."""
    result = dict(shared)
    for key, value in own.items():
        inside = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = _over(result[key], value) if inside else value
    return result


# Problems


def _listed(plain: Mapping[str, Any], source: str) -> list[Any]:
    stages = plain.get("stages")
    if not isinstance(stages, list) or not stages:
        problem = "stages: must be a list of stages, such as [{name: sft, stage: sft, model: …}]"
        raise ConfigError([problem], source=source)
    return stages


def _problems_of_names(stages: Sequence[Any]) -> Iterator[str]:
    reserved = (set(RunSettings.model_fields) | {*_OWN, PREVIOUS}) - set(STAGES) - {TOKENIZER}
    seen: list[str] = []
    for number, stage in enumerate(stages):
        name = stage.get("name") if isinstance(stage, Mapping) else None
        kinds = [TOKENIZER, *STAGES]
        if not isinstance(stage, Mapping):
            yield f"stages.{number}: must be a mapping of settings, such as {{name: sft, stage: sft}}"
        elif not isinstance(name, str) or not _NAME.fullmatch(name):
            yield f"stages.{number}.name: every stage needs a name of letters, digits, _ and - (found {name!r})"
        elif name in reserved:
            yield f"stages.{number}.name: {name} is the name of a setting, so --set couldn't tell them apart"
        elif name in seen:
            yield f"stages.{number}.name: two stages are called {name}"
        if isinstance(stage, Mapping) and stage.get("stage") not in kinds:
            given = stage.get("stage")
            hint = _nearest(str(given), kinds) if given is not None else f"one of {', '.join(kinds)}"
            yield f"stages.{number}.stage: {f'unknown stage {given!r}' if given is not None else 'required'}; {hint}"
        if isinstance(stage, Mapping) and "out" in stage:
            yield f"stages.{number}.out: every stage's folder is its name below the chain's out; remove it"
        seen.append(str(name))


def _in_words(stage: str, problem: str) -> str:
    """A stage's problem with its name; `rl.samples` for `rl.rl.samples` is an easy slip."""
    key, _, rest = problem.partition(": unknown setting")
    if rest and "." not in key and stage in {**RunSettings.model_fields, **TokenizerRecipe.model_fields}:
        return f"{stage}.{key}: unknown setting; did you mean {stage}.{stage}.{key}?"
    return f"{stage}.{problem}"


def _problems_of_shared(plain: Mapping[str, Any]) -> Iterator[str]:
    for key in ("out", "reuse"):
        if key in plain and not (isinstance(plain[key], str) and plain[key]) and (key, plain[key]) != ("reuse", None):
            yield f"{key}: must be the name of a folder (found {plain[key]!r})"
    known = {*RunSettings.model_fields, *_OWN} - {"model", "new_model", "stage"}
    for key in plain:
        if key in ("model", "new_model", "stage", "name", "from"):
            yield f"{key}: belongs to a stage, and not to all of them"
        elif key not in known:
            yield f"{key}: unknown setting; {_nearest(str(key), sorted(known))}"


def _problems_of_place(stages: Sequence[ChainStage]) -> Iterator[str]:
    """A chain runs in one process (or one set of ranks), which stays on its device."""
    runs = [stage for stage in stages if isinstance(stage.settings, RunSettings)]
    for field in ("device", "threads"):
        if len({getattr(stage.settings.train, field) for stage in runs}) > 1:  # type: ignore[union-attr]
            yield f"train.{field}: must be the same in all stages; set it beside stages"
    for stage in stages:
        if not stage.settings.data:
            yield f"{stage.name}.data: there is nothing to train on; name files, folders or tasks"
        parent = next((each.settings for each in runs if each.name == stage.parent), None)
        if isinstance(parent, RunSettings) and (carried := parent.adapter) is not None:
            own = stage.settings.adapter if isinstance(stage.settings, RunSettings) else None
            if own is None or (own.rank, own.scale) != (carried.rank, carried.scale):
                found = f"{stage.parent} gives an adapter of rank {carried.rank} and scale {carried.scale:g}"
                yield f"{stage.name}.adapter: {found}; write the same here, or grow from a stage without one"
        if stage.from_best and isinstance(parent, RunSettings):
            pairs = parent.stage in PAIR_STAGES
            if parent.eval.chosen_best(has_heldout=parent.has_heldout, pairs=pairs) is None:
                yield (
                    f"{stage.name}.from: {stage.parent} measures nothing that tells its best checkpoint; give it "
                    f"heldout data or eval.tasks, or write from: {stage.parent}"
                )


def _problems_of_table(table: ChainEvaluation | None, stages: Sequence[ChainStage]) -> Iterator[str]:
    writers = [stage.name for stage in stages if stage.kind not in (TOKENIZER, REWARD)]
    for name in table.stages or () if table else ():
        if name not in writers:
            yield f"evaluate.stages: no stage {name!r} trains a model that writes replies; {_nearest(name, writers)}"
    if table is not None and not writers:
        yield "evaluate: no stage trains a model that writes replies"


def _in_stages(override: str, names: Sequence[str]) -> str:
    """`sft.train.seed=1` → `stages.2.train.seed=1`."""
    first, dot, rest = override.partition(".")
    return f"stages.{names.index(first)}.{rest}" if dot and first in names else override


def _nearest(given: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(given, known, n=1, cutoff=0.4)
    return f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
