"""Reinforcement raises the reward: from a model that rows have half trained, on the grades of its own replies alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chatwright.tasks.registry import TASKS
from rewarded_task import Parity
from training_runs import Run, recipe, train


def run(model: Path, out: Path, **changes: Any) -> Run:
    """All sixteen questions in each step."""
    packing = {"by": "examples", "examples_per_step": 16, "tokens_per_pack": 2048}
    return train(recipe(model, None, out, data=[{"task": "parity"}], packing=packing, **changes))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_rewards_rise(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setitem(TASKS, Parity.name, Parity)
    rows = run(tiny_model, tmp_path / "sft", train={"epochs": 45, "seed": seed}, optimizer={"learning_rate": 5e-3})
    drawn = run(
        rows.folder,
        tmp_path / "rl",
        stage="rl",
        rl={"samples": 8, "max_new_tokens": 8},
        optimizer={"learning_rate": 3e-3},
        schedule={"name": "constant"},
        train={"epochs": 30, "seed": seed},
    )
    rewards = [line["reward"] for line in drawn.steps]
    first, last = sum(rewards[:5]) / 5, sum(rewards[-5:]) / 5
    assert last > first + 0.3, rewards
