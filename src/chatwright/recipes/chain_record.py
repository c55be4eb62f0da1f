"""What a chain remembers of its stages, `chain.json` in its folder: of what each was made, and what came of it.

By that a stage that is done is skipped, and one that isn't what the recipe says any more is told.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from chatwright.checkpoints.imports import ResolvedModel, resolve_model
from chatwright.checkpoints.lineage import weights_hash
from chatwright.checkpoints.store import best_checkpoint, latest_checkpoint
from chatwright.conversations.data_settings import DataSettings
from chatwright.errors import CheckpointError
from chatwright.recipes.chain_settings import TOKENIZER, ChainStage
from chatwright.recipes.new_model import tokenizer_folder
from chatwright.recipes.rendering import fingerprints
from chatwright.recipes.run_settings import RunSettings
from chatwright.recipes.setting_changes import flat_settings, setting_changes
from chatwright.run_folder import RunFolder, write_whole
from chatwright.templates.tokenizer import TextTokenizer

RECORD_NAME = "chain.json"
_INDIFFERENT = ("out", "tracking", "preparation", "recipe_version", "beside")
"""Settings that say where and how fast, but not what comes of a stage."""
_NEW_PLACE = "bring the file back, or begin anew in another folder with --set out=…"
_INDIFFERENT_TRAIN = ("device", "threads", "log_every", "save_every", "keep_last")


class StageRecord(BaseModel):
    """One stage as it was begun, and how it ended.

    Args:
        recipe: the settings that decide what comes of it, by dotted name.
        data: sha256 of its sources, None where they can't be hashed without reading them all. parent: `result` of the
            stage it grew from (of its best checkpoint for `from: NAME:best`), or the hash of the model (or tokenizer)
            that the recipe names. grew_from: that stage's name.
        folder: where its results are.
        result: `weights_hash` of its last checkpoint, a tokenizer's identity; None until it is finished.
        step, tokens: trained. seconds: of the sessions that ended in order.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    stage: str
    folder: str
    recipe: dict[str, Any]
    data: str | None = None
    parent: str | None = None
    grew_from: str | None = None
    result: str | None = None
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0

    @property
    def recipe_hash(self) -> str:
        """sha256 of `recipe`."""
        return hashlib.sha256(json.dumps(self.recipe, sort_keys=True).encode()).hexdigest()


class _Records(BaseModel):
    """What chain.json holds."""

    stages: dict[str, StageRecord] = {}


def read_records(folder: Path) -> dict[str, StageRecord]:
    """The stages that a chain's folder remembers, by name.

    Raises:
        CheckpointError: the record is damaged.
    """
    path = folder / RECORD_NAME
    try:
        return dict(_Records.model_validate_json(path.read_bytes()).stages)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise CheckpointError(f"can't be read: {error.strerror or error}", place=str(path), hint=_NEW_PLACE) from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        reason = first["msg"] if not place else f"{place}: {first['msg']}"
        message = f"is damaged, so what the chain has done can't be told ({reason})"
        raise CheckpointError(message, place=str(path), hint=_NEW_PLACE) from None


def write_records(folder: Path, records: Mapping[str, StageRecord]) -> None:
    """Write chain.json, all at once."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / RECORD_NAME, _Records(stages=dict(records)).model_dump_json(indent=1) + "\n")


# What a stage is made of


def begun(stage: ChainStage, folder: Path, parent: str | None) -> StageRecord:
    """The record of a stage that is about to begin.

    Args:
        parent: the hash of what the stage before it gave; None where it grows from none.

    Raises:
        UserError: its data or model can't be found.
    """
    settings = stage.settings
    entries = [*settings.data, *(settings.heldout.data if isinstance(settings, RunSettings) else ())]
    return StageRecord(
        name=stage.name,
        stage=stage.kind,
        folder=str(folder),
        recipe=decisive_settings(stage),
        data=_sources_hash(entries),
        parent=parent if stage.parent is not None else _named_parent(stage),
        grew_from=stage.parent,
    )


def _sources_hash(entries: Sequence[DataSettings]) -> str | None:
    """sha256 of what decides the rows of entries; None where one can't be hashed without reading it all."""
    found = fingerprints(entries)
    return None if found is None else hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def _named_parent(stage: ChainStage) -> str | None:
    """The hash of the model or tokenizer that the recipe itself names."""
    settings = stage.settings
    if not isinstance(settings, RunSettings):
        return None
    if settings.new_model is not None:
        return TextTokenizer.load(tokenizer_folder(settings.new_model.tokenizer)).identity
    resolved = resolve_model(str(settings.model))
    return weights_hash(resolved.folder, resolved.adapter)


def decisive_settings(stage: ChainStage) -> dict[str, Any]:
    """The settings that decide what comes of a stage, by dotted name; its parent's place isn't among them."""
    plain = stage.settings.model_dump(mode="json", exclude=set(_INDIFFERENT))
    if stage.parent is not None:
        plain.pop("model", None)
        (plain.get("new_model") or {}).pop("tokenizer", None)
    train = plain.get("train", {})
    for name in _INDIFFERENT_TRAIN:
        train.pop(name, None)
    if train and not train.get("early_stopping_patience"):
        plain.pop("eval", None)
    return dict(flat_settings(plain))


def changes(record: StageRecord, now: StageRecord, parent: str | None) -> list[str]:
    """What is no longer as it was when the stage began, in words.

    Args:
        parent: its parent stage's name.
    """
    found = setting_changes(record.recipe, now.recipe, open_rooms=("new_model",))
    known = record.data is not None and now.data is not None  # else the hub is, or was, out of reach
    if known and record.data != now.data and not any(change.startswith(("data", "heldout")) for change in found):
        found.append("its data: the files hold something else")
    if record.parent != now.parent:
        found.append(another_parent(parent))
    return found


def another_parent(name: str | None) -> str:
    """That a stage's parent isn't the one it grew from, in words; None for a model that the recipe names."""
    return f"its parent: {name or 'the model that the recipe names'} is another than it grew from"


# What came of it


class State(StrEnum):
    """How far a stage is."""

    NEW = "to do"
    HALF = "half done"
    DONE = "done"


def holds_results(kind: str, folder: Path) -> bool:
    """Whether a stage was begun in a folder."""
    return (folder / "tokenizer.json").is_file() if kind == TOKENIZER else RunFolder(folder).holds_run()


def result_of(kind: str, folder: Path, *, best: bool = False) -> str | None:
    """The hash of what a stage's folder holds now; None where there is nothing whole.

    Args:
        best: of its best checkpoint, and not of its last.
    """
    if kind == TOKENIZER:
        return TextTokenizer.load(folder).identity if (folder / "tokenizer.json").is_file() else None
    checkpoint = (best_checkpoint if best else latest_checkpoint)(folder) if folder.is_dir() else None
    if checkpoint is None:
        return None
    resolved: ResolvedModel = resolve_model(checkpoint)
    return weights_hash(resolved.folder, resolved.adapter)
