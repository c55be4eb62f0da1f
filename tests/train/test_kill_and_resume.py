"""Killed (signal 9) or stopped (Ctrl-C) at any moment and resumed, a run gives the bits of one that never stopped."""

from __future__ import annotations

import math
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from chatwright.checkpoints.store import best_checkpoint, latest_checkpoint, list_checkpoints, step_of
from chatwright.cli.train import run_train
from chatwright.inspection.ledger import LedgerError
from chatwright.optim.master_optimizer import MasterOptimizer
from chatwright.recipes import build, resuming, saving
from chatwright.recipes.run_settings import RunSettings
from chatwright.train.trainer import Progress
from training_runs import (
    Crash,
    CrashAfter,
    conversations,
    differing_bits,
    finish_ranks,
    log_lines,
    prepare,
    recipe,
    run_command,
    start_command,
    start_ranks,
    train,
    write_recipe,
    write_rows,
)

KINDS: dict[str, dict[str, Any]] = {
    "float32": {"train": {"dtype": "float32"}},
    "bfloat16": {"train": {"dtype": "bfloat16"}},
    "lora": {"adapter": {"rank": 4, "dropout": 0.1}, "optimizer": {"learning_rate": 5e-3}},
}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """24 conversations; some are held out."""
    return write_rows(tmp_path / "rows.jsonl", conversations(24))


def long_recipe(model: Path, rows: Path, out: Path, kind: str, epochs: int) -> RunSettings:
    """Many small steps, saved and evaluated often."""
    base: dict[str, Any] = {
        "packing": {"tokens_per_pack": 256, "packs_per_step": 2},
        "heldout": {"share": 0.2},
        "optimizer": {"learning_rate": 1e-3, "weight_decay": 0.1},
        "schedule": {"name": "cosine", "warmup_fraction": 0.1},
        "train": {"epochs": epochs, "save_every": 3},
        "eval": {"every": 4},
    }
    for room, changes in KINDS[kind].items():
        base[room] = {**base.get(room, {}), **changes}
    return recipe(model, rows, out, **base)


def steps_logged(run: Path) -> int:
    path = run / "trace.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for_progress(process: subprocess.Popen[str], run: Path) -> None:
    """Wait until the process has trained a step (resuming first shortens the log)."""
    before, deadline = steps_logged(run), time.monotonic() + 120
    while (now := steps_logged(run)) <= before and process.poll() is None:
        before = now
        assert time.monotonic() < deadline, "no step in two minutes"
        time.sleep(0.002)


def kill_after_progress(processes: list[subprocess.Popen[str]], run: Path, seconds: float) -> bool:
    """Kill −9 this long after the first new step; False where the run was over before."""
    wait_for_progress(processes[0], run)
    time.sleep(seconds)
    alive = processes[0].poll() is None
    for process in processes:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    return alive


