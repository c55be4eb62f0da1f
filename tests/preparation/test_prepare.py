"""Sharded preparation: the same bytes as in memory, whoever makes the shards; errors, duplicates, interruptions."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chatwright.batches.token_store import TokenStore
from chatwright.conversations import row_ranges
from chatwright.errors import DataError, UserError
from chatwright.inspection.ledger import Stage
from chatwright.preparation import prepare as prepare_module
from chatwright.preparation.assemble import Rendered
from chatwright.preparation.prepare import Crew
from chatwright.preparation.worker import Start
from chatwright.preparation.workers import make_shards
from chatwright.recipes.data import RunData, build_data, prepare_text
from chatwright.recipes.rendering import data_fingerprint, plan_entries, render_entries
from chatwright.recipes.run_settings import RunSettings
from chatwright.recipes.tokens import find_tokens
from training_runs import conversations, recipe, write_rows


@pytest.fixture(autouse=True)
def cut_small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_ranges, "SMALL_FILE_BYTES", 0)


def settings_for(
    model: Path, data: list[dict[str, Any]], out: Path, rows_per_shard: int = 7, **changes: Any
) -> RunSettings:
    preparation = {"rows_per_shard": rows_per_shard, "workers": changes.pop("workers", 1)}
    return recipe(model, Path("unused"), out, data=data, preparation=preparation, **changes)


def rendered(settings: RunSettings, folder: Path | None, crew: Crew | None = None) -> Rendered:
    text = prepare_text(settings)
    where = text.resolved.text_folder
    return render_entries(settings, text.template, None, text_folder=where, folder=folder, key="k", crew=crew)


def plain(result: Rendered) -> list[Any]:
    def arrays(store: TokenStore) -> list[Any]:
        return [np.asarray(getattr(store, name)).tolist() for name in store.__slots__ if name != "sources"] + [
            store.sources,
            store.ids.dtype,
        ]

    facts = [result.ledger.to_dict(), result.entries, result.entry_index.tolist()]
    return [arrays(result.store), arrays(result.heldout), *facts]


@pytest.fixture
def data(tmp_path: Path) -> list[dict[str, Any]]:
    first = write_rows(tmp_path / "first.jsonl", conversations(40))
    repeats = [*conversations(12, start=100), *conversations(12, start=104)]
    second = write_rows(tmp_path / "second.jsonl", repeats)
    return [
        {"path": str(first), "format": "messages", "start": 3, "step": 2, "max_rows": 15},
        {"path": str(second), "filters": [{"kind": "exact_duplicates"}, {"kind": "near_duplicates", "threshold": 1.0}]},
        {"task": "arithmetic", "stop": 9},
    ]


def test_shards_give_the_bytes_of_one_go(tiny_model: Path, data: list[dict[str, Any]], tmp_path: Path) -> None:
    """Workers, shard sizes and crews change nothing; the ledger balances and tells of duplicates and caps."""
    changes = {"heldout": {"share": 0.2}, "template": {"tools": "add"}}
    wanted = rendered(settings_for(tiny_model, data, tmp_path, **changes), None)
    second = str(tmp_path / "second.jsonl")
    assert wanted.ledger.rows(Stage.READ, second) == 24
    assert [e.rows for e in wanted.ledger.entries() if e.reason == "exact_duplicates"] == [8]
    assert [e.rows for e in wanted.ledger.entries() if "max_rows" in (e.reason or "")] == [4]
    assert len(wanted.store) + len(wanted.heldout) == 15 + 16 + 9
    for place, (size, workers) in enumerate([(7, 1), (3, 2), (1000, 1)]):
        own = settings_for(tiny_model, data, tmp_path, size, workers=workers, **changes)
        made = rendered(own, tmp_path / f"cache{place}" / "tokens")
        assert plain(made) == plain(wanted), (size, workers)
        left = sorted(path.name for path in (tmp_path / f"cache{place}").iterdir())
        assert left == ["tokens"], "nothing half-made is left lying"


class Meeting:
    """Two threads that play the ranks of one machine."""

    def __init__(self) -> None:
        self.barrier, self.brought = threading.Barrier(2), [set[str](), set[str]()]

    def crew(self, rank: int) -> Crew:
        def meet(problems: set[str]) -> list[str]:
            self.barrier.wait(60)
            self.brought[rank] = problems
            self.barrier.wait(60)
            return sorted(set().union(*self.brought))

        return Crew(rank, 2, meet)


def in_two(settings: RunSettings, folder: Path) -> list[Any]:
    meeting, results = Meeting(), [None, None]

    def work(rank: int) -> None:
        try:
            results[rank] = rendered(settings, folder, meeting.crew(rank))  # type: ignore[call-overload]
        except UserError as error:
            results[rank] = error  # type: ignore[call-overload]

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return results


def test_a_crew_shares_the_shards_and_fails_together(
    tiny_model: Path, data: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    original = prepare_module.make_shard

    def counted(shard: Any, *rest: Any) -> Any:
        made.append(shard.name)
        return original(shard, *rest)

    monkeypatch.setattr(prepare_module, "make_shard", counted)
    changes: dict[str, Any] = {"template": {"tools": "add"}}
    settings = settings_for(tiny_model, data, tmp_path, **changes)
    results = in_two(settings, tmp_path / "cache" / "tokens")
    wanted = plain(rendered(settings, None))
    assert [plain(each) for each in results] == [wanted, wanted]
    assert len(made) == len(set(made)) > 4, "each shard was made once"
    with Path(data[0]["path"]).open("a") as file:
        file.write("not json\n" * 2)
    results = in_two(settings, tmp_path / "other" / "tokens")
    assert sorted(type(each).__name__ for each in results) == ["DataError", "UserError"]
    assert all("line 42 is not JSON" in str(each) for each in results)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_first_bad_row_is_named(tiny_model: Path, tmp_path: Path, workers: int) -> None:
    rows: list[Any] = conversations(30)
    rows[11], rows[25] = {"messages": "none"}, {"messages": [{"role": "king", "content": "x"}]}
    path = write_rows(tmp_path / "rows.jsonl", rows)
    settings = settings_for(tiny_model, [{"path": str(path), "format": "messages"}], tmp_path, workers=workers)
    with pytest.raises(DataError, match=r"rows\.jsonl, row 11, field 'messages'"):
        rendered(settings, tmp_path / "cache" / "tokens")
    skipping = settings_for(
        tiny_model, [{"path": str(path), "format": "messages", "on_bad_row": "skip"}], tmp_path, workers=workers
    )
    made = rendered(skipping, tmp_path / "cache" / "tokens")
    assert sum(made.entries[0].skipped.values()) == 2
    places = [place.split(":")[0].rsplit("/")[-1] for place in made.entries[0].skip_places]
    assert places == ["rows.jsonl row 11", "rows.jsonl row 25"]


def test_over_long_rows_are_reported_together(tiny_model: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", conversations(30))
    settings = settings_for(tiny_model, [{"path": str(path)}], tmp_path, max_tokens=60)
    with pytest.raises(DataError, match=r"of 30 examples are longer than max_tokens = 60; longest: row \d+"):
        build_data(settings)


def test_refusing_and_dropping_over_long_rows_share_their_tokens(tiny_model: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", conversations(30))
    other = write_rows(tmp_path / "heldout.jsonl", conversations(10, start=300))
    heldout = {"data": [{"path": str(other)}]}
    refusing, dropping, cutting = (
        settings_for(tiny_model, [{"path": str(path)}], tmp_path, max_tokens=100, overflow=overflow, heldout=heldout)
        for overflow in ("error", "drop", "truncate")
    )
    text = prepare_text(refusing)
    keys = [data_fingerprint(settings, text.template) for settings in (refusing, dropping, cutting)]
    assert keys[0] == keys[1] != keys[2]
    messages = []
    for _ in range(2):  # made, then out of the cache
        with pytest.raises(DataError, match=r"of 40 examples are longer than max_tokens = 100") as refused:
            build_data(refusing)
        messages.append(refused.value.full_text())
    assert messages[0] == messages[1]
    tokens = find_tokens(refusing, text.template, text.resolved.text_folder, lenient=True)
    assert tokens.origin == "cache"
    data = build_data(dropping)
    assert isinstance(data, RunData) and data.from_cache and 0 < len(data.store) < 30
    (info,) = data.entries
    dropped = [entry for entry in data.ledger.entries() if entry.stage is Stage.DROPPED and entry.source == info.name]
    assert info.num_examples == 30 and info.num_too_long == sum(entry.rows for entry in dropped) == 30 - len(data.store)
    assert [each[0] for each in info.longest] == sorted((each[0] for each in info.longest), reverse=True)
    every = settings_for(
        tiny_model, [{"path": str(path)}], tmp_path, max_tokens=1000, packing={"tokens_per_pack": 1000}
    )
    whole = build_data(every)
    assert isinstance(whole, RunData)
    lengths = sorted(whole.store.lengths.tolist(), reverse=True)
    assert [each[0] for each in info.longest] == [length for length in lengths if length > 100][:5]


def test_an_interrupted_preparation_goes_on(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_rows(tmp_path / "rows.jsonl", conversations(30))
    settings = settings_for(tiny_model, [{"path": str(path)}], tmp_path)
    made: list[str] = []
    original = prepare_module.make_shard

    def counted(shard: Any, *rest: Any) -> Any:
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(shard.name)
        return original(shard, *rest)

    monkeypatch.setattr(prepare_module, "make_shard", counted)
    with pytest.raises(KeyboardInterrupt):
        rendered(settings, tmp_path / "cache" / "tokens")
    made.clear()
    monkeypatch.setattr(prepare_module, "make_shard", lambda *rest: (made.append(rest[0].name), original(*rest))[1])
    result = rendered(settings, tmp_path / "cache" / "tokens")
    assert len(made) == 2 and len(result.store) == 30


def test_a_dead_worker_is_one_clear_error(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_rows(tmp_path / "rows.jsonl", conversations(30))
    (tmp_path / "deadly.py").write_text("import os\n\ndef stop(conversation):\n    os.abort()\n")
    monkeypatch.syspath_prepend(tmp_path)
    filters = [{"kind": "python", "function": "deadly:stop"}]
    settings = settings_for(tiny_model, [{"path": str(path), "filters": filters}], tmp_path, workers=2)
    text = prepare_text(settings)
    shards = [shard for entry in plan_entries(settings) for shard in entry.shards]
    start = Start(_render_work(settings, text), tmp_path, None)
    with pytest.raises(UserError, match=r"worker that prepares the data has died \(signal 6\)"):
        make_shards(shards, start, 2, lambda facts: None)


def _render_work(settings: RunSettings, text: Any) -> Any:
    from chatwright.preparation.work import RenderWork

    return RenderWork(str(text.resolved.text_folder), text.template.settings, 512, settings.overflow, 1)


def test_workers_load_no_torch() -> None:
    found = "sorted({'torch', 'transformers'} & {*sys.modules})"
    code = f"import json, sys, chatwright.preparation.worker; print(json.dumps({found}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_a_cache_on_a_full_disk_is_no_error(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", conversations(30))
    settings = settings_for(tiny_model, [{"path": str(path)}], tmp_path)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prepare_module, "make_shard", full)
    assert len(build_data(settings).store) == 30
    assert "can't be cached" in capsys.readouterr().err
