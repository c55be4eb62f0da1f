"""Whole runs with Muon: resumed, on two ranks, and begun with the optimizer state of the run before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from chatwright.checkpoints.store import latest_checkpoint
from chatwright.checkpoints.tensors import TrainingState
from chatwright.errors import CheckpointError, ConfigError
from training_runs import (
    Crash,
    CrashAfter,
    checkpoint_tensors,
    conversations,
    differing_bits,
    finish_ranks,
    prepare,
    recipe,
    start_ranks,
    train,
    write_recipe,
    write_rows,
)

MUON: dict[str, Any] = {"preset": "nanochat", "rules": [], "muon": {"momentum_warmup_steps": 5}}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", conversations(16))


def optimizer_state(run: Path) -> TrainingState:
    folder = latest_checkpoint(run)
    assert folder is not None
    return TrainingState.load(folder)


def test_a_killed_run_goes_on_bit_for_bit(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"optimizer": MUON, "train": {"save_every": 2}}
    train(recipe(tiny_model, rows, tmp_path / "whole", **changes))
    killed = recipe(tiny_model, rows, tmp_path / "killed", **changes)
    trainer, _, _ = prepare(killed, hooks=[CrashAfter(3)])
    with pytest.raises(Crash):
        trainer.train()
    train(killed, resume=True)
    assert differing_bits(tmp_path / "whole", tmp_path / "killed") == []
    assert any(name.startswith("momentum.") for name in optimizer_state(tmp_path / "killed").optimizer)


@pytest.mark.slow
def test_two_ranks_have_one_processs_bits(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    """Steps of two packs: a rank each adds the same two gradients as one process, so not a bit may differ."""
    options: dict[str, Any] = {
        "optimizer": MUON,
        "packing": {"by": "tokens", "tokens_per_pack": 256, "packs_per_step": 2},
    }
    one = train(recipe(tiny_model, rows, tmp_path / "one", **options))
    two = recipe(tiny_model, rows, tmp_path / "two", **options)
    finish_ranks(start_ranks(2, "train", write_recipe(two, tmp_path / "two.yaml")))
    folder = latest_checkpoint(tmp_path / "two")
    assert folder is not None and folder.name == one.folder.name
    ours, theirs = checkpoint_tensors(one.folder), checkpoint_tensors(folder)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_a_warm_start_goes_on_where_the_parent_was(
    tiny_model: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At a rate of nearly 0 the first step moves the moments as if the parent had gone on."""
    parent = train(recipe(tiny_model, rows, tmp_path / "parent", optimizer=MUON))
    before = optimizer_state(tmp_path / "parent")
    steps = parent.result.progress.step
    warm = {**MUON, "warm_start": True}
    child = recipe(tmp_path / "parent", rows, tmp_path / "child", optimizer=warm, train={"save_every": 1})
    trainer, _, _ = prepare(child)
    own = trainer.trainer.optimizer
    assert all(torch.equal(own.state_dict()[name], tensor) for name, tensor in before.optimizer.items())
    assert own.step_count == steps and trainer.start.step == 0
    trainer.train()
    after = optimizer_state(tmp_path / "child")
    assert int(after.optimizer["step"]) == 2 * steps and after.step == steps
    assert "go on from the parent's state" in capsys.readouterr().err


def test_a_warm_run_is_resumed_bit_for_bit(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    """AdamW after Muon: the matrices' moments begin late, and a resumed run still counts them right."""
    train(recipe(tiny_model, rows, tmp_path / "parent", optimizer=MUON))
    adam: dict[str, Any] = {"optimizer": {"warm_start": True, "learning_rate": 1e-3}, "train": {"save_every": 2}}
    train(recipe(tmp_path / "parent", rows, tmp_path / "whole", **adam))
    killed = recipe(tmp_path / "parent", rows, tmp_path / "killed", **adam)
    trainer, _, _ = prepare(killed, hooks=[CrashAfter(3)])
    began = trainer.trainer.optimizer.began
    assert began and all(".layers." in name for name in began)
    with pytest.raises(Crash):
        trainer.train()
    train(killed, resume=True)
    assert differing_bits(tmp_path / "whole", tmp_path / "killed") == []


def test_a_grown_vocabulary_gets_new_rows_of_moments(
    tiny_model: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(recipe(tiny_model, rows, tmp_path / "parent", optimizer=MUON))
    grown = {"format": "nanochat", "add_missing_tokens": True}
    warm = {**MUON, "warm_start": True}
    trainer, _, model = prepare(recipe(tmp_path / "parent", rows, tmp_path / "child", optimizer=warm, template=grown))
    name = "exp_avg_sq.model.embed_tokens.weight"
    before, now = optimizer_state(tmp_path / "parent").optimizer[name], trainer.trainer.optimizer.state_dict()[name]
    assert len(now) > len(before) and torch.equal(now[: len(before)], before)
    assert not now[len(before) :].any() and model.fresh_rows
    assert "1 got new rows (model.embed_tokens.weight)" in capsys.readouterr().err


def test_a_warm_start_without_a_parent_begins_no_run(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    warm = {**MUON, "warm_start": True}
    with pytest.raises(CheckpointError, match="kept its optimizer state"):
        prepare(recipe(tiny_model, rows, tmp_path / "run", optimizer=warm))
    assert not (tmp_path / "run").exists()


def test_nothing_of_the_parents_fits(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    train(recipe(tiny_model, rows, tmp_path / "parent"))
    lora = {"adapter": {"rank": 2}, "optimizer": {"warm_start": True}}
    with pytest.raises(CheckpointError, match="fits no parameter"):
        prepare(recipe(tmp_path / "parent", rows, tmp_path / "run", **lora))


def test_the_embeddings_rate_is_refused_for_a_tied_model(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"one matrix for both: write optimizer\.rules: \[\]"):
        prepare(recipe(tiny_model, rows, tmp_path / "run", optimizer={"preset": "nanochat"}))
    assert not (tmp_path / "run").exists()
    prepare(recipe(tiny_model, rows, tmp_path / "run", optimizer=MUON))
