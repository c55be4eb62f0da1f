"""How a run goes on from a checkpoint: only as what it was, so that resumed equals never stopped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from chatwright.checkpoints.lineage import model_hash
from chatwright.checkpoints.manifest import Manifest, read_manifest
from chatwright.checkpoints.tensors import TrainingState, load_tensors
from chatwright.console import note
from chatwright.errors import CheckpointError
from chatwright.models.weights import weight_files
from chatwright.optim.master_optimizer import MasterOptimizer
from chatwright.recipes.ancestry import start_of
from chatwright.recipes.run_settings import RunSettings
from chatwright.recipes.setting_changes import null_changes
from chatwright.recipes.streaming import TrainingData
from chatwright.runtime import Runtime, determinism_tuple
from chatwright.train.trainer import Progress

ADAPTER_MASTERS = "adapter_masters.safetensors"


def restore(
    checkpoint: Path, optimizer: MasterOptimizer, settings: RunSettings, data: TrainingData, runtime: Runtime
) -> Progress:
    """Load masters and optimizer state into `optimizer`, and set `data` to where the run stood; returns that.

    Raises:
        CheckpointError: data, template, tokenizer, base model or a setting that decides the weights has changed.
    """
    state = TrainingState.load(checkpoint)  # on the host: a device holds the moments once already
    changed = _changes(state, read_manifest(checkpoint), settings, data)
    if changed:
        listed = "\n".join(f"  - {change}" for change in changed)
        raise CheckpointError(
            f"resuming would train something else than the run began; changed since this checkpoint:\n{listed}",
            place=str(checkpoint),
            hint="restore them, or begin a new run with --set out=OTHER (from these weights: --set model=THIS_RUN)",
        )
    if runtime.is_main:
        _tell_of_other_bits(read_manifest(checkpoint).determinism, determinism_tuple(runtime))
    data.go_on(state.counters)
    optimizer.load_masters(read_masters(checkpoint))
    optimizer.load_state_dict(dict(state.optimizer))
    return _progress(state.counters["progress"])


def _progress(stored: Mapping[str, Any]) -> Progress:
    """Checkpoints of older versions know a best loss only."""
    values = dict(stored)
    if "best_loss" in values:
        values["best_value"] = values.pop("best_loss")
    return Progress(**values)


def _tell_of_other_bits(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Resuming elsewhere is allowed, but only an equal determinism tuple promises equal bits."""
    known = [name for name in now if name in before]
    changed = [f"{name} was {before[name]}, is {now[name]}" for name in known if before[name] != now[name]]
    if changed:
        note(f"resumed under other conditions, so the last bits may differ: {'; '.join(changed)}")


def _changes(state: TrainingState, manifest: Manifest, settings: RunSettings, data: TrainingData) -> list[str]:
    """What decides the weights and is not as it was, in words; settings first, since they explain the rest."""
    text, now = data.text, data.identity()
    decisive = _decisive_settings(settings.model_dump(mode="json"))
    before = _decisive_settings(manifest.recipe)
    # a setting that the checkpoint's version didn't have yet is no change
    found = [
        f"{name}: was {before[name]}, is {decisive[name]}"
        for name in decisive
        if name in before and before[name] != decisive[name]
    ]
    found += null_changes(before, decisive)
    identities = {
        "the tokenizer": (manifest.tokenizer_identity, text.tokenizer.identity),
        "the template": (manifest.template_identity, text.template.identity),
        "the base model": (manifest.base_hash, model_hash(text.resolved.folder, new=text.resolved.new)),
        "the data or its masks": (state.counters["data"], now["data"]),
        "the held-out data": (state.counters["heldout"], now["heldout"]),
    }
    found += [name for name, (then, is_now) in identities.items() if then != is_now]
    if manifest.start_hash is not None and manifest.start_hash != start_of(text.resolved)[1]:
        found.append("the adapter that it began with")
    if not found and state.counters["plan"] != now["plan"]:
        found.append("the order of the data: how it is packed, or for how long")
    return found


def _decisive_settings(recipe: dict[str, Any]) -> dict[str, Any]:
    """The settings that decide the weights besides the data, by dotted name.

    How often to log, save or evaluate, how long to be patient, where to write and how to compute may change.
    """
    decisive = {f"train.{name}": recipe["train"].get(name) for name in ("epochs", "max_steps", "seed", "dtype")}
    decisive["an adapter"] = bool(recipe["adapter"])
    for room in ("optimizer", "schedule", "packing", "mixture", "adapter", "streaming", "dpo", "reward", "rl", "moe"):
        decisive |= {f"{room}.{name}": value for name, value in (recipe.get(room) or {}).items()}
        if room in recipe and recipe[room] is None and room != "adapter":
            decisive[room] = None
    if recipe.get("streaming") and "contamination" in recipe:  # a planned run's tokens tell themselves
        chosen = recipe["contamination"]
        decisive["contamination"] = chosen if chosen and chosen["on_hit"] == "drop" else None
    return decisive


def read_masters(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The trainable parameters of a checkpoint by name, in full precision."""
    own = checkpoint / ADAPTER_MASTERS
    tensors: dict[str, torch.Tensor] = {}
    for path in [own] if own.is_file() else weight_files(checkpoint):
        tensors |= load_tensors(path)[0]
    return tensors
