"""Whatever the files, sizes and interruptions: every row of the source is trained on, held out, or counted."""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chatwright.conversations import row_ranges
from chatwright.errors import DataError
from chatwright.inspection.ledger import Stage
from chatwright.preparation import rows as rows_module
from chatwright.preparation import shards as shards_module
from chatwright.preparation.assemble import Rendered
from chatwright.preparation.shards import made_shards
from chatwright.preparation.work import RenderWork
from chatwright.recipes.data import prepare_text
from chatwright.recipes.rendering import plan_entries, render_entries
from chatwright.recipes.run_settings import RunSettings
from training_runs import recipe

MARK = re.compile(r"Which\? (\d+)")


def answer(number: int) -> str:
    return f"It is number {number}" + " indeed" * (number % 4) + "."


def write(folder: Path, name: str, numbers: list[int], bad: set[int]) -> None:
    """A file of rows with these numbers; those in `bad` have no reply."""
    rows = [{"question": f"Which? {n}", "answer": None if n in bad else answer(n)} for n in numbers]
    path = folder / name
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
    elif name.endswith(".csv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["question", "answer"])
            writer.writerows([value for value in row.values() if value] for row in rows)
    elif name.endswith(".json"):
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif name.endswith(".arrow"):
        saved(path, rows)
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)


def saved(folder: Path, rows: list[dict[str, Any]]) -> None:
    """What `Dataset.save_to_disk` writes: Arrow streams of a few rows a batch."""
    folder.mkdir()
    table = pa.Table.from_pylist(rows)
    with (
        pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as file,
        pa.ipc.new_stream(file, table.schema) as to,
    ):
        to.write_table(table, max_chunksize=6)
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
    (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")


def settings_for(model: Path, folder: Path, size: int, **entry: Any) -> RunSettings:
    data = [{"path": str(folder), "format": "question_answer", "on_bad_row": "skip", **entry}]
    return recipe(
        model,
        None,
        folder / "out",
        data=data,
        heldout={"share": 0.2},
        max_tokens=80,
        overflow="drop",
        preparation={"rows_per_shard": size, "workers": 1},
    )


TEXTS: dict[str, Any] = {}


def rendered(own: RunSettings, folder: Path | None) -> Rendered:
    text = TEXTS.get(own.model) or TEXTS.setdefault(own.model, prepare_text(own))
    return render_entries(own, text.template, None, text_folder=text.resolved.text_folder, folder=folder, key="k")


def interrupted(own: RunSettings, folder: Path, after: int) -> Rendered | None:
    """Prepare, but be interrupted once so many stores of shards and pieces are written."""
    written = 0

    def save(*arguments: Any) -> None:
        nonlocal written
        if written == after:
            raise KeyboardInterrupt
        written += 1
        original(*arguments)

    original = shards_module.save_store
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards_module, "save_store", save)
        try:
            return rendered(own, folder)
        except KeyboardInterrupt:
            return None


def numbers_in(result: Rendered, decode: Any) -> tuple[list[int], list[int]]:
    """The numbers that the trained and the held-out examples tell of."""
    found = []
    for store in (result.store, result.heldout):
        texts = (decode(store.ids[a:b].tolist()) for a, b in zip(store.offsets[:-1], store.offsets[1:], strict=True))
        found.append([int(number) for text in texts for number in MARK.findall(text)])
    return found[0], found[1]


