"""What code a filter depends on: its module and the user's modules behind it, not the rest."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from chatwright.conversations.code_identity import code_identity, library_version
from chatwright.conversations.data_settings import DataSettings
from chatwright.settings import build

FILES = {
    "rules_a/__init__.py": "",
    "rules_a/keep.py": "import json\nimport numpy\nfrom . import words\n\ndef keep(c):\n    return words.ok(c)\n",
    "rules_a/words.py": "def ok(c):\n    from rules_helper import LIMIT\n    return c.row < LIMIT\n",
    "rules_a/other.py": "x = 1\n",
    "rules_helper.py": "LIMIT = 10\nimport rules_helper\n",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("rules_a", "rules_helper"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    importlib.invalidate_caches()
    return tmp_path


@pytest.mark.parametrize("changed", [name for name in FILES if "other" not in name])
def test_code_that_a_module_reaches_counts(folder: Path, changed: str) -> None:
    before = code_identity("rules_a.keep")
    assert before == code_identity("rules_a.keep")
    (folder / changed).write_text(FILES[changed] + "# a comment\n")
    assert code_identity("rules_a.keep") != before


def test_other_code_does_not_count(folder: Path) -> None:
    before = code_identity("rules_a.keep")
    (folder / "rules_a/other.py").write_text("x = 2\n")
    assert code_identity("rules_a.keep") == before


def test_libraries_count_by_version(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = code_identity("rules_a.keep")
    monkeypatch.setattr("chatwright.conversations.code_identity.version", lambda name: "99")
    assert code_identity("rules_a.keep") != before
    assert library_version("py3langid") == "py3langid 99"


@pytest.mark.parametrize(
    ("entry", "known"),
    [
        ({"filters": [{"kind": "language", "allow": ["en"]}]}, "py3langid"),
        ({"transforms": [{"kind": "fix_mojibake"}]}, "ftfy"),
        ({"filters": [{"kind": "empty_reply"}]}, ""),
    ],
)
def test_filters_and_transforms_tell_what_they_depend_on(entry: dict[str, Any], known: str) -> None:
    settings = build(DataSettings, {"path": "x.jsonl", **entry}, "recipe")
    (each,) = (*settings.filters, *settings.transforms)
    assert each.identity().partition(" ")[0] == known
