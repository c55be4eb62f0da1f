"""Evaluation while training: what is measured when, what it leaves untouched, which checkpoint is the best."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from chatwright.checkpoints.manifest import read_manifest
from chatwright.checkpoints.store import best_checkpoint, list_checkpoints, step_of
from chatwright.conversations.schema import Conversation, Message
from chatwright.errors import ConfigError, UserError
from chatwright.layouts import SegmentLayout
from chatwright.recipes.run_settings import RunSettings
from chatwright.tasks.base import GeneratedTask
from chatwright.tasks.registry import TASKS
from chatwright.tasks.task import Draft, NoOptions, Split, question_and_reply
from training_runs import (
    Crash,
    CrashAfter,
    conversations,
    differing_bits,
    finish_ranks,
    log_lines,
    prepare,
    recipe,
    start_ranks,
    train,
    write_recipe,
    write_rows,
)

MEASURED: dict[str, Any] = {
    "at": [0, 0.5, 1],
    "tasks": [
        {"task": "letter_counting", "limit": 3, "max_new_tokens": 8},
        {"task": "general", "limit": 2, "samples": 2, "max_new_tokens": 8, "name": "facts"},
    ],
    "prompts": ["Who are you?", "Tell me a colour."],
    "prompt_tokens": 8,
}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """24 conversations; some are held out."""
    return write_rows(tmp_path / "rows.jsonl", conversations(24))


def evaluated(model: Path, rows: Path, out: Path, evaluation: dict[str, Any] | None, **changes: Any) -> RunSettings:
    """12 steps."""
    length = {"epochs": 9, "max_steps": 12, **changes.pop("train", {})}
    given = {} if evaluation is None else {"eval": evaluation}
    return recipe(model, rows, out, heldout={"share": 0.2}, train=length, **given, **changes)


def evaluations(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that are evaluations."""
    return [line for line in log_lines(run / "metrics.jsonl") if "scores" in line]


def samples(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "samples.jsonl").read_text(encoding="utf-8").splitlines()]


