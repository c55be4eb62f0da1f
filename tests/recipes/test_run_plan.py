"""What `plan` says is what the run then does; trackers and the metrics file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chatwright.errors import DataError
from chatwright.recipes.data import build_data
from chatwright.recipes.planning import plan_run
from chatwright.recipes.run_settings import RunSettings
from chatwright.train.hooks import Hook, StepRecord
from tiny_model import make_tiny_model
from training_runs import conversations, prepare, recipe, train, write_rows

KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "several packs, many epochs": {"packing": {"packs_per_step": 3}, "train": {"epochs": 2.5}},
    "by examples": {"packing": {"by": "examples", "examples_per_step": 5}, "train": {"epochs": 9, "max_steps": 6}},
    "every token": {"stage": "mid"},
    "lora": {"adapter": {"rank": 3}},
    "lora with new tokens": {"adapter": {"rank": 3}, "template": {"format": "minimind"}},
    "new tokens": {"template": {"format": "minimind"}},
}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """20 conversations."""
    return write_rows(tmp_path / "rows.jsonl", conversations(20))


def settings_of(model: Path, rows: Path, out: Path, kind: str) -> RunSettings:
    return recipe(model, rows, out, heldout={"share": 0.2}, **KINDS[kind])


@pytest.mark.parametrize(
    ("kind", "tied"), [*((kind, True) for kind in KINDS), ("lora with new tokens", False), ("new tokens", False)]
)
def test_the_run_does_what_the_plan_says(tiny_model: Path, rows: Path, tmp_path: Path, kind: str, tied: bool) -> None:
    if not tied:
        tiny_model = make_tiny_model(tmp_path / "untied", tie_word_embeddings=False)
    settings = settings_of(tiny_model, rows, tmp_path / "run", kind)
    plan = plan_run(settings, build_data(settings))
    run = train(settings)
    assert plan.steps == len(run.steps) == run.result.progress.step
    assert plan.tokens == run.result.progress.tokens == sum(line["tokens"] for line in run.steps)
    assert plan.supervised_tokens == run.result.progress.supervised_tokens
    assert plan.trainable_parameters == sum(p.numel() for p in run.model.trainable.values())
    assert plan.parameters is not None
    base = [p for name, p in run.model.model.named_parameters() if "lora_" not in name and "token_rows" not in name]
    assert plan.parameters == sum(p.numel() for p in base)
    assert (plan.rows, plan.examples, plan.heldout_examples) == (20, 16, 4)
    assert [line["learning_rate"] for line in run.steps] == pytest.approx(plan.learning_rates)


def test_each_step_logs_the_planned_share(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    """PITFALL 2: planned and logged supervised share are the same, step by step; the trace names the planned rows."""
    settings = settings_of(tiny_model, rows, tmp_path / "run", "several packs, many epochs")
    run = train(settings)
    store, plan = run.data.store, run.data.plan
    supervised, tokens = plan.step_sums(store.supervised_counts), plan.step_sums(store.lengths)
    assert [line["supervised_tokens"] for line in run.steps] == supervised.tolist()
    assert [line["supervised_share"] for line in run.steps] == pytest.approx((supervised / tokens).tolist())
    trace = [json.loads(line) for line in (tmp_path / "run" / "trace.jsonl").read_text().splitlines()]
    for step, line in enumerate(trace):
        examples = plan.examples_of_step(step)
        wanted: dict[int, int] = {}
        for index in examples:  # a step over the end of an epoch may have a row twice
            row = store.key(int(index)).row
            wanted[row] = wanted.get(row, 0) + store.supervised(int(index))
        assert {row: count for _, row, _, _, count in line["examples"]} == wanted
        total = sum(loss for *_, loss, _ in line["examples"])
        assert total / supervised[step] == pytest.approx(run.steps[step]["loss"], rel=1e-4)


def test_log_every_thins_the_metrics_only(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    run = train(recipe(tiny_model, rows, tmp_path / "run", train={"log_every": 3}))
    assert [line["step"] for line in run.steps] == [1, *range(3, run.data.plan.num_steps + 1, 3)]
    assert (tmp_path / "run" / "trace.jsonl").read_text().count("\n") == run.data.plan.num_steps


def test_no_data_is_a_clear_error(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no data to train on"):
        prepare(recipe(tiny_model, None, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_tensorboard_gets_every_step_once(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    events = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed"
    )
    measured = {"tasks": [{"task": "general", "limit": 2, "max_new_tokens": 2}], "prompts": ["Hi"], "prompt_tokens": 2}
    changes = {"heldout": {"share": 0.2}, "tracking": {"tensorboard": True}, "train": {"epochs": 2}, "eval": measured}
    run = train(recipe(tiny_model, rows, tmp_path / "run", **changes))
    found = events.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    losses = [(event.step, event.value) for event in found.Scalars("train/loss")]
    assert losses == [(line["step"], pytest.approx(line["loss"], rel=1e-6)) for line in run.steps]
    last = run.result.progress.step
    for metric in ("heldout_loss", "heldout_bits_per_byte", "general"):
        assert [event.step for event in found.Scalars(f"evaluation/{metric}")] == [0, last]
    texts = found.Tensors("samples/0/text_summary")
    assert [event.step for event in texts] == [0, last]
    assert texts[0].tensor_proto.string_val[0].decode().startswith("Hi\n\n")


class Crash(Hook):
    """Ends the run behind step 5."""

    def on_step(self, record: StepRecord) -> None:
        """Crash."""
        if record.step == 5:
            raise RuntimeError("crash")


def test_tensorboard_takes_back_what_a_crash_undid(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    events = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed"
    )
    options = {"epochs": 2, "save_every": 3}
    settings = recipe(tiny_model, rows, tmp_path / "run", tracking={"tensorboard": True}, train=options)
    with pytest.raises(RuntimeError, match="crash"):
        train(settings, hooks=[Crash()])
    run = train(settings, resume=True)
    found = events.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in found.Scalars("train/loss")] == list(range(1, run.result.progress.step + 1))


def test_wandb_offline(tiny_model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    train(recipe(tiny_model, rows, tmp_path / "run", tracking={"wandb_project": "test"}))
    assert list((tmp_path / "run").glob("wandb/offline-run-*"))
