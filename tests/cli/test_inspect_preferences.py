"""`chatwright inspect` on preference data and on plain text, as a user types it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chatwright.cli.main import main
from chatwright.console import err, out
from shared_files import shared
from training_runs import write_rows

Run = Callable[..., tuple[int, str, str]]
PAIRS: list[dict[str, Any]] = [
    {"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": f"No {n}.", "margin": n / 2} for n in range(8)
]
PAIRS[3]["chosen"] = PAIRS[3]["rejected"]
PAIRS[5]["chosen"] = 7


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str, columns: int = 80) -> tuple[int, str, str]:
        monkeypatch.setenv("COLUMNS", str(columns))
        out.cache_clear()
        err.cache_clear()
        monkeypatch.setattr(sys, "argv", ["chatwright", "inspect", *arguments])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def test_pairs_are_counted_and_shown_stacked_or_side_by_side(run: Run, tmp_path: Path) -> None:
    write_rows(tmp_path / "pairs.jsonl", PAIRS)
    code, shown, told = run("pairs.jsonl")
    assert code == 0, told
    assert "8 rows, preferences of format trl" in shown and "6 with a margin" in shown
    assert "the two replies are identical; first row 3" in shown and "bad chosen: row 5 of pairs.jsonl" in shown
    lines = shown.splitlines()
    assert max(map(len, lines)) <= 80
    at = lines.index("pairs.jsonl, row 1 · margin 0.5")
    assert [line.strip() for line in lines[at + 1 : at + 6]] == [
        "user: What is 1?",
        "── chosen ──",
        "It is 1.",
        "── rejected ──",
        "No 1.",
    ]
    assert "data.0.preference=chosen" in told
    wide = run("pairs.jsonl", columns=120)[1].splitlines()
    at = wide.index("pairs.jsonl, row 1 · margin 0.5")
    assert wide[at + 2].split() == ["──", "chosen", "──", "──", "rejected", "──"]
    assert wide[at + 3].split() == ["It", "is", "1.", "No", "1."]


def test_samples_and_records(run: Run, tmp_path: Path) -> None:
    write_rows(tmp_path / "pairs.jsonl", PAIRS)

    def records(*more: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in run("pairs.jsonl", "--json", *more)[1].splitlines()]

    assert [record["row"] for record in records("--rows", "2:4")] == [2, 4]
    first = records()[0]
    assert first["chosen"] == [{"role": "assistant", "content": "It is 0."}]
    assert (first["prompt"][0]["role"], first["rejected"][0]["content"], first["margin"]) == ("user", "No 0.", 0)
    drawn = records("--sample", "3", "--seed", "1")
    assert len(drawn) == 3 and drawn == records("--sample", "3", "--seed", "1")
    assert any(records("--sample", "3", "--seed", str(seed)) != drawn for seed in range(2, 6))


def test_a_reply_cannot_command_the_terminal(run: Run, tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", [{"prompt": "?", "chosen": "\x1b[2J[red]x", "rejected": "b"}])
    shown = run("a.jsonl")[1]
    assert "\x1b[2J" not in shown and "␛[2J[red]x" in shown


def test_labelled_replies(run: Run, tmp_path: Path) -> None:
    write_rows(tmp_path / "kto.jsonl", [{"prompt": "?", "completion": f"{n}", "label": n != 1} for n in range(3)])
    shown = run("kto.jsonl")[1]
    assert "wanted replies" in shown and "kto.jsonl, row 1 · unwanted" in shown
    assert [json.loads(line)["label"] for line in run("kto.jsonl", "--json")[1].splitlines()] == [True, False, True]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("pairs.jsonl", "--html", "a.html"), "--html shows what is trained"),
        (("pairs.jsonl", "--set", "data.0.max_rows=3"), "data.0.max_rows has no effect"),
        (("pairs.jsonl", "--set", "data.0.preference=chosen"), "--model is required"),
        (("chat.jsonl",), "--model is required"),
        (("chat.jsonl", "--set", "data.0.format=trl"), "none of 1 rows makes a pair"),
    ],
)
def test_what_cannot_be_meant_is_refused(run: Run, tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    write_rows(tmp_path / "pairs.jsonl", PAIRS)
    write_rows(tmp_path / "chat.jsonl", [{"messages": [{"role": "user", "content": "?"}]}])
    code, shown, told = run(*arguments)
    assert code == 2 and says in told and not shown
    assert not (tmp_path / "a.html").exists()


@pytest.mark.parametrize("name", ["dpo_zh_demo.json", "hh_rlhf_harmless_base_test.jsonl.gz", "kto_en_demo.json"])
def test_real_preferences(run: Run, name: str) -> None:
    code, shown, _ = run(str(shared(f"data/preference/{name}")), "--sample", "4")
    assert code == 0 and shown.count("── ") >= 4


def test_the_chosen_side_with_a_model(run: Run, tmp_path: Path, tiny_model: Path) -> None:
    write_rows(tmp_path / "pairs.jsonl", PAIRS)
    more = ("--set", "data.0.preference=chosen", "--set", "data.0.on_bad_row=skip", "--model", str(tiny_model))
    code, shown, told = run("pairs.jsonl", *more, columns=200)
    assert code == 0, told
    assert "format trl, chosen replies" in shown and "preference: the two replies are identical" in shown
    assert "It is 1." in shown and "No 1." not in shown


def test_documents_are_shown_as_their_pieces(run: Run, tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "book.txt").write_text("The river is behind the hill. " * 40)
    more = ("--model", str(tiny_model), "--set", "max_tokens=50")
    code, shown, told = run("book.txt", *more, columns=200)
    assert code == 0, told
    assert "book.txt: 1 rows, format text" in shown and "part 2" in shown and "part 3" not in shown
    assert "more pieces" in told and "✗" not in shown and "split" in shown
    records = [json.loads(line) for line in run("book.txt", *more, "--json")[1].splitlines()]
    assert [record["part"] for record in records] == list(range(len(records))) and len(records) > 3
    page = tmp_path / "a.html"
    assert run("book.txt", *more, "--html", str(page))[0] == 0
    assert page.stat().st_size > 0
