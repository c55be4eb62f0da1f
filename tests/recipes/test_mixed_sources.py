"""Mixtures in a recipe: weights and repeats of the data entries, their figures, and what is refused."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from chatwright.cli.plan import source_tables
from chatwright.conversations.data_settings import DataSettings
from chatwright.errors import ConfigError
from chatwright.inspection.ledger import Stage
from chatwright.packing.mixture import MixtureSettings
from chatwright.recipes.data import RunData, build_data
from chatwright.recipes.planned_sources import PlannedSource, chosen_rows
from chatwright.recipes.planning import plan_run
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


def test_the_figures_of_the_sources(tiny_model: Path, rows: Path) -> None:
    entries = [
        {"path": str(rows), "stop": 4, "weight": 1, "name": "small"},
        {"path": str(rows), "start": 4, "weight": 2, "name": "large"},
    ]
    settings = recipe(
        tiny_model, rows, rows.parent / "run", data=entries, mixture={"until": "first"}, train={"epochs": 2}
    )
    data = build_data(settings)
    figures = plan_run(settings, data)
    small, large = figures.sources
    assert (small.rows, small.weight, small.chosen, large.chosen) == (4, 1, "rows 0:4", "rows 4:")
    assert (small.seen_an_epoch, large.seen_an_epoch) == (1, 0.5)
    assert small.example_share == pytest.approx(1 / 3)
    taken = data.plan.members
    mine = taken[data.entry_index[taken] == 0]
    assert small.trained_supervised_tokens == data.store.supervised_counts[mine].sum()
    assert small.effective_weight == pytest.approx(
        data.store.weight_sums[mine].sum() / data.store.weight_sums[taken].sum()
    )
    assert small.effective_weight + large.effective_weight == pytest.approx(1)
    assert figures.supervised_tokens == small.trained_supervised_tokens + large.trained_supervised_tokens
    assert (
        abs(figures.tokens_per_epoch * 2 - figures.tokens) <= 1 and figures.to_dict()["sources"][0]["name"] == "small"
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ""),
        ({"step": 3}, "rows 0::3"),
        ({"start": 10, "stop": 700, "step": 2, "max_rows": 3000}, "rows 10:700:2, at most 3,000"),
        ({"max_rows": 5}, "at most 5"),
    ],
)
def test_the_chosen_rows_in_words(changes: dict[str, Any], words: str) -> None:
    assert chosen_rows(DataSettings(path="a", **changes)) == words


@pytest.mark.parametrize("order", ["shuffled", "sequence"])
def test_the_tables_fit_80_columns_with_a_million_rows(tiny_model: Path, rows: Path, order: str) -> None:
    settings = recipe(tiny_model, rows, rows.parent / "run")
    large = PlannedSource(
        name="somewhere/in/a/deep/folder/with/a/long/name/rows-of-the-very-best-chats.jsonl",
        format="prompt_completion",
        rows=1_234_567,
        skipped=12_345,
        chosen="rows 1000:1234567:2, at most 999,999",
        changed={},
        examples=1_234_567,
        tokens=987_654_321,
        supervised_tokens=123_456_789,
        supervised_share=0.125,
        weight=0.3,
        epochs=1,
        seen_an_epoch=0.001234,
        example_share=0.999,
        trained_supervised_tokens=123_456_789,
        effective_weight=0.555,
    )
    figures = replace(plan_run(settings, build_data(settings)), sources=[large, replace(large, name="b", weight=0.1)])
    console = Console(width=80, record=True, file=io.StringIO())
    for each in source_tables(figures, MixtureSettings(order=order, until="first")):
        console.print(each)
    shown = console.export_text()
    for words in ("1,234,567", "987,654,321", "123,456,789", "0.0012×", "75.0%", "55.5%", "…", "-best-chats.jsonl"):
        assert words in shown, "whole, not folded"
    assert "at most 999,999," in shown and "12,345 skipped" in shown
    assert ("one source after another" in shown) == (order == "sequence")


def test_weights_for_all_entries_or_none_are_fine() -> None:
    for data in (
        [{"path": "a", "weight": 1}, {"path": "b", "weight": 0.5}],
        [{"path": "a"}, {"path": "b", "epochs": 2}],
    ):
        settings = build(RunSettings, {"model": "m", "data": data}, "recipe.yaml")
        assert [entry.weight for entry in settings.data] == [entry.get("weight") for entry in data]
