"""Checkpoints after kills, damage and retention."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from chatwright.checkpoints.lineage import model_hash
from chatwright.checkpoints.manifest import Manifest, find_damage, manifest_hash, read_manifest
from chatwright.checkpoints.store import (
    best_checkpoint,
    clean_leftovers,
    keep,
    latest_checkpoint,
    list_checkpoints,
    mark_best,
    save_checkpoint,
    step_of,
)
from chatwright.checkpoints.tensors import TrainingState, load_tensors, save_tensors
from chatwright.errors import CheckpointError, ModelError


def writer(step: int, size: int = 1000) -> Callable[[Path], None]:
    """Fills a checkpoint with tensors that tell its step, and a file in a folder."""

    def write(folder: Path) -> None:
        save_tensors({"weight": torch.full((size,), float(step))}, folder / "model.safetensors")
        TrainingState(step, step * 10, step * 5, {"flat": torch.full((size,), -float(step))}).save(folder)
        (folder / "extra").mkdir()
        (folder / "extra" / "note.txt").write_text(f"step {step}")

    return write


def save(run: Path, step: int, **metrics: float) -> Path:
    return save_checkpoint(run, Manifest(step=step, stage="sft", metrics=metrics), writer(step))


def check_contents(folder: Path) -> int:
    """The step of a checkpoint whose every part agrees on it."""
    step = read_manifest(folder).step
    state = TrainingState.load(folder)
    assert folder.name == f"step-{step:06d}" and state.step == step and state.supervised_tokens == step * 5
    assert load_tensors(folder / "model.safetensors")[0]["weight"].eq(step).all()
    assert state.optimizer["flat"].eq(-step).all()
    return step


def test_save_and_find_again(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None and list_checkpoints(tmp_path) == []
    first, second = save(tmp_path, 5), save(tmp_path, 1_000_000)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000005", "step-1000000"]
    assert latest_checkpoint(tmp_path, verify="full") == second
    assert check_contents(first) == 5
    manifest = read_manifest(second)
    assert set(manifest.files) == {
        "model.safetensors",
        "training_state.safetensors",
        "training_state.json",
        "extra/note.txt",
    }
    assert manifest.created and manifest_hash(first) != manifest_hash(second)
    assert not list(tmp_path.glob(".*"))


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    folder = save(tmp_path, 5)
    (folder / "model.safetensors").write_bytes(b"damaged")
    assert save(tmp_path, 5) == folder and find_damage(folder, "full") is None
    assert [path.name for path in tmp_path.iterdir()] == ["step-000005"]


def test_a_failing_writer_leaves_nothing(tmp_path: Path) -> None:
    def full_disk(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise OSError(28, "No space left on device")

    save(tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"step-000002: .*No space left(.|\n)*--resume"):
        save_checkpoint(tmp_path, Manifest(step=2, stage="sft"), full_disk)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


def wait_for_step(run: Path, step: int) -> None:
    """Wait until a checkpoint of this step or a later one stands there, however slow the disk is."""
    deadline = time.monotonic() + 60
    while not any(step_of(folder) >= step for folder in list_checkpoints(run)):
        assert time.monotonic() < deadline, "the child never came to save"
        time.sleep(0.002)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_kill_while_saving_leaves_the_previous_one(tmp_path: Path) -> None:
    """A child saves without pause and is killed (signal 9) at random moments; each survivor goes on from there."""
    moments, reached, leftovers = random.Random(0), 0, 0
    for _ in range(12):
        child = os.fork()
        if child == 0:
            try:
                torch.set_num_threads(1)  # a forked process has no OpenMP threads, and would wait for them
                for step in range(reached + 1, reached + 10_000):
                    save_checkpoint(tmp_path, Manifest(step=step, stage="sft"), writer(step, 200_000))
                    keep(tmp_path, last=2)
            finally:
                os._exit(1)
        wait_for_step(tmp_path, reached + 1)
        time.sleep(0.1 * moments.random())
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        skipped: list[str] = []
        latest = latest_checkpoint(tmp_path, verify="full", on_skip=skipped.append)
        assert skipped == []
        if latest is not None:
            assert check_contents(latest) >= reached
            reached = read_manifest(latest).step
        leftovers += len(list(tmp_path.glob(".step-*.tmp-*")))
    assert reached >= 12, "each child saved at least once"
    assert leftovers > 0, "no kill came while saving"
    clean_leftovers(tmp_path)
    assert not list(tmp_path.glob(".step-*"))


def test_a_kill_between_the_two_renames_is_undone(tmp_path: Path) -> None:
    folder = save(tmp_path, 5)
    folder.rename(tmp_path / ".step-000005.old-1")
    (tmp_path / ".step-000005.tmp-1").mkdir()
    (tmp_path / ".step-000004.gone-1").mkdir()
    assert clean_leftovers(tmp_path) == [".step-000004.gone-1", ".step-000005.tmp-1"]
    assert latest_checkpoint(tmp_path, verify="full") == folder


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-10] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "damage", "verify", "message"),
    [
        ("model.safetensors", truncate, "sizes", "bytes, but"),
        ("training_state.safetensors", flip_a_bit, "full", "sha256 differs"),
        ("extra/note.txt", Path.unlink, "sizes", "missing"),
        ("manifest.json", truncate, "sizes", None),
        ("manifest.json", lambda path: path.write_bytes(path.read_bytes()[:100]), "sizes", "damaged"),
        ("manifest.json", Path.unlink, "sizes", "can't be read"),
    ],
)
def test_a_damaged_checkpoint_is_skipped_by_name(
    tmp_path: Path, name: str, damage: Callable[[Path], None], verify: str, message: str | None
) -> None:
    good, bad = save(tmp_path, 1), save(tmp_path, 2)
    damage(bad / name)
    skipped: list[str] = []
    found = latest_checkpoint(tmp_path, verify=verify, on_skip=skipped.append)  # type: ignore[arg-type]
    if message is None:  # the last line break only: still whole
        assert found == bad
    else:
        assert found == good
        assert len(skipped) == 1 and "step-000002" in skipped[0] and name in skipped[0] and message in skipped[0]


def test_a_skipped_checkpoint_is_reported_by_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (save(tmp_path, 2) / "model.safetensors").unlink()
    assert latest_checkpoint(tmp_path) is None
    assert "step-000002/model.safetensors: missing" in capsys.readouterr().err.replace(os.sep, "/")


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 1) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 99}))
    with pytest.raises(CheckpointError, match="format version 99"):
        read_manifest(path.parent)


def test_retention_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step, loss in enumerate([3.0, 1.0, 2.0, 2.5, 2.6], start=1):
        assert mark_best(tmp_path, save(tmp_path, step, heldout_loss=loss), "heldout_loss") is (step <= 2)
    assert best_checkpoint(tmp_path) == tmp_path / "step-000002"
    assert [path.name for path in keep(tmp_path, last=2)] == ["step-000001", "step-000003"]
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000002", "step-000004", "step-000005"]
    (tmp_path / "step-000005" / "model.safetensors").unlink()  # damaged: it doesn't count as the newest
    assert keep(tmp_path, last=1) == []
    save(tmp_path, 6)
    assert [path.name for path in keep(tmp_path, last=1)] == ["step-000004", "step-000005"]


def test_best_by_a_metric_that_rises(tmp_path: Path) -> None:
    first, second = save(tmp_path, 1, accuracy=0.5), save(tmp_path, 2, accuracy=0.6)
    assert mark_best(tmp_path, first, "accuracy", higher_is_better=True)
    assert mark_best(tmp_path, second, "accuracy", higher_is_better=True)
    with pytest.raises(CheckpointError, match=r"no metric 'loss'; it has: accuracy"):
        mark_best(tmp_path, second, "loss")
    (tmp_path / "best.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"best\.json"):
        best_checkpoint(tmp_path)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def test_tensors_keep_every_bit(tmp_path: Path) -> None:
    flat = torch.randn(10)
    tensors = {
        "view": flat[:4],
        "other": flat[4:].reshape(2, 3).T,
        "same": flat[:4],
        "half": torch.randn(3).bfloat16(),
        "flag": torch.tensor(True),
        "count": torch.tensor(2**53 + 1),
        "empty": torch.zeros(0, 3),
        "odd": torch.tensor([float("nan"), float("inf"), -0.0]),
    }
    save_tensors(tensors, tmp_path / "t.safetensors", {"betas": [0.9, 0.95], "name": "Ω"})
    loaded, metadata = load_tensors(tmp_path / "t.safetensors")
    assert metadata == {"betas": [0.9, 0.95], "name": "Ω"} and set(loaded) == set(tensors)
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype and loaded[name].shape == tensor.shape
        assert bits(loaded[name]) == bits(tensor)
    truncate(tmp_path / "t.safetensors")
    with pytest.raises(CheckpointError, match=r"t\.safetensors"):
        load_tensors(tmp_path / "t.safetensors")


def test_training_state_comes_back(tmp_path: Path) -> None:
    state = TrainingState(
        7, 70, 35, {"m": torch.randn(3)}, {"best_loss": float("inf"), "loader": {"at": 3}}, {"read": 1}
    )
    state.save(tmp_path)
    loaded = TrainingState.load(tmp_path)
    assert (loaded.step, loaded.counters, loaded.ledger) == (7, state.counters, state.ledger)
    assert torch.equal(loaded.optimizer["m"], state.optimizer["m"])
    with pytest.raises(CheckpointError, match="no training state"):
        TrainingState.load(tmp_path / "elsewhere")


def test_model_hash_tells_models_apart(tmp_path: Path) -> None:
    save_tensors({"w": torch.zeros(2)}, tmp_path / "model.safetensors")
    config = tmp_path / "config.json"
    config.write_text('{"a": 1, "b": 2, "transformers_version": "5.1"}')
    first = model_hash(tmp_path)
    config.write_text('{"b": 2, "a": 1, "transformers_version": "5.2"}')
    assert model_hash(tmp_path) == first
    config.write_text('{"b": 2, "a": 3}')
    assert model_hash(tmp_path) != first
    config.unlink()
    with pytest.raises(ModelError, match=r"config\.json"):
        model_hash(tmp_path)
