"""The figures of a run that can be set side by side, and the settings in which two runs differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from chatwright.console import duration
from chatwright.reports.run_record import RunRecord

Figure = int | float | None

FIGURES = {
    "steps": "steps saved",
    "planned_steps": "steps planned",
    "tokens": "tokens trained",
    "supervised_tokens": "supervised tokens trained",
    "first_loss": "training loss, first step logged",
    "last_loss": "training loss, last step logged",
    "reward_first": "reward, first step logged",
    "reward_last": "reward, last step logged",
    "heldout_first": "held-out loss, first",
    "heldout_last": "held-out loss, last",
    "heldout_best": "held-out loss, lowest",
    "heldout_bits_first": "held-out bits per byte, first",
    "heldout_bits_last": "held-out bits per byte, last",
    "seconds": "time of the steps logged",
    "evaluation_seconds": "time of the evaluations",
    "tokens_per_second": "tokens a second in steps",
    "supervised_tokens_per_second": "supervised tokens a second in steps",
    "packing_waste": "room in packs left empty",
    "parameters": "parameters",
    "trainable_parameters": "parameters trained",
}
"""Every figure with its words."""


def final_figures(run: RunRecord) -> dict[str, Figure]:
    """How the run stands; None where no file tells."""
    manifest, plan = run.manifest, run.plan
    losses = [each.loss for each in run.steps if each.loss is not None]
    rewards = [each.reward for each in run.steps if each.reward is not None]
    heldout = [each.heldout_loss for each in run.evaluations if each.heldout_loss is not None]
    bits = [each.heldout_bits_per_byte for each in run.evaluations if each.heldout_bits_per_byte is not None]
    seconds = sum(each.seconds for each in run.steps)
    found: dict[str, Figure] = dict.fromkeys(FIGURES)
    if manifest is not None:
        found |= {"steps": manifest.step, "tokens": manifest.tokens, "supervised_tokens": manifest.supervised_tokens}
    if plan is not None:
        found |= {"planned_steps": plan.steps, "packing_waste": None if plan.streaming else plan.packing_waste}
        found |= {"parameters": plan.parameters, "trainable_parameters": plan.trainable_parameters}
    if losses:
        found |= {"first_loss": losses[0], "last_loss": losses[-1]}
    if rewards:
        found |= {"reward_first": rewards[0], "reward_last": rewards[-1]}
    if heldout:
        found |= {"heldout_first": heldout[0], "heldout_last": heldout[-1], "heldout_best": min(heldout)}
    if bits:
        found |= {"heldout_bits_first": bits[0], "heldout_bits_last": bits[-1]}
    if run.evaluations:
        found["evaluation_seconds"] = round(sum(each.seconds for each in run.evaluations), 3)
    if seconds > 0:
        found["seconds"] = round(seconds, 3)
        found["tokens_per_second"] = sum(each.tokens for each in run.steps) / seconds
        found["supervised_tokens_per_second"] = sum(each.supervised_tokens for each in run.steps) / seconds
    return found


def words_of(name: str, value: Figure) -> str:
    """A figure to read."""
    if value is None:
        return "–"
    if name.endswith("seconds"):
        return f"{value:.1f} s" if value < 60 else duration(value)
    if name == "packing_waste":
        return f"{value:.1%}"
    return f"{value:.4f}" if name.startswith("reward") or "loss" in name or "heldout" in name else f"{value:,.0f}"


def differing_settings(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(dotted name, first, second) of every setting that differs, but the folder the run is in."""
    ours, theirs = dict(_flat(first)), dict(_flat(second))
    names = [name for name in ours | theirs if name != "out" and ours.get(name) != theirs.get(name)]
    return [(name, ours.get(name, "–"), theirs.get(name, "–")) for name in names]


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Settings by dotted name, their values as JSON."""
    parts = value if isinstance(value, Mapping) else {}
    if isinstance(value, list) and any(isinstance(each, Mapping) for each in value):
        parts = dict(enumerate(value))
    for key, each in parts.items():
        yield from _flat(each, f"{name}.{key}" if name else str(key))
    if not parts:
        yield name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
