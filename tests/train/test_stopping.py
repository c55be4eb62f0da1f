"""When and how a run ends, what it keeps, and a user's own objectives and hooks."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from chatwright.batches.packed_batch import PackedBatch
from chatwright.checkpoints.manifest import read_manifest
from chatwright.checkpoints.store import best_checkpoint, list_checkpoints, step_of
from chatwright.errors import ConfigError, TrainingError
from chatwright.losses.loss_sum import LossSum
from chatwright.recipes import evaluation as recipe_evaluation
from chatwright.recipes.run_settings import RunSettings
from chatwright.train.evaluation import Evaluation
from chatwright.train.hooks import Hook, StepRecord
from chatwright.train.objectives import next_token_nll
from training_runs import conversations, prepare, recipe, train, write_rows


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """16 conversations, about 6 packs of 256 tokens."""
    return write_rows(tmp_path / "rows.jsonl", conversations(16))


def names(run: Path) -> list[int]:
    return [step_of(path) for path in list_checkpoints(run)]


class Seen(Hook):
    """Remembers every call."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def on_start(self, first_step: int, num_steps: int) -> None:
        """Remember."""
        self.calls.append(("start", first_step, num_steps))

    def on_step(self, record: StepRecord) -> None:
        """Remember."""
        self.calls.append(("step", record.step, record.metrics))

    def on_evaluation(self, evaluation: Evaluation) -> None:
        """Remember."""
        self.calls.append(("evaluation", evaluation.step))

    def on_save(self, folder: Path) -> None:
        """Remember."""
        self.calls.append(("save", folder.name))

    def on_end(self, step: int) -> None:
        """Remember."""
        self.calls.append(("end", step))


# Losses that are not finite


def bad_row(rows: Path, wrong: int, value: float, of_gradient: bool) -> Any:
    """An objective that is `value` for one row of the data (by its key), or has such a gradient."""

    def objective(model: Any, batch: PackedBatch) -> LossSum:
        outcome = next_token_nll(model, batch)
        places = [index for index, key in enumerate(batch.keys) if key is not None and key.row == wrong]
        if not places or objective.calls < 2 * 6:  # type: ignore[attr-defined]
            objective.calls += 1  # type: ignore[attr-defined]
            return outcome
        if of_gradient:
            weight = model.model.norm.weight.sum()
            # the value is 0, its derivative ∞ · 0 or ∞
            return replace(outcome, total=outcome.total + (weight - weight.detach()).clamp(min=0).sqrt() * value)
        per_token = outcome.per_token.clone()
        per_token[batch.segment_of_target == places[0]] = value
        return replace(outcome, total=outcome.total + value, per_token=per_token)

    objective.calls = 0  # type: ignore[attr-defined]
    return objective


@pytest.mark.parametrize(("value", "of_gradient"), [(math.nan, False), (math.inf, False), (1.0, True)])
def test_what_is_not_finite_stops_the_run(
    tiny_model: Path, rows: Path, tmp_path: Path, value: float, of_gradient: bool
) -> None:
    """In its third epoch; the row is named, no checkpoint is written, the last one stays as it was."""
    settings = recipe(tiny_model, rows, tmp_path / "run", train={"epochs": 3, "save_every": 1, "keep_last": 99})
    hook = Seen()
    trainer, data, _ = prepare(settings, objective=bad_row(rows, 11, value, of_gradient), hooks=[hook])
    with pytest.raises(TrainingError) as caught:
        trainer.train()
    done = [call[1] for call in hook.calls if call[0] == "step"]
    failed = done[-1] + 1
    assert f"step {failed} is not finite" in str(caught.value)
    if not of_gradient:
        assert f"{rows}, row 11, part 0" in str(caught.value) and str(caught.value).count(", row ") == 1
    assert 11 in [data.store.key(index).row for index in data.plan.examples_of_step(failed - 1)]
    assert names(tmp_path / "run") == done == list(range(1, failed)) and failed > 12
    assert hook.calls[-1] == ("end", failed - 1), "hooks are closed after an error too"
    masters = trainer.trainer.optimizer.master_state()
    assert all(tensor.isfinite().all() for tensor in masters.values()), "no parameter was touched"
    if not math.isnan(value):
        return  # one of the three goes on and is compared
    resumed = train(settings, resume=True)
    assert resumed.trainer.start.step == failed - 1 and resumed.result.progress.step == data.plan.num_steps
    whole = train(settings.model_copy(update={"out": str(tmp_path / "whole")}))
    assert all(torch.equal(resumed.weights[name], tensor) for name, tensor in whole.weights.items())