def test_killed_then_stopped_by_ctrl_c_then_resumed(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    """Real processes: kill −9, then SIGINT, which ends the step, saves and says how to go on; then to the end."""
    whole = long_recipe(tiny_model, rows, tmp_path / "whole", "float32", 16)
    run_train(str(write_recipe(whole, tmp_path / "whole.yaml")), [], False)
    run = tmp_path / "stopped"
    file = write_recipe(long_recipe(tiny_model, rows, run, "float32", 16), tmp_path / "stopped.yaml")
    assert kill_after_progress([start_command("train", file)], run, 0.1), "it was over before the kill"

    second = start_command("train", file, "--resume")
    wait_for_progress(second, run)
    second.send_signal(signal.SIGINT)
    printed, _ = second.communicate(timeout=120)
    assert second.returncode == 130 and "stopped by the user: step" in printed, printed
    going_on = re.search(r"Go on with:\s+chatwright train (\S+) --resume", " ".join(printed.split()))
    assert going_on is not None and Path(going_on[1]) == run, printed
    stopped_at = latest_checkpoint(run)
    assert stopped_at is not None and step_of(stopped_at) == steps_logged(run) > 0
    assert differing_bits(run, tmp_path / "whole"), "it was over before Ctrl-C"

    run_train(going_on[1], [], True)
    assert differing_bits(run, tmp_path / "whole") == []
    steps = [line["step"] for line in log_lines(run / "metrics.jsonl") if "loss" in line]
    assert steps == list(range(1, len(steps) + 1)), "a step twice, or none"


@pytest.mark.parametrize("kind", KINDS)
def test_crashed_at_any_step_and_resumed(tiny_model: Path, rows: Path, tmp_path: Path, kind: str) -> None:
    """Before the first save, right behind one, between two, and behind an evaluation."""
    train(long_recipe(tiny_model, rows, tmp_path / "whole", kind, 5))
    settings = long_recipe(tiny_model, rows, tmp_path / "crashed", kind, 5)
    for step in (2, 4, 4, 8, 9):
        with pytest.raises(Crash):
            train(settings, resume=step > 2, hooks=[CrashAfter(step)])
    run = train(settings, resume=True)
    assert run.trainer.start.step == 6
    assert differing_bits(tmp_path / "crashed", tmp_path / "whole") == []
    again = train(settings, resume=True)
    assert again.result.progress == run.result.progress and not math.isfinite(again.result.loss)
    assert differing_bits(tmp_path / "crashed", tmp_path / "whole") == []


def moments_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """The optimizer begins anew."""
    monkeypatch.setattr(MasterOptimizer, "load_state_dict", lambda self, state: None)


def moments_without_their_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adam's bias correction begins anew."""
    load = MasterOptimizer.load_state_dict
    monkeypatch.setattr(
        MasterOptimizer, "load_state_dict", lambda self, state: load(self, {**state, "step": torch.tensor(1)})
    )


def weights_from_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """PITFALL 17: the resumed weights were rounded to bfloat16."""
    read = resuming.read_masters
    rounded = lambda folder: {name: tensor.bfloat16().float() for name, tensor in read(folder).items()}  # noqa: E731
    monkeypatch.setattr(resuming, "read_masters", rounded)


def one_step_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The position is one too low."""
    restore = build.restore

    def early(*arguments: Any) -> Progress:
        progress = restore(*arguments)
        return replace(progress, step=progress.step - 1)

    monkeypatch.setattr(build, "restore", early)


@pytest.mark.parametrize(
    "mistake",
    [moments_lost, moments_without_their_step, weights_from_half_precision],
    ids=lambda f: f.__name__,
)
def test_the_comparison_sees_a_mistake(
    tiny_model: Path,
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mistake: Callable[[pytest.MonkeyPatch], None],
) -> None:
    train(long_recipe(tiny_model, rows, tmp_path / "whole", "float32", 3))
    settings = long_recipe(tiny_model, rows, tmp_path / "wrong", "float32", 3)
    with pytest.raises(Crash):
        train(settings, hooks=[CrashAfter(5)])
    mistake(monkeypatch)
    train(settings, resume=True)
    found = differing_bits(tmp_path / "wrong", tmp_path / "whole")
    assert any("model.safetensors" in name for name in found), found


def test_a_step_that_is_trained_twice_does_not_balance(
    tiny_model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = long_recipe(tiny_model, rows, tmp_path / "wrong", "float32", 3)
    with pytest.raises(Crash):
        train(settings, hooks=[CrashAfter(5)])
    one_step_twice(monkeypatch)
    with pytest.raises(LedgerError, match="trained"):
        train(settings, resume=True)


def test_a_damaged_newest_checkpoint_is_passed_over(
    tiny_model: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(long_recipe(tiny_model, rows, tmp_path / "whole", "float32", 4))
    settings = long_recipe(tiny_model, rows, tmp_path / "damaged", "float32", 4)
    with pytest.raises(Crash):
        train(settings, hooks=[CrashAfter(8)])
    weights = tmp_path / "damaged" / "step-000006" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-7] ^= 1
    weights.write_bytes(content)
    run = train(settings, resume=True)
    assert run.trainer.start.step == 3 and "skipping checkpoint step-000006" in capsys.readouterr().err
    assert differing_bits(tmp_path / "damaged", tmp_path / "whole") == []


def test_a_kill_between_saving_and_marking_the_best_is_made_good(
    tiny_model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held-out loss falls at step 12, the run dies as it is about to say so; the best is marked on resuming."""
    settings = long_recipe(tiny_model, rows, tmp_path / "run", "float32", 5)
    real = saving.mark_best

    def killed(run: Path, folder: Path, metric: str, **how: bool) -> bool:
        if step_of(folder) == 12:
            raise Crash
        return real(run, folder, metric, **how)

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(saving, "mark_best", killed)
        train(settings)
    assert best_checkpoint(tmp_path / "run") is None
    prepare(settings, resume=True)
    best = best_checkpoint(tmp_path / "run")
    assert best is not None and step_of(best) == 12
    assert len(list_checkpoints(tmp_path / "run")) == 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_ten_random_moments(tiny_model: Path, rows: Path, tmp_path: Path, kind: str) -> None:
    moments = random.Random(kind)
    whole = long_recipe(tiny_model, rows, tmp_path / "whole", kind, 120)
    run_command("train", write_recipe(whole, tmp_path / "whole.yaml"))
    run = tmp_path / "killed"
    file = write_recipe(long_recipe(tiny_model, rows, run, kind, 120), tmp_path / "killed.yaml")
    kills, places = 0, set()
    for attempt in range(40):
        if kills == 10:
            break
        process = start_command("train", file, "--resume")
        if attempt % 5 == 4:  # while it starts, restores or shortens its logs
            time.sleep(moments.uniform(1, 5))
            kills += process.poll() is None
            process.kill()
            process.communicate()
        else:
            kills += kill_after_progress([process], run, moments.uniform(0, 0.5))
        places.add(steps_logged(run))
        if process.returncode == 0:
            break
    assert kills >= 10, f"only {kills} kills came before the end"
    assert len(places) >= 6, places
    run_command("train", file, "--resume")
    assert differing_bits(run, tmp_path / "whole") == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["float32", "lora"])
def test_two_ranks_killed_and_resumed(tiny_model: Path, rows: Path, tmp_path: Path, kind: str) -> None:
    moments = random.Random(7)
    whole = long_recipe(tiny_model, rows, tmp_path / "whole", kind, 60)
    finish_ranks(start_ranks(2, "train", write_recipe(whole, tmp_path / "whole.yaml")))
    run = tmp_path / "killed"
    file = write_recipe(long_recipe(tiny_model, rows, run, kind, 60), tmp_path / "killed.yaml")
    for _ in range(3):
        assert kill_after_progress(start_ranks(2, "train", file, "--resume"), run, moments.uniform(0, 0.5))
    finish_ranks(start_ranks(2, "train", file, "--resume"))
    assert differing_bits(run, tmp_path / "whole") == []


@pytest.mark.slow
def test_ctrl_c_on_one_rank_stops_both(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    settings = long_recipe(tiny_model, rows, tmp_path / "run", "float32", 200)
    ranks = start_ranks(2, "train", write_recipe(settings, tmp_path / "run.yaml"))
    wait_for_progress(ranks[0], tmp_path / "run")
    ranks[1].send_signal(signal.SIGINT)
    printed = finish_ranks(ranks)
    assert "stopped by the user" in printed[0] and "stopped by the user" not in printed[1]
    checkpoint = latest_checkpoint(tmp_path / "run")
    assert checkpoint is not None and step_of(checkpoint) == steps_logged(tmp_path / "run")
