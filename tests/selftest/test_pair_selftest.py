"""The selftest of recipes of preference pairs: every law holds, and a broken layout of shared prompts is found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from chatwright.batches import pairs as pair_batches
from chatwright.recipes import preferences
from chatwright.runtime import Runtime
from chatwright.selftest.laws import check_recipe
from chatwright.selftest.outcome import Status
from training_runs import preference_pairs, recipe, write_rows

CPU = Runtime(torch.device("cpu"))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "pairs.jsonl", preference_pairs(8))


@pytest.mark.parametrize("stage", ["dpo", "reward"])
def test_every_law_holds_or_has_nothing_to_look_at(stage: str, tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    report = check_recipe(recipe(tiny_model, rows, tmp_path / "out", stage=stage), CPU, full=True)
    assert report.broken == []
    status = {outcome.name: outcome.status for outcome in report.outcomes}
    for name in ("packing", "splits", "labels", "resume"):
        assert status[name] is Status.HOLDS
    silent = {name for name, found in status.items() if found is Status.NOT_APPLICABLE}
    assert ("serving" in silent) == (stage == "reward")
    assert next(outcome for outcome in report.outcomes if outcome.name == "packing").detail.startswith("8 pairs")


def test_a_reply_at_a_wrong_position_is_found(
    tiny_model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shifted(*arguments: Any, **options: Any) -> Any:
        batch = pair_batches.collate_pairs(*arguments, **options)
        if not isinstance(batch, pair_batches.PairBatch):  # a rank without a pack
            return batch
        moved = batch.position_ids.clone()
        moved[sum(batch.layout.lengths_q[: batch.num_pairs]) :] += 1
        return replace(batch, position_ids=moved)

    monkeypatch.setattr(preferences, "collate_pairs", shifted)
    report = check_recipe(recipe(tiny_model, rows, tmp_path / "out", stage="dpo"), CPU, laws=["gradients"])
    assert report.broken == ["packing"]