# A user's own objective and hooks


def test_an_own_objective_and_hook(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    """One conversation one vote: it weighs other than the plan, and reports a metric of its own."""

    def per_conversation(model: Any, batch: PackedBatch) -> LossSum:
        outcome = next_token_nll(model, batch)
        counts = torch.bincount(batch.segment_of_target, minlength=len(batch.keys)).float()
        even = next_token_nll(model, replace(batch, weights=1 / counts[batch.segment_of_target]))
        right = float((outcome.per_token < 1).sum())
        return replace(even, metrics={"sure": (right, float(len(outcome.per_token)))})

    hook = Seen()
    settings = recipe(
        tiny_model,
        rows,
        tmp_path / "run",
        packing={"by": "examples", "examples_per_step": 8, "tokens_per_pack": 200},
        train={"epochs": 2, "save_every": 3},
    )
    run = train(settings, objective=per_conversation, hooks=[hook])
    kinds = [call[:2] for call in hook.calls]
    assert kinds == [
        ("start", 0),
        ("step", 1),
        ("step", 2),
        ("step", 3),
        ("save", "step-000003"),
        ("step", 4),
        ("save", "step-000004"),
        ("end", 4),
    ]
    assert all(0 <= call[2]["sure"] <= 1 for call in hook.calls if call[0] == "step")
    assert [line["sure"] for line in run.steps] == [call[2]["sure"] for call in hook.calls if call[0] == "step"]
    trace = [json.loads(line) for line in (tmp_path / "run" / "trace.jsonl").read_text().splitlines()]
    own = [sum(total / count for *_, total, count in line["examples"]) / 8 for line in trace]
    assert own == pytest.approx([line["loss"] for line in run.steps], rel=1e-5)


def test_an_objective_of_no_weight_is_refused(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    def weightless(model: Any, batch: PackedBatch) -> LossSum:
        return replace(next_token_nll(model, batch), weight=0.0)

    with pytest.raises(TrainingError, match=r"gave step 1 the weight 0\.0"):
        train(recipe(tiny_model, rows, tmp_path / "run"), objective=weightless)


def test_a_signal_that_comes_while_ranks_talk_is_not_lost(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    """The other rank has no wish; ours comes during the sum, and counts the next time."""
    trainer, _, _ = prepare(recipe(tiny_model, rows, tmp_path / "run"))
    inner = trainer.trainer

    class Talking:
        world_size, device = 2, torch.device("cpu")

        def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
            inner.stop_requested = True
            return tensor

    inner.runtime = Talking()  # type: ignore[assignment]
    assert (inner._stop_agreed(), inner._stop_agreed()) == (False, True)


# Length, evaluation, keeping


def with_heldout(model: Path, rows: Path, out: Path, **changes: Any) -> RunSettings:
    other = write_rows(rows.parent / "held.jsonl", conversations(6, start=100))
    return recipe(model, rows, out, heldout={"data": [{"path": str(other)}]}, **changes)


def test_max_steps_bounds_the_run_and_its_schedule(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    settings = recipe(
        tiny_model, rows, tmp_path / "run", schedule={"name": "linear"}, train={"epochs": 9, "max_steps": 4}
    )
    run = train(settings)
    assert run.result.progress.step == 4 and run.result.reason == "finished the plan"
    rates = [line["learning_rate"] for line in run.steps]
    done = [0, *(line["supervised_tokens"] for line in run.steps)]
    total = sum(done)
    assert rates == pytest.approx([1e-3 * (1 - sum(done[: i + 1]) / total) for i in range(4)], rel=1e-6)


def scripted(monkeypatch: pytest.MonkeyPatch, losses: dict[int, float]) -> None:
    """Held-out losses by evaluation, the one before training first."""
    told = iter(losses.values())
    monkeypatch.setattr(recipe_evaluation.HeldoutMeasure, "values", lambda self, here: {"heldout_loss": next(told)})


def test_evaluation_and_what_is_kept(
    tiny_model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best checkpoint stays beside the last two, and each knows its own loss only."""
    options = {"epochs": 9, "max_steps": 14, "save_every": 2, "keep_last": 2}
    settings = with_heldout(tiny_model, rows, tmp_path / "run", train=options, eval={"every": 2})
    heldout = {0: 5.0, 2: 4.0, 4: 3.0, 6: 3.5, 8: 3.0, 10: 3.25, 12: 3.75, 14: 3.5}
    scripted(monkeypatch, heldout)
    run = train(settings)
    lines = run.trainer.run.read_metrics()
    assert {line["step"]: line["heldout_loss"] for line in lines if "heldout_loss" in line} == heldout
    best = best_checkpoint(tmp_path / "run")
    assert best is not None and step_of(best) == 4 and read_manifest(best).metrics == {"heldout_loss": 3.0}
    assert names(tmp_path / "run") == [4, 12, 14]
    assert read_manifest(tmp_path / "run" / "step-000014").metrics == {"heldout_loss": 3.5}
    assert run.result.heldout_loss == 3.5 and run.result.progress.worse_evaluations == 5


def test_a_checkpoint_never_claims_the_loss_of_another_step(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    options = {"epochs": 9, "max_steps": 6, "save_every": 3}
    settings = with_heldout(tiny_model, rows, tmp_path / "run", train=options, eval={"every": 2})
    train(settings)
    claims = {step_of(path): read_manifest(path).metrics for path in list_checkpoints(tmp_path / "run")}
    assert set(claims) == {3, 6} and claims[3] == {} and set(claims[6]) == {"heldout_loss"}


def test_early_stopping_keeps_the_best_and_stays_stopped(
    tiny_model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"epochs": 9, "max_steps": 18, "early_stopping_patience": 3}
    settings = with_heldout(tiny_model, rows, tmp_path / "run", train=options, eval={"every": 2})
    scripted(monkeypatch, {0: 5.0, 2: 4.0, 4: 4.5, 6: 3.0, 8: 3.5, 10: 3.0, 12: 3.25, 14: 2.0, 16: 2.5, 18: 1.0})
    run = train(settings)
    assert (run.result.reason, run.result.progress.step) == ("heldout_loss stopped falling", 12)
    best = best_checkpoint(tmp_path / "run")
    assert best is not None and step_of(best) == 6, "saved when it was found, though save_every is not set"
    assert names(tmp_path / "run") == [6, 12]
    again = train(settings, resume=True)
    assert (again.result.progress.step, again.result.reason) == (12, run.result.reason), "not one step more"
    patient = {**options, "early_stopping_patience": 4}
    more = train(with_heldout(tiny_model, rows, tmp_path / "run", train=patient, eval={"every": 2}), resume=True)
    assert more.trainer.start.step == 12 and more.result.progress.step == 18


def test_early_stopping_without_evaluation_is_refused(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="early_stopping_patience needs evaluations between"):
        recipe(tiny_model, rows, tmp_path / "run", train={"early_stopping_patience": 2})
    with pytest.raises(ConfigError, match="there is no held-out data"):
        recipe(tiny_model, rows, tmp_path / "run", eval={"every": 2})