def test_everything_is_measured_at_its_points(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    run = train(evaluated(tiny_model, rows, tmp_path / "run", MEASURED))
    lines = evaluations(tmp_path / "run")
    assert [line["step"] for line in lines] == [0, 6, 12]
    for line in lines:
        totals = {name: score["total"] for name, score in line["scores"].items()}
        assert totals == {"letter_counting": 3, "facts": 2, "facts pass@2": 2}
        assert all(0 <= score["points"] <= score["total"] for score in line["scores"].values())
        assert line["heldout_loss"] > 0 and line["heldout_bits_per_byte"] > 0
    losses = [line["heldout_loss"] for line in lines]
    assert losses[-1] < losses[0] and run.result.heldout_loss == losses[-1]
    told = samples(tmp_path / "run")
    assert [(line["step"], line["prompt"]) for line in told] == [
        (s, p) for s in (0, 6, 12) for p in MEASURED["prompts"]
    ]
    assert len({line["reply"] for line in told}) > 2, "the model changes, and prompts differ"
    assert 0 < run.result.evaluation_seconds < run.result.seconds
    assert run.result.evaluation is not None and set(run.result.evaluation.values) == {
        *("heldout_loss", "heldout_bits_per_byte", "letter_counting", "facts", "facts pass@2"),
    }


def test_points_and_a_rhythm_add_up(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    train(evaluated(tiny_model, rows, tmp_path / "run", {"at": [0.4, 0.5], "every": 5}))
    assert [line["step"] for line in evaluations(tmp_path / "run")] == [5, 6, 10]
    train(evaluated(tiny_model, rows, tmp_path / "silent", {"at": []}))
    assert evaluations(tmp_path / "silent") == []


def test_tasks_may_be_scored_more_seldom(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    """As nanochat does: the loss every 3 steps, tasks every 8, all of it at the end."""
    seldom = {**MEASURED, "at": [1], "every": 3, "tasks_every": 8, "best": "facts"}
    run = train(evaluated(tiny_model, rows, tmp_path / "run", seldom))
    lines = evaluations(tmp_path / "run")
    assert [(line["step"], sorted(line["scores"])) for line in lines] == [
        *((step, []) for step in (3, 6)),
        (8, ["facts", "facts pass@2", "letter_counting"]),
        (9, []),
        (12, ["facts", "facts pass@2", "letter_counting"]),
    ]
    assert {line["step"] for line in samples(tmp_path / "run")} == {8, 12}
    assert run.result.progress.best_step in (8, 12) and run.result.progress.worse_evaluations <= 1


@pytest.mark.parametrize(
    "kind",
    [
        {"train": {"dtype": "float32"}},
        {"train": {"dtype": "bfloat16", "activation_checkpointing": True}},
        {"adapter": {"rank": 4, "dropout": 0.5}},
    ],
    ids=["float32", "bfloat16", "lora"],
)
def test_evaluating_changes_no_bit_of_the_training(
    tiny_model: Path, rows: Path, tmp_path: Path, kind: dict[str, Any]
) -> None:
    train(evaluated(tiny_model, rows, tmp_path / "plain", {"at": []}, **kind))
    train(evaluated(tiny_model, rows, tmp_path / "measured", {**MEASURED, "every": 2}, **kind))
    assert len(evaluations(tmp_path / "measured")) == 7
    one, other = (tmp_path / name for name in ("plain", "measured"))
    steps = [[line for line in log_lines(run / "metrics.jsonl") if "loss" in line] for run in (one, other)]
    assert steps[0] == steps[1] and len(steps[0]) == 12
    assert set(differing_bits(one, other)) <= {
        "metrics.jsonl",
        "step-000012/training_state.json",  # where the best so far is remembered
    }


@pytest.mark.slow
@pytest.mark.parametrize("best", ["heldout_loss", "facts"])
def test_killed_between_evaluations_and_resumed(tiny_model: Path, rows: Path, tmp_path: Path, best: str) -> None:
    """Also right behind an evaluation, whose line is written again, and not twice."""
    often = {**MEASURED, "every": 2, "best": best}
    saving = {"save_every": 5}
    train(evaluated(tiny_model, rows, tmp_path / "whole", often, train=saving))
    settings = evaluated(tiny_model, rows, tmp_path / "killed", often, train=saving)
    for number, step in enumerate((3, 8, 9)):
        with pytest.raises(Crash):
            train(settings, resume=number > 0, hooks=[CrashAfter(step)])
    train(settings, resume=True)
    assert differing_bits(tmp_path / "killed", tmp_path / "whole") == []
    assert samples(tmp_path / "killed") == samples(tmp_path / "whole")
    assert [line["step"] for line in evaluations(tmp_path / "killed")] == [0, 2, 4, 6, 8, 10, 12]
    marked = [best_checkpoint(tmp_path / name) for name in ("killed", "whole")]
    assert marked[0] is not None and marked[1] is not None and marked[0].name == marked[1].name


class Peak(GeneratedTask[NoOptions]):
    """Graded by how often it was evaluated: the script says how many of its two problems are right each time."""

    name = "peak"
    script: ClassVar[list[int]] = []
    asked: ClassVar[int] = 0

    def drafts(self, split: Split, seed: int) -> Iterator[Draft]:
        """Two problems."""
        for number in range(2):
            yield Draft(question_and_reply(f"Say {number}.", Message.of("assistant", "Yes.")), {"number": number})

    def grade(self, conversation: Conversation, reply: Message) -> bool:
        """As the script says."""
        right = Peak.script[Peak.asked // 2]
        Peak.asked += 1
        return bool(conversation.extra["number"] < right)


@pytest.fixture
def peak(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A task that is at its best in the middle of the run, after 6 of 12 steps."""
    monkeypatch.setitem(TASKS, "peak", Peak)
    monkeypatch.setattr(Peak, "script", [1, 0, 1, 2, 1, 2, 0])
    monkeypatch.setattr(Peak, "asked", 0)
    return


PEAK = {"every": 2, "tasks": [{"task": "peak", "max_new_tokens": 2}], "best": "peak"}


@pytest.mark.usefixtures("peak")
def test_the_best_by_a_score_is_kept_although_it_is_in_the_middle(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    run = train(evaluated(tiny_model, rows, tmp_path / "run", PEAK, train={"keep_last": 1}))
    best = best_checkpoint(tmp_path / "run")
    assert best is not None and step_of(best) == 6, "the first of the two highest; the loss fell on to the end"
    assert read_manifest(best).metrics == {"peak": 1.0}
    assert [step_of(path) for path in list_checkpoints(tmp_path / "run")] == [6, 12]
    progress = run.result.progress
    assert (progress.best_value, progress.best_metric, progress.worse_evaluations) == (1.0, "peak", 3)
    told = json.loads((tmp_path / "run" / "best.json").read_text(encoding="utf-8"))
    assert told == {"checkpoint": "step-000006", "metric": "peak", "value": 1.0}


@pytest.mark.usefixtures("peak")
def test_early_stopping_follows_the_score(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    patient = {"early_stopping_patience": 2}
    run = train(evaluated(tiny_model, rows, tmp_path / "run", PEAK, train=patient))
    assert (run.result.reason, run.result.progress.step) == ("peak stopped rising", 10)
    assert [step_of(path) for path in list_checkpoints(tmp_path / "run")] == [6, 10]


@pytest.mark.usefixtures("peak")
def test_without_a_name_the_best_of_the_saved_checkpoints_is_marked(
    tiny_model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step 6 is better than all, but isn't saved: of 4, 8 and 12 the second is the best."""
    monkeypatch.setattr(Peak, "script", [0, 0, 0, 2, 1, 1, 0])
    measured = {**PEAK, "best": None, "heldout": False}
    train(evaluated(tiny_model, rows, tmp_path / "run", measured, train={"save_every": 4, "keep_last": 1}))
    best = best_checkpoint(tmp_path / "run")
    assert best is not None and step_of(best) == 8 and read_manifest(best).metrics == {"peak": 0.5}


@pytest.mark.usefixtures("peak")
def test_another_metric_begins_anew_on_resuming(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    """What was the lowest loss is no highest score."""
    by_loss = {**PEAK, "best": "heldout_loss"}
    with pytest.raises(Crash):
        train(evaluated(tiny_model, rows, tmp_path / "run", by_loss), hooks=[CrashAfter(5)])
    run = train(evaluated(tiny_model, rows, tmp_path / "run", PEAK), resume=True)
    assert run.trainer.start.best_metric == "heldout_loss" and run.trainer.start.step == 4
    best = best_checkpoint(tmp_path / "run")
    assert best is not None and step_of(best) == 6 and run.result.progress.best_value == 1.0


@pytest.mark.slow
def test_two_ranks_measure_what_one_does(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    """Real processes over gloo, each with its share."""
    settings = evaluated(tiny_model, rows, tmp_path / "two", MEASURED, train={"max_steps": 2})
    finish_ranks(start_ranks(2, "train", write_recipe(settings, tmp_path / "two.yaml")))
    train(settings.model_copy(update={"out": str(tmp_path / "one")}))
    for one, two in zip(evaluations(tmp_path / "one"), evaluations(tmp_path / "two"), strict=True):
        losses = ("heldout_loss", "heldout_bits_per_byte")
        assert {**two, **dict.fromkeys(losses)} == {**one, **dict.fromkeys(losses)}
        assert [two[name] for name in losses] == pytest.approx([one[name] for name in losses], rel=1e-6)
    assert samples(tmp_path / "one") == samples(tmp_path / "two")


ONE_RANK_FAILS = """
import os

from chatwright.errors import UserError
from chatwright.recipes import evaluation

measure = evaluation.HeldoutMeasure.here


def here(self):
    if os.environ["RANK"] == "1":
        raise UserError("rank 1 can't measure")
    return measure(self)


evaluation.HeldoutMeasure.here = here
"""


@pytest.mark.slow
def test_a_mistake_that_one_rank_finds_ends_both(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    """Neither waits for the other's sums."""
    (tmp_path / "spy").mkdir()
    (tmp_path / "spy" / "sitecustomize.py").write_text(ONE_RANK_FAILS)
    settings = evaluated(tiny_model, rows, tmp_path / "run", MEASURED, train={"max_steps": 2})
    own = [{"PYTHONPATH": str(tmp_path / "spy")}] * 2
    ranks = start_ranks(2, "train", write_recipe(settings, tmp_path / "run.yaml"), each=own)
    try:
        printed = [rank.communicate(timeout=200)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [2, 2], printed
    assert all("rank 1 can't measure" in text and "Traceback" not in text for text in printed)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no such task": (
        {"tasks": [{"task": "arcc"}]},
        r"eval\.tasks\.0: task: there is no task 'arcc'; did you mean 'arc'",
    ),
    "no such option": ({"tasks": [{"task": "arc", "task_options": {"set": "x"}}]}, r"unknown setting"),
    "nothing to grade by": ({"tasks": [{"task": "smoltalk"}]}, r"smoltalk has no right answers"),
    "no such split": ({"tasks": [{"task": "humaneval", "split": "train"}]}, r"split 'train': humaneval has test"),
    "equal samples": ({"tasks": [{"task": "gsm8k", "samples": 4, "temperature": 0}]}, r"4 equal replies"),
    "a name twice": ({"tasks": [{"task": "arc"}, {"task": "arc"}]}, r"several of eval\.tasks are called arc"),
    "a taken name": ({"tasks": [{"task": "arc", "name": "heldout_loss"}]}, r"choose another name"),
    "no such metric": ({"best": "arc"}, r"eval\.best: arc isn't measured here; measured are: heldout_loss"),
    "beyond the end": ({"at": [0.5, 1.5]}, r"eval\.at\.1: input should be less than or equal to 1"),
    "an empty prompt": ({"prompts": [" "]}, r"empty prompt"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_measured_is_said_at_once(tiny_model: Path, rows: Path, tmp_path: Path, name: str) -> None:
    wrong, words = WRONG[name]
    with pytest.raises(ConfigError, match=words) as caught:
        evaluated(tiny_model, rows, tmp_path / "run", wrong)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"eval": {"heldout": True}}, r"eval\.heldout is set, but there is no held-out data"),
        ({"eval": {"every": 5}}, r"nothing else to measure"),
        ({"eval": {"at": [0.5]}}, r"nothing else to measure"),
        ({"eval": {"tasks_every": 5}, "heldout": {"share": 0.5}}, r"there are no eval\.tasks or eval\.prompts"),
        ({"eval": {"best": "heldout_loss"}}, r"eval\.best: heldout_loss isn't measured here; measured are: none"),
        ({"train": {"early_stopping_patience": 2}, "eval": {"every": 2, "prompts": ["Hi"]}}, r"no such metric"),
        ({"train": {"evaluate_every": 7}}, r"evaluate_every is eval\.every now: write `eval: \{every: 7\}`"),
    ],
)
def test_nothing_held_out(tiny_model: Path, rows: Path, tmp_path: Path, wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        recipe(tiny_model, rows, tmp_path / "run", **wrong)


def test_a_recipe_of_an_older_version_reads_if_it_never_evaluated(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    """Run folders wrote every default out."""
    settings = recipe(tiny_model, rows, tmp_path / "run", train={"evaluate_every": None})
    assert "evaluate_every" not in settings.model_dump()["train"]


def test_a_task_without_a_test_split_is_scored_on_its_last(
    tiny_model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BoolQ's answers are out for its validation split; letters are weighed, nothing is generated."""
    monkeypatch.setenv("CHATWRIGHT_DATA", str(tmp_path))
    asked = [{"question": f"is {number} even", "passage": "Numbers.", "answer": number % 2 == 0} for number in range(5)]
    write_rows(tmp_path / "boolq" / "validation.jsonl", asked)
    train(evaluated(tiny_model, rows, tmp_path / "run", {"at": [1], "tasks": [{"task": "boolq"}]}))
    (line,) = evaluations(tmp_path / "run")
    assert line["scores"]["boolq"]["total"] == 5


def test_what_is_missing_is_found_before_training(
    tiny_model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHATWRIGHT_DATA", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="its data set isn't at hand"):
        train(evaluated(tiny_model, rows, tmp_path / "run", {"tasks": [{"task": "gsm8k"}]}))
    with pytest.raises(UserError, match=r"eval\.prompts\.0: .* tokens, and the model's context is 256"):
        train(evaluated(tiny_model, rows, tmp_path / "long", {"prompts": ["word " * 300]}))
    assert not (tmp_path / "run").exists() and not (tmp_path / "long").exists(), "no run was begun"
    turns = [{"role": "user", "content": "word " * 200}, {"role": "assistant", "content": "Yes."}]
    long = write_rows(tmp_path / "long.jsonl", [{"messages": turns}])
    for asked in ({"heldout": True}, {"best": "heldout_loss"}):
        data = {"heldout": {"data": [{"path": str(long)}]}, "overflow": "drop"}
        with pytest.raises(UserError, match="no held-out row is left"):
            prepare(recipe(tiny_model, rows, tmp_path / "few", eval=asked, **data))


def test_bits_per_byte_count_text_alone(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    """By hand: every supervised token that stands for text, in float64, one conversation at a time."""
    run = train(evaluated(tiny_model, rows, tmp_path / "run", {"at": [1]}))
    store, tokenizer, model = run.data.heldout, run.data.text.template.tokenizer, run.model.model.double()
    bits, size, control = 0.0, 0, 0
    for start, end in zip(store.offsets[:-1], store.offsets[1:], strict=True):
        ids, supervised = store.ids[start:end].tolist(), store.weights[start:end] > 0
        layout = SegmentLayout.from_lengths([len(ids)], [len(ids)])
        with torch.no_grad():
            hidden, _ = model(torch.tensor(ids), torch.arange(len(ids)), layout)
            logits = hidden @ model.output_head().weight.T
        for place in np.flatnonzero(supervised).tolist():
            if ids[place] in tokenizer.control_names:
                control += 1
            else:
                bits -= float(torch.log_softmax(logits[place - 1], dim=0)[ids[place]]) / math.log(2)
                size += len(tokenizer.decode([ids[place]]).encode())
    (line,) = evaluations(tmp_path / "run")
    assert control > 0 and line["heldout_bits_per_byte"] == pytest.approx(bits / size, rel=1e-5)
