"""`chatwright prepare`: what it prints, where the tokens are, and that training finds them there."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import fsspec
import pytest

from chatwright.cli.main import main
from chatwright.conversations import row_ranges
from chatwright.recipes.data import RunData, build_data
from chatwright.recipes.run_settings import load_recipe
from training_runs import conversations, recipe, write_recipe, write_rows


@pytest.fixture
def prepared(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Any:
    """Run `chatwright prepare` on a small recipe; gives exit status, output and errors."""
    monkeypatch.setenv("CHATWRIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    rows = write_rows(tmp_path / "rows.jsonl", conversations(30))
    path = write_recipe(recipe(tiny_model, rows, tmp_path / "run", heldout={"share": 0.1}), tmp_path / "recipe.yaml")

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["chatwright", "prepare", str(path), *arguments])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def test_tokens_are_made_once_and_found_by_training(prepared: Any, tmp_path: Path) -> None:
    code, out, err = prepared()
    assert code == 0 and "kept" in out and "held_out" in out
    assert "prepared 30 rows: 27 examples and 3 held out" in err and "rows/s" in err and "tokens/s" in err
    (folder,) = (tmp_path / "cache" / "tokens").iterdir()
    assert f"Tokens:  {folder}" in out
    code, out, err = prepared()
    assert code == 0 and "nothing to prepare: found in the cache: 30 rows" in err and str(folder) in out
    data = build_data(load_recipe(str(tmp_path / "recipe.yaml")))
    assert isinstance(data, RunData) and data.from_cache


def test_figures_for_programs_and_a_store(prepared: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(row_ranges, "SMALL_FILE_BYTES", 0)
    fsspec.filesystem("memory").store.clear()
    options = ("--json", "--set", "preparation.rows_per_shard=8", "--workers", "2", "--to", "memory://b/tokens")
    first = json.loads(prepared(*options)[1])
    assert first["from"] == "made" and first["rows"] == 30 and first["examples"] == 27
    assert first["tokens_per_second"] > 0 and first["store"] == "memory://b/tokens"
    assert sum(e["rows"] for e in first["ledger"]["entries"] if e["stage"] == "held_out") == 3
    monkeypatch.setenv("CHATWRIGHT_CACHE", str(tmp_path / "another machine"))
    second = json.loads(prepared(*options)[1])
    assert second["from"] == "store" and second["tokens"] == first["tokens"] and second["rows_per_second"] is None
    fsspec.filesystem("memory").store.clear()


def test_what_cannot_be_kept_is_an_error(prepared: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code, _, err = prepared("--to", "refused://b/tokens")
    assert code == 2 and "the tokens are on this machine only" in err
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CHATWRIGHT_CACHE", str(tmp_path / "file"))
    code, _, err = prepared()
    assert code == 2 and "can't be cached" in err and "couldn't be kept" in err
