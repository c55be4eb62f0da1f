"""Whole DPO runs: they learn, split, resume and rest on one reference, made once."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chatwright.checkpoints.imports import cache_folder
from chatwright.errors import CheckpointError
from chatwright.recipes import reference
from chatwright.recipes.data import RunData, build_data
from chatwright.recipes.model import build_model
from chatwright.recipes.reference import compute_reference, reference_log_probs
from chatwright.recipes.run_settings import RunSettings
from shared_files import shared
from training_runs import (
    CPU,
    Crash,
    CrashAfter,
    checkpoint_tensors,
    differing_bits,
    farthest,
    finish_ranks,
    preference_pairs,
    prepare,
    recipe,
    run_command,
    start_ranks,
    train,
    write_recipe,
    write_rows,
)

KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "bfloat16": {"train": {"dtype": "bfloat16"}},
    "lora": {"adapter": {"rank": 4}, "optimizer": {"learning_rate": 5e-3}},
    "ipo": {"dpo": {"loss": "ipo", "beta": 0.5}},
}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "pairs.jsonl", preference_pairs(24))


def dpo(model: Path, rows: Path, out: Path, **changes: Any) -> RunSettings:
    base: dict[str, Any] = {"stage": "dpo", "heldout": {"share": 0.2}, "eval": {"every": 2}}
    return recipe(model, rows, out, **{**base, **changes})


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_pairs_are_told_apart_after_training(kind: str, tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    run = train(dpo(tiny_model, rows, tmp_path / "out", **KINDS[kind]))
    measured = [line for line in run.trainer.run.read_metrics() if "heldout_loss" in line]
    before, after = measured[0], measured[-1]
    begins_at = 1.0 if kind == "ipo" else math.log(2)
    assert before["heldout_loss"] == pytest.approx(begins_at, abs=1e-2 if kind == "bfloat16" else 1e-5)
    assert after["heldout_loss"] < before["heldout_loss"]
    assert after["heldout_accuracy"] == 1.0 and after["heldout_margin"] > 0.1
    assert "heldout_bits_per_byte" not in after
    first = run.steps[0]
    assert first["loss"] == pytest.approx(begins_at, abs=1e-2 if kind == "bfloat16" else 1e-5)
    assert {"accuracy", "margin", "reward_chosen", "reward_rejected"} <= set(first)


def test_the_reference_is_made_once_and_is_what_it_would_be_anew(
    tiny_model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = dpo(tiny_model, rows, tmp_path / "out")
    data = build_data(settings)
    assert isinstance(data, RunData)
    model = build_model(settings, data.text, CPU)
    first = reference_log_probs(settings, data, model, CPU)
    anew = compute_reference(settings, data, model, CPU)
    assert first.shape == (24, 2) and np.array_equal(first.numpy(), anew)

    def never(*arguments: Any) -> Any:
        raise AssertionError("the reference was made again")

    monkeypatch.setattr(reference, "compute_reference", never)
    assert torch.equal(reference_log_probs(settings, data, model, CPU), first)
    other = settings.model_copy(update={"packing": settings.packing.model_copy(update={"tokens_per_pack": 512})})
    with pytest.raises(AssertionError, match="made again"):
        reference_log_probs(other, data, model, CPU)


def test_a_damaged_reference_is_made_again(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    settings = dpo(tiny_model, rows, tmp_path / "out")
    data = build_data(settings)
    assert isinstance(data, RunData)
    model = build_model(settings, data.text, CPU)
    first = reference_log_probs(settings, data, model, CPU)
    [kept] = (cache_folder() / reference.FOLDER).glob("*.npy")
    kept.write_bytes(kept.read_bytes()[:100])
    assert torch.equal(reference_log_probs(settings, data, model, CPU), first)
    assert len(np.load(kept)) == 24


def test_a_model_that_moves_on_keeps_its_reference(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    """The second run begins from the first one's adapter, which belongs to its reference."""
    first = train(dpo(tiny_model, rows, tmp_path / "a", **KINDS["lora"]))
    second = train(dpo(Path(first.folder), rows, tmp_path / "b", **KINDS["lora"]))
    assert first.steps[-1]["loss"] < 0.6
    assert second.steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)


