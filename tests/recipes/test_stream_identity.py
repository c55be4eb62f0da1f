"""What a streamed run must find as it was, to go on: the rows, what drops them, and the code that does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chatwright.conversations import row_filters
from chatwright.recipes.resuming import _decisive_settings
from chatwright.recipes.streaming import build_stream
from training_runs import conversations, recipe, write_rows

LANGUAGE = {"kind": "language", "allow": ["en"]}
DROP = {"evaluations": ["arithmetic"], "on_hit": "drop"}


@pytest.fixture
def identity(tiny_model: Path, tmp_path: Path) -> Callable[..., str]:
    rows = write_rows(tmp_path / "rows.jsonl", conversations(20))

    def of(filters: tuple[dict[str, Any], ...] = (), **changes: Any) -> str:
        data = [{"path": str(rows), "filters": filters}]
        streamed = {"streaming": True, "train": {"max_steps": 3}, "data": data}
        return build_stream(recipe(tiny_model, rows, tmp_path / "run", **streamed, **changes)).identity()["data"]

    return of


def test_rows_dropped_by_contamination_are_part_of_a_stream(identity: Callable[..., str]) -> None:
    plain = identity()
    assert identity() == plain
    assert identity(contamination={**DROP, "on_hit": "report"}) == plain, "the same rows are trained on"
    dropping = identity(contamination=DROP)
    assert len({plain, dropping, identity(contamination={**DROP, "n": 20})}) == 3


def test_code_that_drops_rows_is_part_of_a_stream(
    identity: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = identity((LANGUAGE,))
    monkeypatch.setattr(row_filters, "library_version", lambda name: f"{name} 99")
    assert identity((LANGUAGE,)) != before


def test_the_setting_is_named_for_streams_alone() -> None:
    settings: dict[str, Any] = {"train": {}, "adapter": None, "contamination": DROP}
    assert _decisive_settings({**settings, "streaming": {"readers": 4}})["contamination"] == DROP
    reporting = {**settings, "contamination": {**DROP, "on_hit": "report"}, "streaming": {"readers": 4}}
    assert _decisive_settings(reporting)["contamination"] is None
    assert "contamination" not in _decisive_settings({**settings, "streaming": None})
