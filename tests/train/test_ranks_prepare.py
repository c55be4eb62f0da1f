"""Real ranks over gloo prepare data together: each its share, one cache a machine, the figures of one process."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from chatwright.conversations import row_ranges
from chatwright.recipes.data import RunData, build_data
from chatwright.recipes.run_settings import load_recipe
from chatwright.recipes.stream_planning import plan_record
from training_runs import (
    conversations,
    differing_bits,
    finish_ranks,
    recipe,
    run_command,
    start_ranks,
    write_recipe,
    write_rows,
)

SHARDS_MADE = """
import os
from pathlib import Path

from chatwright.conversations import row_ranges
from chatwright.preparation import prepare

row_ranges.SMALL_FILE_BYTES = 0
original = prepare.make_shard


def told(shard, *rest):
    with (Path(os.environ["MADE"]) / f"rank{os.environ.get('RANK', '0')}").open("a") as file:
        file.write(shard.name + "\\n")
    return original(shard, *rest)


prepare.make_shard = told
"""
"""A `sitecustomize` that cuts small files too, and writes down which rank made which shard."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose commands note who makes which shard; with a cache."""
    (tmp_path / "spy").mkdir()
    (tmp_path / "made").mkdir()
    (tmp_path / "spy" / "sitecustomize.py").write_text(SHARDS_MADE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "spy"), prepend=":")
    monkeypatch.setenv("MADE", str(tmp_path / "made"))
    monkeypatch.setenv("CHATWRIGHT_CACHE", str(tmp_path / "cache"))
    return tmp_path


def made_by(place: Path, rank: int) -> list[str]:
    path = place / "made" / f"rank{rank}"
    return path.read_text().split() if path.exists() else []


def recipe_file(model: Path, rows: Path, place: Path, out: str, **changes: Any) -> Path:
    preparation = {"rows_per_shard": 4, "workers": 1, **changes.pop("preparation", {})}
    settings = recipe(model, rows, place / out, preparation=preparation, heldout={"share": 0.1}, **changes)
    return write_recipe(settings, place / f"{out}.yaml")


def cached(cache: Path) -> dict[str, bytes]:
    return {str(p.relative_to(cache)): p.read_bytes() for p in (cache / "tokens").rglob("*") if p.is_file()}