def test_a_quantized_base_has_a_reference_of_its_own(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    """NF4 weights give other log-probabilities than the full ones of the same folder, whose reference is kept."""
    pytest.importorskip("bitsandbytes")
    for base in ("full", "nf4"):
        changes = {"adapter": {"rank": 4, "base": base}, "train": {"max_steps": 1}}
        run = train(dpo(tiny_model, rows, tmp_path / base, **changes))
        assert run.steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-5), base
    assert len(list((cache_folder() / reference.FOLDER).glob("*.npy"))) == 2


@pytest.mark.parametrize("packs", [1, 3])
def test_a_step_may_be_split_into_any_packs(tiny_model: Path, rows: Path, tmp_path: Path, packs: int) -> None:
    by_pairs = {"by": "examples", "examples_per_step": 6, "tokens_per_pack": 1024}
    whole = train(dpo(tiny_model, rows, tmp_path / "whole", packing=by_pairs, train={"dtype": "float64"}))
    split = {**by_pairs, "tokens_per_pack": 170 if packs == 3 else 2048}
    other = train(dpo(tiny_model, rows, tmp_path / "split", packing=split, train={"dtype": "float64"}))
    assert farthest(other.weights, whole.weights) < 1e-10


@pytest.mark.parametrize("kind", ["full", "bfloat16", "lora"])
def test_stopped_and_resumed_is_never_stopped(kind: str, tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    changes = {**KINDS[kind], "train": {**KINDS[kind].get("train", {}), "save_every": 2}}
    train(dpo(tiny_model, rows, tmp_path / "whole", **changes))
    with pytest.raises(Crash):
        prepare(dpo(tiny_model, rows, tmp_path / "cut", **changes), hooks=[CrashAfter(3)])[0].train()
    for kept in (cache_folder() / reference.FOLDER).glob("*.npy"):
        kept.unlink()  # the reference is that of the model before training, whenever it is made
    train(dpo(tiny_model, rows, tmp_path / "cut", **changes), resume=True)
    assert differing_bits(tmp_path / "whole", tmp_path / "cut") == []


def test_another_beta_is_another_run(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    train(dpo(tiny_model, rows, tmp_path / "out", train={"max_steps": 2, "save_every": 1}))
    with pytest.raises(CheckpointError, match=r"dpo\.beta: was 0\.1, is 0\.5"):
        train(dpo(tiny_model, rows, tmp_path / "out", train={"max_steps": 2}, dpo={"beta": 0.5}), resume=True)


@pytest.mark.slow
def test_two_ranks_train_what_one_does(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    changes = {"packing": {"tokens_per_pack": 256, "packs_per_step": 3}, "train": {"dtype": "float64"}}
    for name in ("one", "two"):
        write_recipe(dpo(tiny_model, rows, tmp_path / name, **changes), tmp_path / f"{name}.yaml")
    run_command("train", tmp_path / "one.yaml")
    finish_ranks(start_ranks(2, "train", tmp_path / "two.yaml"))
    one, two = (checkpoint_tensors(sorted((tmp_path / name).glob("step-*"))[-1]) for name in ("one", "two"))
    masters = [name for name in one if name.startswith("model.safetensors")]
    assert masters and farthest({n: two[n] for n in masters}, {n: one[n] for n in masters}) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("file", ["hh_rlhf_harmless_base_test.jsonl.gz", "dpo_zh_demo.json"])
def test_real_pairs_are_learned_by_a_small_real_model(file: str, tmp_path: Path) -> None:
    """English and Chinese pairs through a model of 260,000 parameters: those that are trained on are told apart."""
    changes: dict[str, Any] = {
        "data": [{"path": str(shared(f"data/preference/{file}")), "stop": 120, "on_bad_row": "skip"}],
        "max_tokens": 500,
        "overflow": "truncate",
        "packing": {"tokens_per_pack": 1024, "packs_per_step": 2},
        "optimizer": {"learning_rate": 1e-3},
        "train": {"epochs": 3},
        "heldout": {"share": 0.1},
    }
    run = train(recipe(shared("models/stories260k"), None, tmp_path / "out", stage="dpo", **changes))
    assert run.steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert run.steps[-1]["loss"] < 0.6 and run.steps[-1]["accuracy"] > 0.7
