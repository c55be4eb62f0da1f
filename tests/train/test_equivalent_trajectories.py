"""However a step is cut into packs, micro-batches, recomputed layers or ranks, the trained weights are the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import chatwright.batches.loader as loader
import chatwright.train.trainer as trainer_module
from chatwright.batches.collate import collate
from chatwright.checkpoints.store import latest_checkpoint
from chatwright.recipes.data import build_data
from chatwright.train.step import StepSums, accumulate_step
from training_runs import (
    checkpoint_tensors,
    conversations,
    farthest,
    finish_ranks,
    recipe,
    start_ranks,
    train,
    write_recipe,
    write_rows,
)

BOUNDS = {"float32": 1e-5, "float64": 1e-12}
EPOCHS = 5
WHOLE = {"by": "tokens", "tokens_per_pack": 2048, "packs_per_step": 1}
SPLITS: dict[str, dict[str, Any]] = {
    "many packs": {"packing": {"by": "tokens", "tokens_per_pack": 160}},
    "uneven packs": {"packing": {"by": "tokens", "tokens_per_pack": 300}},
    "by examples": {"packing": {"by": "examples", "tokens_per_pack": 2048, "examples_per_step": 16}},
    "one example a pack": {"packing": {"by": "examples", "tokens_per_pack": 160, "examples_per_step": 16}},
    "recomputed layers": {"packing": WHOLE, "train": {"activation_checkpointing": True}},
}
LENGTH = {"train": {"epochs": EPOCHS}, "optimizer": {"learning_rate": 3e-3, "weight_decay": 0.1}}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """16 conversations, about 600 tokens."""
    return write_rows(tmp_path / "rows.jsonl", conversations(16))


def one_step_an_epoch(model: Path, rows: Path, packing: dict[str, Any]) -> dict[str, Any]:
    """The packing with all packs of the data in one step."""
    if packing["by"] == "examples":
        return packing
    packs = build_data(recipe(model, rows, rows, packing=packing)).plan.num_packs
    return {**packing, "packs_per_step": packs}


def trained(model: Path, rows: Path, out: Path, dtype: str, split: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The weights after 5 steps of all 16 conversations."""
    settings = recipe(model, rows, out, **LENGTH, packing=one_step_an_epoch(model, rows, split["packing"]))
    options = {**split.get("train", {}), "dtype": dtype}
    settings = settings.model_copy(update={"train": settings.train.model_copy(update=options)})
    run = train(settings)
    assert run.result.progress.step == EPOCHS
    return run.weights


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_any_split_gives_the_same_weights(tiny_model: Path, rows: Path, tmp_path: Path, dtype: str) -> None:
    whole = trained(tiny_model, rows, tmp_path / "whole", dtype, {"packing": WHOLE})
    far = {
        name: farthest(trained(tiny_model, rows, tmp_path / name, dtype, split), whole)
        for name, split in SPLITS.items()
    }
    assert max(far.values()) <= BOUNDS[dtype], far


def test_two_ranks_give_the_same_weights(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    """Two processes over gloo share one step of 5 packs: one of them runs a dummy of weight 0."""
    one = train(recipe(tiny_model, rows, tmp_path / "one", **LENGTH, packing=WHOLE))
    packing = one_step_an_epoch(tiny_model, rows, SPLITS["uneven packs"]["packing"])
    assert packing["packs_per_step"] % 2, "one rank must have a pack less"
    two = recipe(tiny_model, rows, tmp_path / "two", **LENGTH, packing=packing)
    finish_ranks(start_ranks(2, "train", write_recipe(two, tmp_path / "two.yaml")))
    folder = latest_checkpoint(tmp_path / "two")
    assert folder is not None
    assert farthest(checkpoint_tensors(folder), checkpoint_tensors(one.folder)) <= BOUNDS["float32"]
    lines = [line for line in one.steps if line["step"] == EPOCHS]
    assert lines[0]["supervised_tokens"] == one.data.store.supervised_counts.sum()


def mean_per_micro_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mistake of PITFALL 12: each micro-batch is averaged by itself."""

    def averaged(module: Any, step: Any, runtime: Any, **options: Any) -> StepSums:
        def forward(batch: Any) -> Any:
            outcome = module(batch)
            share = step.weight / len(step.packs)
            return replace(outcome, total=outcome.total / outcome.weight * share)

        return accumulate_step(forward, step, runtime, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(trainer_module, "accumulate_step", averaged)


def first_pack_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step trains all its packs but the first, and says otherwise."""

    def short(module: Any, step: Any, runtime: Any, **options: Any) -> StepSums:
        weight = step.weight
        sums = accumulate_step(module, replace(step, packs=step.packs[1:]), runtime, **options)
        return replace(sums, weight=weight)

    monkeypatch.setattr(trainer_module, "accumulate_step", short)


def conversations_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mistake of PITFALL 10: all conversations of a pack are one segment for the attention."""

    def leaking(*args: Any, **options: Any) -> Any:
        batch = collate(*args, **options)
        whole = type(batch.layout).from_lengths([len(batch.input_ids)])
        return replace(batch, layout=whole)

    monkeypatch.setattr(loader, "collate", leaking)


def lopsided_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every conversation behind the first of its pack has its labels shifted by one."""

    def shifted(*args: Any, **options: Any) -> Any:
        batch = collate(*args, **options)
        behind = (batch.segment_of_target > 0).long()
        return replace(batch, supervised_index=(batch.supervised_index + behind).clamp(max=len(batch.input_ids) - 1))

    monkeypatch.setattr(loader, "collate", shifted)


@pytest.mark.parametrize(
    "mistake", [mean_per_micro_batch, first_pack_lost, conversations_leak, lopsided_labels], ids=lambda f: f.__name__
)
def test_the_comparison_sees_a_mistake(
    tiny_model: Path,
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mistake: Callable[[pytest.MonkeyPatch], None],
) -> None:
    whole = trained(tiny_model, rows, tmp_path / "whole", "float32", {"packing": WHOLE})
    mistake(monkeypatch)
    wrong = trained(tiny_model, rows, tmp_path / "wrong", "float32", SPLITS["uneven packs"])
    assert farthest(wrong, whole) > 100 * BOUNDS["float32"]


def test_a_dropped_mask_is_caught_at_once(
    tiny_model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PITFALL 2: batches that train the prompts too are not what the plan counted."""

    def everything(*args: Any, **options: Any) -> Any:
        batch = collate(*args, **options)
        index = torch.arange(len(batch.input_ids) - 1)
        return replace(
            batch,
            supervised_index=index,
            targets=batch.input_ids[1:],
            weights=torch.ones(len(index)),
            segment_of_target=torch.zeros(len(index), dtype=torch.int64),
        )

    monkeypatch.setattr(loader, "collate", everything)
    with pytest.raises(AssertionError, match="differs from the plan"):
        trained(tiny_model, rows, tmp_path / "wrong", "float32", {"packing": WHOLE})
