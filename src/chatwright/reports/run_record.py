"""What a run folder tells about its run: every figure read from its files, what is absent named, nothing guessed.

Reads recipe.yaml, plan.json, metrics.jsonl, samples.jsonl, best.json and the checkpoints' manifest.json and
training_state.json.
Knows no model and no data; loads no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pydantic
from pydantic import BaseModel, ConfigDict

from chatwright.checkpoints.chain_folder import chain_hint
from chatwright.checkpoints.manifest import Manifest, find_damage, read_manifest
from chatwright.checkpoints.store import best_checkpoint, list_checkpoints, step_of
from chatwright.errors import CheckpointError, ConfigError
from chatwright.inspection.ledger import Ledger, Sum
from chatwright.run_folder import RunFolder
from chatwright.settings import Settings, build, dump_yaml, read_yaml

LOSSES = {
    "recipe.yaml": "the settings aren't known",
    "plan.json": "planned steps, figures by source and packing waste aren't known",
    "metrics.jsonl": "losses, learning rates and speed aren't known",
    "complete checkpoint": "device, versions, base model, template and tokens trained aren't known",
}
"""What a report can't tell without each of them."""


class _Read(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


_R = TypeVar("_R", bound=_Read)


class PlannedSource(_Read):
    """One data entry in plan.json; of a stream, in its first windows."""

    name: str
    format: str
    rows: int | None = None
    examples: int
    tokens: int
    supervised_tokens: int
    seen_an_epoch: float | None = None
    effective_weight: float


class Plan(_Read):
    """What plan.json says of the whole run; `unknown`: of a stream, what can't be said before it is read."""

    steps: int
    packing_waste: float
    parameters: int | None = None
    trainable_parameters: int | None = None
    sources: tuple[PlannedSource, ...]
    warnings: tuple[str, ...] = ()
    contamination: str = ""
    streaming: bool = False
    unknown: str = ""


class LoggedStep(_Read):
    """One step's line in metrics.jsonl; a value that wasn't finite is None. The last three: of reinforcement alone."""

    step: int
    loss: float | None
    learning_rate: float
    grad_norm: float | None
    tokens: int
    supervised_tokens: int
    seconds: float
    reward: float | None = None
    groups_with_signal: float | None = None
    reply_tokens: float | None = None


class LoggedScore(_Read):
    """A task's points of `total` problems."""

    points: float
    total: int

    @property
    def mean(self) -> float:
        """Points a problem."""
        return self.points / self.total


class Evaluation(_Read):
    """One evaluation in metrics.jsonl; a value that wasn't finite, or wasn't measured, is None."""

    step: int
    heldout_loss: float | None = None
    heldout_bits_per_byte: float | None = None
    scores: dict[str, LoggedScore] = {}
    seconds: float = 0.0


class SampleReply(_Read):
    """One reply in samples.jsonl."""

    step: int
    prompt: str
    reply: str


@dataclass(frozen=True, slots=True)
class SavedStep:
    """One checkpoint: its size, and the ledger stored in it; `damage` says why it can't be used."""

    name: str
    step: int
    damage: str | None
    manifest: Manifest | None
    ledger: Ledger | None
    best: bool

    @property
    def bytes(self) -> int:
        """Of all its files, as the manifest has them."""
        return sum(file.bytes for file in self.manifest.files.values()) if self.manifest else 0


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run as its folder has it.

    Args:
        recipe: every setting; changed: YAML of those that differ from the defaults.
        ledger: of the newest complete checkpoint (`newest`), or of the plan where there is none.
        missing: what isn't there, each with what can't be told without it.
    """

    path: str
    recipe: Mapping[str, Any]
    changed: str
    plan: Plan | None
    ledger: Ledger | None
    steps: tuple[LoggedStep, ...]
    evaluations: tuple[Evaluation, ...]
    samples: tuple[SampleReply, ...]
    checkpoints: tuple[SavedStep, ...]
    newest: SavedStep | None
    missing: tuple[str, ...]

    @property
    def manifest(self) -> Manifest | None:
        """Of the newest complete checkpoint."""
        return self.newest.manifest if self.newest else None

    @property
    def best_step(self) -> int | None:
        """The step of the checkpoint that is marked as the best."""
        return next((each.step for each in self.checkpoints if each.best), None)

    @property
    def finished(self) -> bool:
        """Whether the newest complete checkpoint is that of the last planned step."""
        return bool(self.newest and self.plan and self.newest.step >= self.plan.steps)

    @property
    def stopped_early(self) -> bool:
        """Whether the recipe's patience was over at the newest complete checkpoint."""
        if self.manifest is None:
            return False
        patience = self.manifest.recipe.get("train", {}).get("early_stopping_patience")
        return bool(patience) and self.manifest.progress.get("worse_evaluations", 0) >= patience

    @property
    def sums(self) -> list[Sum]:
        """The ledger's equations; of a finished run, all that was packed must have been trained."""
        return self.ledger.sums(finished=self.finished) if self.ledger else []


def read_run(path: str | Path, recipe_type: type[Settings]) -> RunRecord:
    """Read a run folder.

    Args:
        recipe_type: the class of recipe.yaml, whose defaults the recipe is compared with.

    Raises:
        CheckpointError: the folder holds no run, or a file in it is damaged (naming it).
        ConfigError: recipe.yaml is no YAML.
    """
    folder = RunFolder(path, writes=False)
    saved = list_checkpoints(folder.path)
    present = {name: (folder.path / name).is_file() for name in ("recipe.yaml", "plan.json", "metrics.jsonl")}
    if not (saved or present["plan.json"] or present["metrics.jsonl"]):
        hint = chain_hint(folder.path) or "give the run folder that `chatwright train` wrote"
        raise CheckpointError("holds no run", place=str(path), hint=hint)
    recipe, changed = _recipe(folder.path / "recipe.yaml", recipe_type) if present["recipe.yaml"] else ({}, "")
    plan, planned_ledger = _plan(folder.path / "plan.json") if present["plan.json"] else (None, None)
    steps, evaluations = _metrics(folder)
    replies = folder.path / "samples.jsonl"
    samples = tuple(_checked(SampleReply, each, replies) for each in folder.read_samples())
    checkpoints = tuple(_checkpoint(each, best_checkpoint(folder.path)) for each in saved)
    newest = next((each for each in reversed(checkpoints) if each.damage is None), None)
    present["complete checkpoint"] = newest is not None
    missing = [f"no {name}: {LOSSES[name]}" for name, there in present.items() if not there]
    ledger = newest.ledger if newest else planned_ledger
    run = (steps, evaluations, samples, checkpoints, newest, tuple(missing))
    return RunRecord(str(path), recipe, changed, plan, ledger, *run)


def _recipe(path: Path, recipe_type: type[Settings]) -> tuple[dict[str, Any], str]:
    """Every setting, and what differs from the defaults; the whole where this version doesn't know the recipe."""
    plain = read_yaml(path)
    try:
        return plain, dump_yaml(build(recipe_type, plain, str(path)), only_changed=True)
    except ConfigError:
        return plain, "# this version can't read the recipe, so it is shown whole\n" + path.read_text(encoding="utf-8")


def _plan(path: Path) -> tuple[Plan, Ledger]:
    data = _json(path)
    return _checked(Plan, data.get("plan"), path), _ledger(data.get("ledger"), path)


def _metrics(folder: RunFolder) -> tuple[tuple[LoggedStep, ...], tuple[Evaluation, ...]]:
    path, records = folder.path / "metrics.jsonl", folder.read_metrics()
    steps = (_checked(LoggedStep, each, path) for each in records if "loss" in each)
    evaluations = (_checked(Evaluation, each, path) for each in records if "scores" in each or "heldout_loss" in each)
    return tuple(steps), tuple(evaluations)


def _checkpoint(folder: Path, best: Path | None) -> SavedStep:
    damage = find_damage(folder)
    if damage is not None:
        return SavedStep(folder.name, step_of(folder), damage, None, None, False)
    state = folder / "training_state.json"
    ledger = _ledger(_json(state).get("ledger"), state)
    return SavedStep(folder.name, step_of(folder), None, read_manifest(folder), ledger, folder == best)


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"can't be read: {error}", place=str(path)) from None
    if not isinstance(value, dict):
        raise CheckpointError("damaged: no JSON object", place=str(path))
    return value


def _checked(kind: type[_R], value: Any, path: Path) -> _R:
    try:
        return kind.model_validate(value)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"damaged: {where}: {first['msg']}", place=str(path)) from None


def _ledger(value: Any, path: Path) -> Ledger:
    try:
        return Ledger.from_dict(value)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"damaged ledger: {error!r}", place=str(path)) from None
