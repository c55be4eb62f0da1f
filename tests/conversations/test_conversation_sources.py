"""Rows from files, folders, globs and memory; bad rows stopped at or counted; fingerprints; settings."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatwright.conversations.data_settings import DataSettings
from chatwright.conversations.sources import fingerprint, load_conversations, read_rows
from chatwright.errors import ConfigError, DataError, UserError
from chatwright.settings import build
from shared_files import shared

ROWS = [{"prompt": "a\u2028b", "completion": "ü"}, {"prompt": "c", "completion": "d"}]
LINES = b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in ROWS)


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", LINES),
        ("a.ndjson", LINES.replace(b"\n", b"\r\n\n")),
        ("a.jsonl.gz", gzip.compress(LINES)),
        ("a.json", json.dumps(ROWS).encode()),
        ("b.json", b"\xef\xbb\xbf" + json.dumps({"data": ROWS}).encode()),
        ("c.json", LINES),
        ("a.csv", "prompt,completion\r\na\u2028b,ü\r\nc,d\r\n".encode()),
        ("a.yaml", json.dumps(ROWS).encode()),
    ],
)
def test_every_text_file_type_gives_the_rows(tmp_path, name, data):
    assert list(read_rows(write(tmp_path / name, data))) == ROWS


ODD_SEPARATORS = '\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029\ufeff\0 a"\\'
texts = st.text(st.one_of(st.sampled_from(ODD_SEPARATORS), st.characters(exclude_categories=["Cs"])), max_size=8)


@given(
    st.lists(st.dictionaries(texts, texts, max_size=2), max_size=4),
    st.sampled_from([b"\n", b"\r\n", b"\n\n", b" \n"]),
    st.booleans(),
)
def test_jsonl_lines_end_at_the_line_feed_only(tmp_path_factory, rows, end, last_end):
    lines = [json.dumps(row, ensure_ascii=False).encode() for row in rows]
    path = write(tmp_path_factory.getbasetemp() / "odd.jsonl", end.join(lines) + (end if last_end else b""))
    assert list(read_rows(path)) == rows


def test_folders_and_globs_are_sorted_and_keep_each_file_as_source(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "README.md", ".hidden.jsonl"):
        write(tmp_path / name, LINES)
    for source in (tmp_path, str(tmp_path / "*.jsonl"), f"{tmp_path}/[ab].jsonl"):
        loaded = load_conversations(source)
        places = [(Path(c.source).name, c.row) for c in loaded.conversations]
        assert places == [("a.jsonl", 0), ("a.jsonl", 1), ("b.jsonl", 0), ("b.jsonl", 1)]


def test_relative_globs_and_nested_folders(tmp_path, monkeypatch):
    for name in ("data/x/a.jsonl", "data/b.jsonl", "data/.cache/a.jsonl"):
        write(tmp_path / name, LINES)
    monkeypatch.chdir(tmp_path)
    assert len(list(read_rows("data/*/*.jsonl"))) == 2, "hidden folders only where the pattern names them"
    assert len(list(read_rows("data/.cache/*.jsonl"))) == 2
    assert len(list(read_rows("data"))) == 4, "a folder takes all below it but what is hidden"


@pytest.mark.parametrize("make", [list, iter, tuple])
def test_rows_in_memory(make):
    loaded = load_conversations(make(ROWS))
    assert (loaded.source, loaded.format, loaded.num_rows) == ("memory", "prompt_completion", 2)


def test_start_and_stop_select_rows_and_keep_their_numbers():
    rows = [{"prompt": str(i), "completion": "x"} for i in range(10)]
    loaded = load_conversations(rows, start=3, stop=5)
    assert ([c.row for c in loaded.conversations], loaded.num_rows) == ([3, 4], 2)
    with pytest.raises(DataError, match=r"no rows in \[20, end\)"):
        load_conversations(rows, start=20)


TOOL_ROWS = [
    {
        "messages": [{"role": "user", "content": "?"}],
        "tools": [{"name": "f", "parameters": {"a": {"enum": ["x", None]}}}],
    },
    {"messages": [{"role": "user", "content": "?"}], "tools": [{"name": "g", "parameters": {"b": {"type": "int"}}}]},
]


def test_parquet_rows_lose_the_nulls_that_arrow_filled_in(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.Table.from_pylist(TOOL_ROWS), tmp_path / "a.parquet")
    filled = pq.read_table(tmp_path / "a.parquet").to_pylist()
    assert filled[1]["tools"][0]["parameters"]["a"] is None, "Arrow does fill in foreign keys"
    assert list(read_rows(tmp_path / "a.parquet")) == TOOL_ROWS


def test_rows_that_never_were_arrow_keep_their_nulls():
    rows = [{"tools": [{"name": "f", "default": None}]}]
    assert list(read_rows(rows)) == rows


def test_null_filled_arguments_of_parquet_rows(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    calls = [{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {"b": 2}}]
    rows = [{"messages": [{"role": "assistant", "content": "", "tool_calls": [call]}]} for call in calls]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = load_conversations(tmp_path / "a.parquet").conversations
    assert [c.messages[0].parts[0].text for c in found] == ['{"a":1}', '{"b":2}']


def test_saved_dataset_folders_are_read_without_the_datasets_library(tmp_path):
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk(str(tmp_path / "one"), num_shards=2)
    assert list(read_rows(tmp_path / "one")) == ROWS
    assert [c.row for c in load_conversations(tmp_path / "one").conversations] == [0, 1]
    assert list(read_rows(data)) == ROWS
    datasets.DatasetDict(train=data, test=data).save_to_disk(str(tmp_path / "two"))
    assert list(read_rows(tmp_path / "two" / "train")) == ROWS
    with pytest.raises(DataError, match=r"several splits: train, test") as caught:
        list(read_rows(tmp_path / "two"))
    assert str(tmp_path / "two" / "train") in str(caught.value)


def test_a_dataset_in_memory_loses_arrow_nulls():
    datasets = pytest.importorskip("datasets")
    rows = [{"prompt": "a", "completion": "b", "info": {"x": 1}}, {"prompt": "a", "completion": "b", "info": {"y": 2}}]
    assert list(read_rows(datasets.Dataset.from_list(rows))) == rows


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.json", b"[1,", "not JSON"),
        ("a.json", b'{"rows": []}', "list of rows, found one dict with fields 'rows'"),
        ("a.json", b"[" * 100_000, "can't be read"),
        ("a.csv", b'a,b\n"x', "not CSV"),
        ("a.csv", b"a,b\n1,2,3\n", "line 2 has 3 values"),
        ("a.csv", b"\xff\xfe", "not UTF-8"),
        ("a.jsonl", b"\xff\n", "line 1 is not UTF-8"),
        ("a.jsonl.gz", b"no gzip", "can't be read"),
        ("a.jsonl.gz", gzip.compress(LINES * 99)[:40], "can't be read"),
        ("a.parquet", b"no parquet", "parquet"),
        ("a.txt", b"", "unknown file type '.txt'"),
        ("a.yaml", b"a: [", "not YAML"),
        ("a.yaml", b"a: 1", "list of rows"),
        ("a/state.json", b"{}", "saved data set"),
        ("a/note.txt", b"", "no data files"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, data, says):
    path = write(tmp_path / name, data)
    source = path if path.parent == tmp_path else path.parent
    with pytest.raises(DataError) as caught:
        list(read_rows(source))
    assert caught.value.source == str(source)
    assert says in caught.value.message


def test_missing_paths_and_mappings_are_named(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        list(read_rows(tmp_path / "nope.jsonl"))
    with pytest.raises(DataError, match="no file matches"):
        list(read_rows(f"{tmp_path}/*.jsonl"))
    with pytest.raises(DataError, match="give one of its parts: train"):
        list(read_rows({"train": []}))


def test_skipped_rows_are_counted_with_their_reasons(tmp_path):
    path = write(tmp_path / "a.jsonl", LINES + b'{"prompt": 3, "completion": "x"}\n\n{oops\n' + LINES)
    with pytest.raises(DataError, match="row 3, field 'line': line 5 is not JSON"):
        load_conversations(path)
    loaded = load_conversations(path, on_bad_row="skip")
    assert [c.row for c in loaded.conversations] == [0, 1, 4, 5]
    assert [(s.row, s.field, s.source) for s in loaded.skipped] == [(2, "prompt", str(path)), (3, "line", str(path))]
    assert loaded.num_rows == len(loaded.conversations) + len(loaded.skipped)
    assert loaded.skip_counts == {"prompt": 1, "line": 1}


def test_skipping_every_row_is_an_error():
    with pytest.raises(DataError, match="all 2 rows were skipped"):
        load_conversations(ROWS, format="alpaca", on_bad_row="skip")
    with pytest.raises(DataError, match=r"^memory: unknown format"):
        load_conversations(ROWS, format="alpacca", on_bad_row="skip")


def test_a_real_file_with_14_malformed_lines():
    path = shared("data/sft/alpaca_libre_tasks_v2.jsonl")
    with pytest.raises(DataError, match="line 2279 is not JSON"):
        load_conversations(path)
    loaded = load_conversations(path, on_bad_row="skip")
    assert (loaded.num_rows, len(loaded.conversations), loaded.skip_counts) == (2294, 2280, {"line": 14})


def test_fingerprint_follows_the_contents(tmp_path):
    path = write(tmp_path / "a.jsonl", LINES)
    before = fingerprint(path)
    assert before == fingerprint(str(path)) == fingerprint(tmp_path)
    write(path, LINES + b"\n")
    assert fingerprint(path) != before
    assert fingerprint(ROWS) == fingerprint(list(ROWS)) != fingerprint(ROWS[:1])
    with pytest.raises(DataError, match="only once"):
        fingerprint(iter(ROWS))


@pytest.mark.parametrize("name", ["hub:gsm8k/train", "hub:openai/gsm8k", "hub:a/b/", "hub:a/b/c/d"])
def test_hub_names_need_owner_name_and_split(name):
    with pytest.raises(DataError, match="hub data set"):
        list(read_rows(name))


def test_the_hub_without_the_datasets_library_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"chatwright\[hf\]"):
        list(read_rows("hub:openai/gsm8k:main/train"))


def test_the_hub_out_of_reach_is_a_data_error(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def unreachable(*_args: object, **_options: object) -> None:
        raise ConnectionError("Couldn't reach the hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataError, match="Couldn't reach the hub"):
        list(read_rows("hub:openai/gsm8k:main/train"))


def test_settings_take_exactly_one_of_path_and_task():
    assert build(DataSettings, {"path": "a.jsonl"}, "r").source_name == "a.jsonl"
    assert build(DataSettings, {"task": "spelling", "task_options": {"n": 1}}, "r").source_name == "spelling"
    assert build(DataSettings, {"path": "a.jsonl", "name": "mine"}, "r").source_name == "mine"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({}, "found neither"),
        ({"path": "a", "task": "b"}, "found path and task"),
        ({"path": "-"}, "standard input"),
        ({"path": "a", "task_options": {"x": 1}}, "belong to a 'task'"),
        ({"path": "a", "format": "sharegtp"}, "did you mean 'sharegpt'?"),
        ({"path": "a", "start": 5, "stop": 5}, "must be greater"),
        ({"path": "a", "start": -1}, "start"),
        ({"path": "a", "epochs": 0}, "epochs"),
        ({"path": "a", "on_bad_row": "ignore"}, "on_bad_row"),
    ],
)
def test_wrong_settings_are_named(data, says):
    with pytest.raises(ConfigError) as caught:
        build(DataSettings, data, "recipe")
    assert says in str(caught.value)


def test_the_room_loads_no_torch(tmp_path):
    path = write(tmp_path / "a.jsonl", LINES)
    code = f"""
import sys
from chatwright.conversations import sources, turns
sources.load_conversations({str(path)!r})
print([name for name in ("torch", "transformers", "datasets") if name in sys.modules])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True)
    assert run.stdout.strip() == "[]"


def test_environment_variables_in_paths_are_filled_in(tmp_path, monkeypatch):
    write(tmp_path / "rows" / "a.jsonl", LINES)
    monkeypatch.setenv("CHATWRIGHT_DATA", str(tmp_path))
    for path in ("$CHATWRIGHT_DATA/rows/a.jsonl", "${CHATWRIGHT_DATA}/rows", "$CHATWRIGHT_DATA/rows/*.jsonl"):
        assert list(read_rows(path)) == ROWS
    assert fingerprint("$CHATWRIGHT_DATA/rows") == fingerprint(tmp_path / "rows")
    monkeypatch.delenv("CHATWRIGHT_DATA")
    with pytest.raises(DataError, match=r"\$CHATWRIGHT_DATA.*\n.*set the environment variable"):
        list(read_rows("$CHATWRIGHT_DATA/rows/a.jsonl"))
