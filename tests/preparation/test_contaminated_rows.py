"""Rows that hold an evaluation's items: reported with both sides, dropped and counted, however work is shared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chatwright.conversations import row_ranges
from chatwright.inspection.contamination_report import ContaminationReport
from chatwright.inspection.ledger import Stage
from chatwright.recipes.data import RunData, build_data
from chatwright.recipes.run_settings import RunSettings
from chatwright.tasks.registry import make_task
from training_runs import conversations, recipe, write_rows

PLANTED = (5, 21)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """30 rows, two of them questions that the task `general` asks in its test split."""
    asked = [
        each.messages[0].text
        for each in make_task("general").conversations("test")
        if len(each.messages[0].text.split()) > 7
    ]
    made = conversations(30)
    for place, question in zip(PLANTED, asked, strict=False):
        turns = [{"role": "user", "content": question.upper()}, {"role": "assistant", "content": "I know."}]
        made[place] = {"messages": turns}
    return write_rows(tmp_path / "rows.jsonl", made)


def settings_for(model: Path, rows: Path, workers: int = 1, **check: Any) -> RunSettings:
    contamination = {"evaluations": ["general"], **check}
    preparation = {"workers": workers, "rows_per_shard": 4}
    return recipe(model, rows, rows.parent / "run", contamination=contamination, preparation=preparation)


def built(settings: RunSettings) -> tuple[RunData, ContaminationReport]:
    data = build_data(settings)
    assert isinstance(data, RunData) and data.contamination is not None
    return data, ContaminationReport.from_dict(data.contamination)


def test_hits_are_reported_and_trained_unless_dropped(tiny_model: Path, rows: Path) -> None:
    data, report = built(settings_for(tiny_model, rows))
    assert sorted(row for _, row in report.rows) == list(PLANTED)
    assert len(data.store) == 30 and data.ledger.rows(Stage.FILTERED) == 0
    (hits,) = report.hits.values()
    assert hits[0].train.text.startswith(hits[0].evaluation.text.upper())

    dropped, again = built(settings_for(tiny_model, rows, on_hit="drop"))
    assert len(dropped.store) == 28 and again.rows == report.rows
    assert [(e.rows, e.reason) for e in dropped.ledger.entries() if e.stage is Stage.FILTERED] == [
        (2, "contaminated by general")
    ]
    assert {key.row for key in dropped.store.keys}.isdisjoint(PLANTED)


def test_workers_and_the_cache_give_the_same_report(
    tiny_model: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, wanted = built(settings_for(tiny_model, rows, on_hit="drop"))
    monkeypatch.setattr(row_ranges, "SMALL_FILE_BYTES", 0)
    rows.write_text(rows.read_text() + "\n")  # the same rows, another fingerprint
    made, shared = built(settings_for(tiny_model, rows, workers=2, on_hit="drop"))
    cached, kept = built(settings_for(tiny_model, rows, on_hit="drop"))
    assert (made.from_cache, cached.from_cache) == (False, True)
    assert shared.to_dict() == kept.to_dict() == wanted.to_dict()


def test_the_check_is_part_of_the_cache_key(tiny_model: Path, rows: Path) -> None:
    plain = build_data(recipe(tiny_model, rows, rows.parent / "run"))
    assert isinstance(plain, RunData) and plain.contamination is None
    assert not built(settings_for(tiny_model, rows))[0].from_cache
    assert not built(settings_for(tiny_model, rows, near_threshold=0.9))[0].from_cache
    assert built(settings_for(tiny_model, rows))[0].from_cache
