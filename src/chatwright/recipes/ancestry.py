"""Where a model came from: its training runs back to the first, by what each checkpoint's manifest says."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from chatwright.checkpoints.imports import ResolvedModel, resolve_model
from chatwright.checkpoints.lineage import weights_hash
from chatwright.checkpoints.manifest import Manifest, read_manifest
from chatwright.errors import CheckpointError, ModelError


class Bond(StrEnum):
    """How a training's parent is found today."""

    INTACT = "as it was"
    CHANGED = "changed since"
    MISSING = "not there any more"
    NEW = "made new"


@dataclass(frozen=True, slots=True)
class Ancestor:
    """One training of a model.

    Args:
        place: the checkpoint. stage, step, tokens: what it is, and how far it came.
        weights: `weights_hash` of the checkpoint. recipe: sha256 of the whole recipe. data: sha256 of its tokens.
        parent: the name of the model that it began with. parent_hash: `weights_hash` of that. bond: what is there now.
    """

    place: str
    stage: str
    step: int
    tokens: int
    weights: str
    recipe: str
    data: str | None
    parent: str
    parent_hash: str | None
    bond: Bond

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "bond": str(self.bond)}


def ancestry(name: str) -> list[Ancestor]:
    """A model's trainings by Chatwright, the newest first; empty for a model from elsewhere.

    Args:
        name: anything `resolve_model` finds.

    Raises:
        ModelError, CheckpointError: the model itself can't be found or is damaged; a lost parent ends the list.
    """
    found: list[Ancestor] = []
    checkpoint = resolve_model(name).checkpoint
    while checkpoint is not None and str(checkpoint) not in [each.place for each in found]:
        manifest = read_manifest(checkpoint)
        bond, parent = _bond(manifest)
        found.append(_ancestor(checkpoint, manifest, bond))
        checkpoint = parent
    return found


def _ancestor(checkpoint: Path, manifest: Manifest, bond: Bond) -> Ancestor:
    resolved = resolve_model(checkpoint)
    return Ancestor(
        place=str(checkpoint),
        stage=manifest.stage,
        step=manifest.step,
        tokens=manifest.tokens,
        weights=weights_hash(resolved.folder, resolved.adapter),
        recipe=plain_hash(manifest.recipe),
        data=manifest.data.get("data"),
        parent=manifest.start_source or manifest.base_source or "",
        parent_hash=manifest.start_hash or manifest.base_hash,
        bond=bond,
    )


def start_of(resolved: ResolvedModel) -> tuple[str | None, str | None]:
    """Of the adapter that a training begins with: what `resolve_model` finds it by, and `weights_hash`; else None."""
    if resolved.adapter is None:
        return None, None
    return str(resolved.checkpoint or resolved.adapter), weights_hash(resolved.folder, resolved.adapter)


def plain_hash(plain: Mapping[str, Any]) -> str:
    """sha256 of plain JSON values, whatever their order."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _bond(manifest: Manifest) -> tuple[Bond, Path | None]:
    """What became of the model that a training began with, and the checkpoint that it is."""
    if manifest.recipe.get("new_model"):
        return Bond.NEW, None
    try:
        resolved = resolve_model(manifest.start_source or manifest.base_source or "")
        same = weights_hash(resolved.folder, resolved.adapter) == (manifest.start_hash or manifest.base_hash)
    except (ModelError, CheckpointError):
        return Bond.MISSING, None
    return (Bond.INTACT, resolved.checkpoint) if same else (Bond.CHANGED, None)
