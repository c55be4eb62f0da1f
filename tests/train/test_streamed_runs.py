"""Runs that stream their data: what a planned run promises holds for them, and the commands tell what can be known."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chatwright.checkpoints.store import latest_checkpoint
from chatwright.cli.plan import run_plan
from chatwright.cli.train import run_train
from chatwright.errors import CheckpointError, ConfigError
from chatwright.inspection.ledger import Ledger, LedgerError, Stage
from chatwright.packing.by_tokens import PackByTokens
from chatwright.preparation import logical_reader, streamed_rows
from chatwright.preparation.stream import Stream, StreamPosition
from chatwright.recipes.data import build_planned
from chatwright.recipes.run_settings import RunSettings
from chatwright.train.trainer import Trainer
from training_runs import (
    Crash,
    CrashAfter,
    checkpoint_tensors,
    conversations,
    differing_bits,
    farthest,
    finish_ranks,
    log_lines,
    merged,
    prepare,
    recipe,
    start_command,
    start_ranks,
    train,
    write_recipe,
    write_rows,
)


@pytest.fixture(autouse=True)
def small_blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many blocks in little data; not where other processes run, too."""
    if request.node.get_closest_marker("slow") is None:
        monkeypatch.setattr(streamed_rows, "ROWS_PER_BLOCK", 5)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """40 conversations, and 6 to measure on."""
    write_rows(tmp_path / "heldout.jsonl", conversations(6, start=500))
    return write_rows(tmp_path / "rows.jsonl", conversations(40))


def stream_recipe(model: Path, rows: Path, out: Path, steps: int = 9, **changes: Any) -> RunSettings:
    """Three readers with windows of 12 examples; saved and evaluated often."""
    base: dict[str, Any] = {
        "streaming": {"readers": 3},
        "heldout": {"data": [{"path": str(rows.parent / "heldout.jsonl")}]},
        "packing": {"window": 12, "packs_per_step": 2},
        "schedule": {"name": "cosine", "warmup_fraction": 0.2},
        "train": {"max_steps": steps, "save_every": 3},
        "eval": {"every": 4},
    }
    return recipe(model, rows, out, **merged(base, changes))


def crashed_and_resumed(settings: RunSettings, *steps: int) -> None:
    for number, step in enumerate(steps):
        with pytest.raises(Crash):
            train(settings, resume=number > 0, hooks=[CrashAfter(step)])
    train(settings, resume=True)


