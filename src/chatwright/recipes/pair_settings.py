"""What a recipe of preference pairs must say, and what it needn't."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from chatwright.conversations.data_settings import DataSettings
from chatwright.templates.overflow import Overflow

if TYPE_CHECKING:
    from chatwright.recipes.run_settings import RunSettings

PAIR_STAGES = ("dpo", "reward")
"""Stages that train on two replies to one prompt."""


def with_pairs(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe of one of `PAIR_STAGES` with its settings, whose entries take pairs where they don't say anything."""
    filled, stage = dict(recipe), recipe.get("stage")
    if stage not in PAIR_STAGES:
        return filled
    if filled.get(stage) is None:
        filled[stage] = {}
    if isinstance(recipe.get("data"), list | tuple):
        filled["data"] = [_taking_pairs(entry) for entry in recipe["data"]]
    heldout = recipe.get("heldout")
    if isinstance(heldout, Mapping) and isinstance(heldout.get("data"), list | tuple):
        filled["heldout"] = {**heldout, "data": [_taking_pairs(entry) for entry in heldout["data"]]}
    return filled


def _taking_pairs(entry: Any) -> Any:
    """Leave alone what isn't a mapping of settings, or says itself what it takes; its own validation tells of it."""
    if isinstance(entry, DataSettings) and entry.preference is None and entry.path:
        return entry.model_copy(update={"preference": "pairs"})
    if not isinstance(entry, Mapping) or entry.get("preference") is not None or entry.get("task"):
        return entry
    return {**entry, "preference": "pairs"}


def overflow_choices(stage: str) -> str:
    """What `overflow` can be at a stage instead of an error, as a sentence names it."""
    return "drop or truncate" if stage in PAIR_STAGES else "drop, truncate or split_turns"


def against_pairs(settings: RunSettings) -> Iterator[str]:
    """What can't be as it's asked for, of pairs and of the stages that take them."""
    for stage in PAIR_STAGES:
        if getattr(settings, stage) is not None and settings.stage != stage:
            yield f"{stage} belongs to stage: {stage}, found stage: {settings.stage}"
    entries = (*settings.data, *settings.heldout.data)
    if settings.stage not in PAIR_STAGES:
        named = [entry.source_name for entry in entries if entry.preference == "pairs"]
        if named:
            yield (
                f"preference: pairs belongs to stage: dpo or reward, found stage: {settings.stage} "
                f"({', '.join(named)}); preference: chosen trains on the better replies"
            )
        return
    for entry in entries:
        if entry.preference != "pairs":
            yield (
                f"stage: {settings.stage} needs preference pairs, and {entry.source_name} "
                + ("is a task" if entry.task else "has preference: chosen; remove it")
            )
    if settings.streaming is not None:
        yield f"stage: {settings.stage} reads all pairs before it begins: remove streaming"
    if settings.overflow is Overflow.SPLIT_TURNS:
        yield "overflow: split_turns would part a prompt from its replies: set drop or truncate"
    if settings.packing.by == "constant_length":
        yield "packing.by: constant_length cuts examples, and a pair can't be cut: set tokens or examples"
    if settings.stage == "reward" and settings.adapter is not None:
        yield "stage: reward trains the whole model and its score: remove adapter"
    if settings.stage == "reward" and (settings.eval.tasks or settings.eval.prompts):
        yield "a reward model writes no replies: remove eval.tasks and eval.prompts"
    if settings.stage == "dpo" and settings.new_model is not None:
        yield "stage: dpo prefers replies that a trained model can give: name a model instead of new_model"
