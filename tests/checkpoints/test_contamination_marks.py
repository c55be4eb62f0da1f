"""The contamination marks travel: from the rows into the checkpoint, the export, and the next stage's checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chatwright.checkpoints.contamination import contamination_of, marks_after
from chatwright.checkpoints.export import MARKER_NAME, export_model
from chatwright.checkpoints.imports import resolve_model
from chatwright.errors import CheckpointError
from chatwright.inspection.evaluation_texts import SUBSETS, collect_evaluations, evaluation_name
from chatwright.tasks.registry import make_task
from training_runs import conversations, recipe, train, write_rows


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """16 rows, two of them questions of the task `general`'s test split."""
    asked = [each.messages[0].text for each in make_task("general").conversations("test")]
    long = [question for question in asked if len(question.split()) > 7][:2]
    turns = [[{"role": "user", "content": question}, {"role": "assistant", "content": "I know."}] for question in long]
    return write_rows(tmp_path / "rows.jsonl", [*conversations(14), *({"messages": each} for each in turns)])


def trained(model: Path | str, rows: Path, out: str, **contamination: Any) -> Path:
    """The run folder of one step."""
    check = {"contamination": contamination} if contamination else {}
    settings = recipe(Path(model), rows, rows.parent / out, train={"max_steps": 1}, **check)
    train(settings)
    return rows.parent / out


def test_a_checkpoint_carries_what_its_rows_hold(tiny_model: Path, rows: Path) -> None:
    both = ["general", "persona"]
    run = trained(tiny_model, rows, "reported", evaluations=both)
    assert contamination_of(run) == contamination_of(run / "step-000001") == {"general": 2, "persona": 0}
    assert contamination_of(trained(tiny_model, rows, "dropped", evaluations=both, on_hit="drop")) == {
        "general": 0,
        "persona": 0,
    }
    assert contamination_of(trained(tiny_model, rows, "unasked")) == {} == contamination_of(tiny_model)


def test_the_next_stage_and_an_export_carry_it_on(tiny_model: Path, rows: Path) -> None:
    first = trained(tiny_model, rows, "first", evaluations=["general", "persona"])
    exported = rows.parent / "exported"
    export_model(resolve_model(first), exported)
    assert contamination_of(exported) == {"general": 2, "persona": 0}
    for began in (first, exported):
        again = trained(began, rows, f"after-{began.name}", evaluations=["general", "arithmetic"])
        assert contamination_of(again) == {"general": 4}, "the others were compared with one stage's rows only"
    (exported / MARKER_NAME).write_text("[]")
    with pytest.raises(CheckpointError, match=MARKER_NAME):
        contamination_of(exported)


def test_a_model_of_others_adds_no_marks(tiny_model: Path) -> None:
    assert marks_after(tiny_model, {"gsm8k": 0, "mmlu": 3}) == {"gsm8k": 0, "mmlu": 3}, "no run of ours before"


def test_the_names_are_those_of_the_report() -> None:
    tasks = [make_task("general"), *(make_task("arc", subset=each) for each in SUBSETS["arc"])]
    assert [evaluation_name(task) for task in tasks] == ["general", "arc:ARC-Easy", "arc:ARC-Challenge"]
    named = collect_evaluations()
    assert {evaluation_name(task) for task in tasks} <= {*named.items, *named.unchecked}