def test_crashed_at_any_step_and_resumed(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    """Before the first save, behind one, in the middle of a window and at its end: bit for bit, ledger included."""
    whole = train(stream_recipe(tiny_model, rows, tmp_path / "whole", 15))
    assert whole.result.progress.step == 15 and math.isfinite(whole.result.loss)
    assert [line["step"] for line in whole.trainer.run.read_metrics() if "heldout_loss" in line] == [0, 4, 8, 12, 15]
    crashed_and_resumed(stream_recipe(tiny_model, rows, tmp_path / "crashed", 15), 2, 4, 8, 11, 14)
    assert differing_bits(tmp_path / "crashed", tmp_path / "whole") == []
    again = train(stream_recipe(tiny_model, rows, tmp_path / "crashed", 15), resume=True)
    assert again.result.progress == whole.result.progress
    saved = json.loads((whole.folder / "training_state.json").read_text())
    ledger = Ledger.from_dict(saved["ledger"])
    ledger.check(finished=True)
    assert ledger.tokens(Stage.TRAINED) == saved["tokens"] == sum(line["tokens"] for line in whole.steps)


def units_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A window is begun again from its first pack."""
    original = StreamPosition.from_dict

    def early(data: dict[str, Any]) -> StreamPosition:
        position = original(data)
        return replace(position, readers=tuple(replace(each, used=1) for each in position.readers))

    patch.setattr(StreamPosition, "from_dict", staticmethod(early))


def rows_forgotten(patch: pytest.MonkeyPatch) -> None:
    """The rest of the block that a reader held is lost, and the check for changed rows with it."""
    original = logical_reader.ReaderState.from_dict

    def lost(data: dict[str, Any]) -> logical_reader.ReaderState:
        state = original(data)
        return replace(state, cursors=tuple(replace(each, used=99) for each in state.cursors))

    patch.setattr(logical_reader.ReaderState, "from_dict", staticmethod(lost))
    patch.setattr(Stream, "_require_same_windows", lambda self: None)


def another_order(patch: pytest.MonkeyPatch) -> None:
    """The packs of a window come in another order after resuming."""
    original = PackByTokens.pack_epoch
    patch.setattr(
        PackByTokens, "pack_epoch", lambda self, a, b, c, seed, epoch: original(self, a, b, c, seed + 1, epoch)
    )
    patch.setattr(Stream, "_require_same_windows", lambda self: None)


@pytest.mark.parametrize("mistake", [units_forgotten, rows_forgotten, another_order], ids=lambda f: f.__name__)
def test_the_comparison_sees_a_mistake(
    tiny_model: Path,
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mistake: Callable[[pytest.MonkeyPatch], None],
) -> None:
    train(stream_recipe(tiny_model, rows, tmp_path / "whole", 12))
    settings = stream_recipe(tiny_model, rows, tmp_path / "wrong", 12)
    with pytest.raises(Crash):
        train(settings, hooks=[CrashAfter(10)])
    mistake(monkeypatch)
    with pytest.raises(LedgerError):  # the run's own account sees it, too
        train(settings, resume=True)
    monkeypatch.setattr(Ledger, "check", lambda self, **_: None)
    train(settings, resume=True)
    assert any("model.safetensors" in name for name in differing_bits(tmp_path / "wrong", tmp_path / "whole"))


def test_the_ledger_is_held_against_what_the_trainer_took(
    tiny_model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trainer counts on its own: where the two differ by a token, no checkpoint is written."""
    original = Trainer._one_step
    monkeypatch.setattr(
        Trainer, "_one_step", lambda self, step: replace(original(self, step), tokens=step.num_tokens - 1)
    )
    with pytest.raises(LedgerError, match="the trainer took"):
        train(stream_recipe(tiny_model, rows, tmp_path / "run"))


def test_readers_decide_the_steps_and_packing_does_not(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    """A step of whole conversations gives the same weights however it is cut into packs; other readers, other steps."""
    packing = {"by": "examples", "packs_per_step": 1, "examples_per_step": 6}
    whole = train(stream_recipe(tiny_model, rows, tmp_path / "a", packing={**packing, "tokens_per_pack": 2048}))
    cut = train(stream_recipe(tiny_model, rows, tmp_path / "b", packing={**packing, "tokens_per_pack": 200}))
    assert farthest(cut.weights, whole.weights) <= 1e-5
    trace = [log_lines(tmp_path / name / "trace.jsonl") for name in "ab"]
    assert [[e[:3] for e in line["examples"]] for line in trace[0]] == [
        [e[:3] for e in x["examples"]] for x in trace[1]
    ]
    other = train(stream_recipe(tiny_model, rows, tmp_path / "c", packing=packing, streaming={"readers": 2}))
    assert farthest(other.weights, whole.weights) > 1e-3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"streaming": {"readers": 2}}, r"streaming\.readers: was 3, is 2"),
        ({"packing": {"window": 16}}, r"packing\.window: was 12, is 16"),
        ({"train": {"max_steps": 8}}, r"train\.max_steps: was 9, is 8"),
        ({"max_tokens": 150}, "the data or its masks"),
        ({"data": [{"path": "ROWS", "start": 1}]}, "the data or its masks"),
    ],
)
def test_what_changed_is_refused_by_name(
    tiny_model: Path, rows: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(Crash):
        train(stream_recipe(tiny_model, rows, tmp_path / "run"), hooks=[CrashAfter(4)])
    change = json.loads(json.dumps(change).replace("ROWS", str(rows)))
    with pytest.raises(CheckpointError, match=words):
        prepare(stream_recipe(tiny_model, rows, tmp_path / "run", **change), resume=True)


def test_rows_in_memory_are_streamed_and_resumed(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    """One iterator serves the plan that is kept and the training; a new one of the same rows goes on."""

    def numbers() -> Any:
        start = 0
        while True:
            yield from conversations(5, start=start)
            start += 5

    whole = train(stream_recipe(tiny_model, rows, tmp_path / "whole"), {"numbers": numbers()})
    settings = stream_recipe(tiny_model, rows, tmp_path / "crashed")
    with pytest.raises(Crash):
        train(settings, {"numbers": numbers()}, hooks=[CrashAfter(5)])
    train(settings, {"numbers": numbers()}, resume=True)
    assert differing_bits(tmp_path / "crashed", tmp_path / "whole") == []
    kept = json.loads((tmp_path / "whole" / "plan.json").read_text())["plan"]
    assert kept["streaming"] and kept["steps"] == 9 and kept["sources"][0]["name"] == "numbers"
    assert [line["learning_rate"] for line in whole.steps] == pytest.approx(kept["learning_rates"])


def test_the_commands_say_what_is_known(
    tiny_model: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    settings = stream_recipe(tiny_model, rows, tmp_path / "run", 4)
    file = str(write_recipe(settings, tmp_path / "recipe.yaml"))
    run_plan(file, [], True)
    plan = json.loads(capsys.readouterr().out)
    assert plan["plan"]["steps"] == 4 and plan["plan"]["readers"] == 3 and plan["plan"]["most_tokens"] == 4 * 512
    assert plan["plan"]["examples"] == 36 and plan["plan"]["heldout_examples"] == 6
    Ledger.from_dict(plan["ledger"]).check()
    run_plan(file, [], False)
    printed = " ".join(capsys.readouterr().out.split())
    assert "the first 36 examples that 3 readers read" in printed and "each plans 12 examples at a time" in printed
    run_train(file, [], False)
    printed = " ".join("".join(capsys.readouterr()).split())
    assert "4 steps of about" in printed and "aren't known before it is read" in printed
    run_train(str(tmp_path / "run"), [], True)
    assert "finished the plan: step 4 of 4" in " ".join("".join(capsys.readouterr()).split())
    with pytest.raises(ConfigError, match=r"needs all rows at once.*streaming=false"):
        build_planned(settings)


@pytest.mark.slow
def test_killed_and_resumed_by_command(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    """Real processes, kill −9."""
    train(whole := stream_recipe(tiny_model, rows, tmp_path / "whole", 60))
    run = tmp_path / "killed"
    file = write_recipe(whole.model_copy(update={"out": str(run)}), tmp_path / "killed.yaml")
    process = start_command("train", file)
    while latest_checkpoint(run) is None and process.poll() is None:
        pass
    process.kill()
    process.communicate()
    assert differing_bits(run, tmp_path / "whole"), "it was over before the kill"
    assert start_command("train", file, "--resume").wait(240) == 0
    assert set(differing_bits(run, tmp_path / "whole")) == set()


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_ranks_share_the_stream(tiny_model: Path, rows: Path, tmp_path: Path, count: int) -> None:
    """Real ranks over gloo train the steps of one; a run goes on under another number of ranks."""
    one = train(stream_recipe(tiny_model, rows, tmp_path / "one", packing={"packs_per_step": 4}))
    settings = stream_recipe(tiny_model, rows, tmp_path / "many", packing={"packs_per_step": 4})
    file = write_recipe(settings, tmp_path / "many.yaml")
    finish_ranks(start_ranks(count, "train", file))
    folder = latest_checkpoint(tmp_path / "many")
    assert folder is not None
    assert farthest(checkpoint_tensors(folder), checkpoint_tensors(one.folder)) <= 1e-5
    seen = [[[e[:3] for e in x["examples"]] for x in log_lines(tmp_path / n / "trace.jsonl")] for n in ("one", "many")]
    assert seen[0] == seen[1]

    moved = stream_recipe(tiny_model, rows, tmp_path / "moved", packing={"packs_per_step": 4})
    with pytest.raises(Crash):
        train(moved, hooks=[CrashAfter(5)])
    finish_ranks(start_ranks(count, "train", write_recipe(moved, tmp_path / "moved.yaml"), "--resume"))
    folder = latest_checkpoint(tmp_path / "moved")
    assert folder is not None
    assert farthest(checkpoint_tensors(folder), checkpoint_tensors(one.folder)) <= 1e-5