NAMES = ["a.jsonl", "b.parquet", "c.csv", "d.json", "e.jsonl.gz", "f.arrow"]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_row_is_trained_held_out_or_counted(
    data: st.DataObject, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted at any place and gone on with another size, as often as you like, nothing is lost or repeated."""
    monkeypatch.setattr(row_ranges, "SMALL_FILE_BYTES", 0)
    monkeypatch.setattr(row_ranges, "GROUP_BYTES", 0)
    monkeypatch.setattr(shards_module, "GROUP_BYTES", 0)
    folder, cache = tmp_path_factory.mktemp("rows"), tmp_path_factory.mktemp("cache") / "tokens"
    numbers = iter(range(1000))
    for name in data.draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True)):
        own = [next(numbers) for _ in range(data.draw(st.integers(2, 40)))]
        write(folder, name, own, {number for number in own if number % 11 == 5})
    entry: dict[str, Any] = {}
    files = sorted(path for path in folder.iterdir())
    if len(files) == 1 or not any(path.is_dir() for path in files):
        start = data.draw(st.integers(0, 5))
        entry = {"start": start, "stop": start + data.draw(st.integers(20, 200)), "step": data.draw(st.integers(1, 3))}
    path = str(files[0]) if len(files) == 1 else f"{folder}/*"
    wanted = independent(files)[entry.get("start") : entry.get("stop") : entry.get("step")]
    if not any(number % 11 != 5 for number in wanted):
        return
    for _ in range(data.draw(st.integers(0, 3))):
        size, after = data.draw(st.integers(1, 30)), data.draw(st.integers(0, 8))
        interrupted(settings_for(tiny_model, folder, size, **{**entry, "path": path}), cache, after)
    own_settings = settings_for(tiny_model, folder, data.draw(st.integers(1, 30)), **{**entry, "path": path})
    result = rendered(own_settings, cache)
    result.ledger.check()
    assert result.ledger.rows(Stage.READ) == result.entries[0].num_rows == len(wanted)
    decode = TEXTS[own_settings.model].template.tokenizer.decode
    trained, held = numbers_in(result, decode)
    lost = Counter(wanted) - Counter(trained + held)
    assert Counter(trained + held) + lost == Counter(wanted), "no row comes twice, none that isn't there"
    counted = result.ledger.rows(Stage.SKIPPED) + result.ledger.rows(Stage.DROPPED) + result.ledger.rows(Stage.FILTERED)
    assert lost.total() == counted
    assert {number for number in lost if number % 11 == 5} == {number for number in wanted if number % 11 == 5}
    assert not set(trained) & set(held)


def independent(files: list[Path]) -> list[int]:
    """The numbers of all rows of the source, read without any of the program's readers."""
    found: list[str] = []
    for path in files:
        if path.is_dir():
            with pa.OSFile(str(path / "data-00000-of-00001.arrow")) as file:
                found += pa.ipc.open_stream(file).read_all()["question"].to_pylist()
        elif path.suffix == ".parquet":
            found += pq.read_table(path)["question"].to_pylist()
        else:
            text = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode()
            found += re.findall(r"Which\? \d+", text)
    return [int(question.split()[-1]) for question in found]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_source_that_cannot_be_cut_is_made_piece_by_piece(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """The tokens of one go, held never more than a piece at a time; what is made is not made again."""
    monkeypatch.setattr(shards_module, "GROUP_BYTES", 0)
    data = tmp_path / "data"
    data.mkdir()
    write(data, "a.jsonl.gz", list(range(40)), {5})
    write(data, "b.csv", list(range(40, 60)), {42})
    more = {"start": 1, "step": 2}
    own = settings_for(tiny_model, data, 7, **more)
    own = own.model_copy(update={"preparation": own.preparation.model_copy(update={"workers": workers})})
    wanted = rendered(own, None)
    if workers == 1:
        assert interrupted(own, tmp_path / "cache" / "tokens", 3) is None
        left = sorted(path.parents[1].name for path in (tmp_path / "cache").rglob("tokens/meta.json"))
        assert left == ["piece-00000", "piece-00001", "piece-00002"]
    sizes: list[int] = []
    monkeypatch.setattr(
        shards_module, "prepare_rows", lambda rows, *rest: (sizes.append(len(rows)), original(rows, *rest))[1]
    )
    original = rows_module.prepare_rows
    made = rendered(own, tmp_path / "cache" / "tokens")
    assert sizes == ([7, 2] if workers == 1 else [7] * 4 + [2])
    assert made.ledger.to_dict() == wanted.ledger.to_dict() and made.entries == wanted.entries
    for ours, theirs in ((made.store, wanted.store), (made.heldout, wanted.heldout)):
        assert all((getattr(ours, name) == getattr(theirs, name)).all() for name in ("ids", "offsets", "rows"))
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["tokens"]


def test_small_sources_are_not_written_as_shards(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards_module, "GROUP_BYTES", 0)
    monkeypatch.setattr(shards_module, "save_store", None)
    write(tmp_path, "a.jsonl.gz", list(range(9)), set())
    own = settings_for(tiny_model, tmp_path, 9, path=str(tmp_path / "a.jsonl.gz"))
    assert len(rendered(own, tmp_path / "cache" / "tokens").entry_index) > 0


def test_shards_that_do_not_hold_all_rows_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    """Ranges with a gap between them, or a shard of another entry or range, are never put together."""
    write(tmp_path, "a.parquet", list(range(30)), set())
    own = settings_for(tiny_model, tmp_path, 10, path=str(tmp_path / "a.parquet"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_ranges, "SMALL_FILE_BYTES", 0)
        shards = plan_entries(own)[0].shards
    assert len(shards) == 3
    text = prepare_text(own)
    work = RenderWork(str(text.resolved.text_folder), text.template.settings, 80, own.overflow, 1)
    for shard in shards:
        shards_module.make_shard(shard, work, text.template, None, tmp_path)
    assert made_shards(tmp_path, shards) == list(shards)
    with pytest.raises(DataError, match="don't follow"):
        made_shards(tmp_path, [shards[0], shards[2]])
    other = replace(shards[1], rows=replace(shards[1].rows, stop=19))
    assert not shards_module.has_shard(tmp_path, other)
    with pytest.raises(DataError, match="made of other rows"):
        made_shards(tmp_path, [shards[0], other])
