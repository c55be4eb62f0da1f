"""A source cut into ranges gives the same rows as read in one go, in the same order, each once."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chatwright.conversations import row_ranges
from chatwright.conversations.row_ranges import read_range, split_source
from chatwright.conversations.sources import scan_rows


def write(folder: Path, name: str, count: int) -> Path:
    path = folder / name
    rows = [{"text": f"row {index} \u2028 ü", "n": index} for index in range(count)]
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
    elif name.endswith(".jsonl"):
        blank = [b"", b"  ", b"not json"]  # blank lines aren't rows; a bad line is one
        lines = [json.dumps(row, ensure_ascii=False).encode() for row in rows]
        mixed = [
            part
            for index, line in enumerate(lines)
            for part in ([line, blank[index % 3]] if index % 5 == 2 else [line])
        ]
        path.write_bytes(b"\xef\xbb\xbf" + b"\n".join(mixed))
    else:
        path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def plain(rows: object) -> list[object]:
    return [(row.value, row.source, row.number, str(row.error)) for row in rows]  # type: ignore[attr-defined]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_ranges_are_the_rows(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_ranges, "SMALL_FILE_BYTES", data.draw(st.sampled_from([0, 1 << 20])))
    folder = tmp_path_factory.mktemp("rows")
    names = data.draw(
        st.lists(st.sampled_from(["a.jsonl", "b.parquet", "c.json"]), min_size=1, max_size=3, unique=True)
    )
    for name in names:
        write(folder, name, data.draw(st.integers(1, 40)))
    start, length, step = (
        data.draw(st.integers(0, 30)),
        data.draw(st.none() | st.integers(1, 30)),
        data.draw(st.integers(1, 4)),
    )
    stop = None if length is None else start + length
    ranges = split_source(str(folder), data.draw(st.integers(1, 20)), start, stop, step)
    wanted = plain(islice(scan_rows(str(folder)), start, stop, step))
    assert plain(row for each in ranges for row in read_range(each)) == wanted


def test_large_files_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_ranges, "SMALL_FILE_BYTES", 0)
    for name in ("a.jsonl", "b.parquet"):
        path = write(tmp_path, name, 40)
        assert len(split_source(str(path), 10)) == (5 if name == "a.jsonl" else 4)  # the bad lines are rows too
