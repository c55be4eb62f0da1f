"""Names that stay when a folder is moved: what draws about rows depend on."""

from __future__ import annotations

from pathlib import Path

import pytest

from chatwright.conversations.lasting_names import lasting_name
from chatwright.conversations.sources import local_files


@pytest.mark.parametrize(
    ("source", "path", "name"),
    [
        ("/data/a.jsonl", "/data/a.jsonl", "a.jsonl"),
        ("/data/x/a.jsonl", "/data", "x/a.jsonl"),
        ("/data/x/a.jsonl", "/data/*/a.jsonl", "x/a.jsonl"),
        ("/data/x/a.jsonl", "file:///data/", "x/a.jsonl"),
        ("x/a.jsonl", "./*/a.jsonl", "x/a.jsonl"),
        ("a.jsonl", "*.jsonl", "a.jsonl"),
        ("/data/[x]/a.jsonl", "/data/[x]", "a.jsonl"),
        ("s3://bucket/x/a.jsonl", "s3://bucket/**/*.jsonl", "x/a.jsonl"),
        ("memory:///x/a.jsonl", "memory://x", "a.jsonl"),
        ("https://host/a.jsonl?signed=1", "https://host/a.jsonl?signed=1", "a.jsonl"),
        ("hub:owner/name/train", "hub:owner/name/train", "hub:owner/name/train"),
        ("task:spelling", None, "task:spelling"),
        ("elsewhere/a.jsonl", "mine", "elsewhere/a.jsonl"),
    ],
)
def test_names_begin_at_the_entry(source: str, path: str | None, name: str) -> None:
    assert lasting_name(source, path) == name


def test_a_moved_folder_keeps_its_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for place in ("one", "two/deep"):
        for name in ("a.jsonl", "x/a.jsonl", "y/a.jsonl"):
            (tmp_path / place / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / place / name).write_text("{}\n")
        monkeypatch.setenv("MINE", str(tmp_path / place))
        for path in ("$MINE", "$MINE/**/*.jsonl"):
            found.append([lasting_name(str(file), path) for file in local_files(path)])
    assert found == [["a.jsonl", "x/a.jsonl", "y/a.jsonl"]] * 4
