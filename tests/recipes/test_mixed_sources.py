"""Mixtures in a recipe: weights and repeats of the data entries, their figures, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chatwright.errors import ConfigError
from chatwright.inspection.ledger import Stage
from chatwright.recipes.data import RunData, build_data
from chatwright.recipes.run_settings import RunSettings
from chatwright.settings import build
from training_runs import conversations, recipe, write_rows


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """20 conversations."""
    return write_rows(tmp_path / "rows.jsonl", conversations(20))


def built(model: Path, rows: Path, **changes: Any) -> RunData:
    return build_data(recipe(model, rows, rows.parent / "run", **changes))


def test_weights_are_shares_in_rows_and_the_ledger_says_what_they_leave_out(tiny_model: Path, rows: Path) -> None:
    entries = [
        {"path": str(rows), "stop": 4, "weight": 1, "name": "small"},
        {"path": str(rows), "start": 4, "weight": 2, "name": "large"},
    ]
    data = built(tiny_model, rows, data=entries, mixture={"until": "first"})
    placed = [int(data.plan.placed[data.entry_index == place].sum()) for place in (0, 1)]
    assert placed == [4, 8]
    lost = [(e.source, e.rows, e.reason) for e in data.ledger.entries() if e.stage == Stage.UNPLACED]
    assert lost == [("large", 8, "not drawn: the mixture's weights give this source 8 rows an epoch")]
    both = built(tiny_model, rows, data=entries)
    assert both.ledger.rows(Stage.REPEATED, "small") == 4 and both.ledger.rows(Stage.UNPLACED) == 0


def test_a_sequence_trains_one_entry_after_another(tiny_model: Path, rows: Path) -> None:
    entries = [
        {"path": str(rows), "stop": 6, "name": "first"},
        {"path": str(rows), "start": 6, "stop": 10, "epochs": 2, "name": "second"},
    ]
    data = built(tiny_model, rows, data=entries, mixture={"order": "sequence"})
    assert data.entry_index[data.plan.members].tolist() == [0] * 6 + [1] * 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": [{"path": "a", "weight": 1}, {"path": "b"}]}, r"others none \(b\).*every entry a weight"),
        ({"data": [{"path": "a"}], "mixture": {"until": "first"}}, "no effect without weights"),
        ({"data": [{"path": "a", "weight": 1, "epochs": 2}]}, "either 'epochs' or 'weight'"),
        ({"mixture": {"order": "sorted"}}, "order"),
        ({"packing": {"last_step": "pad"}}, "last_step"),
    ],
)
def test_mixtures_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(RunSettings, {"model": "m", "data": [{"path": "a"}], **changes}, "recipe.yaml")


def test_weights_for_all_entries_or_none_are_fine() -> None:
    for data in (
        [{"path": "a", "weight": 1}, {"path": "b", "weight": 0.5}],
        [{"path": "a"}, {"path": "b", "epochs": 2}],
    ):
        build(RunSettings, {"model": "m", "data": data}, "recipe.yaml")