def test_two_ranks_share_the_shards_and_train_on_the_same_data(
    tiny_model: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = write_rows(place / "rows.jsonl", conversations(30))
    printed = finish_ranks(start_ranks(2, "train", recipe_file(tiny_model, rows, place, "two")))
    shares = [made_by(place, rank) for rank in range(2)]
    names = [f"entry-000-shard-{index:05d}" for index in range(8)]
    assert shares == [names[0::2], names[1::2]]
    assert "tokens from the cache" not in printed[0]
    together = cached(place / "cache")
    assert all(name.split("/")[2] in ("train", "heldout", "facts.json", "entry_index.npy") for name in together)

    settings = load_recipe(str(place / "two.yaml"))
    monkeypatch.setattr(row_ranges, "SMALL_FILE_BYTES", 0)
    monkeypatch.setenv("CHATWRIGHT_CACHE", str(place / "other"))
    data = build_data(settings)
    assert cached(place / "other") == together, "one process makes the same bytes"
    assert isinstance(data, RunData)
    assert json.loads((place / "two" / "plan.json").read_text()) == json.loads(json.dumps(plan_record(settings, data)))


@pytest.mark.slow
def test_the_cache_is_found_by_all_ranks_and_trains_the_same(tiny_model: Path, place: Path) -> None:
    rows = write_rows(place / "rows.jsonl", conversations(30))
    finish_ranks(start_ranks(2, "train", recipe_file(tiny_model, rows, place, "two")))
    shares = [made_by(place, rank) for rank in range(2)]
    again = finish_ranks(start_ranks(2, "train", recipe_file(tiny_model, rows, place, "again")))
    assert "tokens from the cache" in again[0] and [made_by(place, rank) for rank in range(2)] == shares
    assert differing_bits(place / "two", place / "again") == []


def test_a_bad_row_ends_both_ranks_at_once(tiny_model: Path, place: Path) -> None:
    """Rank 1 finds it; rank 0, whose share is good, says so too, and neither waits."""
    rows: list[Any] = conversations(30)
    rows[5] = {"messages": "none"}
    path = write_rows(place / "rows.jsonl", rows)
    ranks = start_ranks(2, "train", recipe_file(tiny_model, path, place, "run", data=[{"path": str(path)}]))
    printed = [output_of(rank) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [2, 2], printed
    assert all("row 5, field 'messages'" in text and "Traceback" not in text for text in printed)
    assert "stopped, since another process did" in printed[0] and "stopped" not in printed[1]


def output_of(rank: subprocess.Popen[str]) -> str:
    try:
        return rank.communicate(timeout=90)[0]
    finally:
        rank.kill()


@pytest.mark.slow
def test_two_machines_each_make_their_cache_and_one_joins_later(tiny_model: Path, place: Path) -> None:
    """A machine is where local ranks begin at 0. One that has the tokens waits for the one that hasn't."""
    rows = write_rows(place / "rows.jsonl", conversations(30))

    def on_machines(out: str, caches: tuple[str, str], **changes: Any) -> list[str]:
        path = recipe_file(tiny_model, rows, place, out, **changes)
        own = [{"LOCAL_RANK": "0", "CHATWRIGHT_CACHE": str(place / cache)} for cache in caches]
        return finish_ranks(start_ranks(2, "train", path, each=own))

    on_machines("first", ("a", "b"))
    assert len(made_by(place, 0)) == len(made_by(place, 1)) == 8
    assert cached(place / "a") == cached(place / "b") != {}
    on_machines("second", ("a", "c"))
    assert len(made_by(place, 0)) == 8 and len(made_by(place, 1)) == 16
    assert cached(place / "c") == cached(place / "a")
    assert differing_bits(place / "first", place / "second") == []

    store = {"store": str(place / "store")}
    on_machines("third", ("a", "d"), preparation=store)
    assert len(made_by(place, 1)) == 24, "nothing was there yet"
    run_command(
        "prepare",
        recipe_file(tiny_model, rows, place, "ahead"),
        "--to",
        place / "store",
        CHATWRIGHT_CACHE=str(place / "a"),
    )
    on_machines("fourth", ("e", "a"), preparation=store)
    assert len(made_by(place, 0)) == 8, "fetched"
    assert differing_bits(place / "first", place / "fourth") == []


@pytest.mark.slow
def test_machines_with_different_data_are_told_so(tiny_model: Path, place: Path) -> None:
    for name, first in (("a", 0), ("b", 1)):
        write_rows(place / name / "rows.jsonl", conversations(20, start=first))
    path = recipe_file(tiny_model, Path("rows.jsonl"), place, "run")
    own = [{"LOCAL_RANK": "0", "CHATWRIGHT_CACHE": str(place / f"c{n}"), "WHERE": str(place / n)} for n in ("a", "b")]
    text = path.read_text().replace("path: rows.jsonl", "path: $WHERE/rows.jsonl")
    path.write_text(text)
    ranks = start_ranks(2, "train", path, each=own)
    printed = [output_of(rank) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [2, 2], printed
    assert all("the machines don't have the same data" in each for each in printed)


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_costs_time_only(tiny_model: Path, place: Path) -> None:
    rows = write_rows(place / "rows.jsonl", conversations(30))
    (place / "no-folder").write_text("a file")
    ranks = start_ranks(
        2,
        "train",
        recipe_file(tiny_model, rows, place, "run"),
        each=[{"CHATWRIGHT_CACHE": str(place / "no-folder")}] * 2,
    )
    printed = finish_ranks(ranks)
    assert "the tokens can't be cached" in "".join(printed)
    run_command("train", recipe_file(tiny_model, rows, place, "one"))
    plans = [json.loads((place / name / "plan.json").read_text()) for name in ("one", "run")]
    assert plans[0] == plans[1]
