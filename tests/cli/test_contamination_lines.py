"""Wherever data is prepared one line says what it was compared with; who asks to drop hits learns what couldn't be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_commands import Command, Result, command
from test_inspect_page import RUN, write_recipe

from chatwright.tasks.registry import make_task

__all__ = ["command"]

STREAM = ("--set", "streaming=true", "--set", "train.max_steps=2")
DROP = ("--set", "contamination.on_hit=drop")


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe whose data hold one question of the task `general`; no evaluation data is at hand."""
    monkeypatch.delenv("CHATWRIGHT_DATA", raising=False)
    write_recipe(tmp_path)
    questions = (each.messages[0].text for each in make_task("general").conversations("test"))
    asked = next(question for question in questions if len(question.split()) > 7)
    row = {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": "I know."}]}
    with (tmp_path / "chats.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def words(result: Result) -> str:
    """All that was printed, in one line."""
    assert result.code == 0, result.err
    return " ".join((result.out + result.err).split())


@pytest.mark.usefixtures("planted")
@pytest.mark.parametrize(
    ("name", "streaming"),
    [*((name, ()) for name in ("plan", "train", "prepare", "inspect")), ("plan", STREAM), ("train", STREAM)],
)
def test_every_command_tells(command: Command, tmp_path: Path, name: str, streaming: tuple[str, ...]) -> None:
    options = (*(RUN if name == "train" else ()), *DROP, *streaming)
    told = words(command(name, "recipe.yaml", *options))
    line = told[told.index("contamination: compared with") :]
    assert "general (" in line and "not compared: arc:ARC-Challenge, arc:ARC-Easy, boolq, gsm8k" in line
    assert "hold an evaluation item" in line and " dropped" in line
    assert "couldn't be compared with, so rows that hold their items stay in" in told and "Set CHATWRIGHT_DATA" in told
    if not streaming:
        assert "1 of 49 rows hold an evaluation item; 1 dropped" in line
    if name == "train":
        report = (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
        assert "contamination: compared with" in report and "couldn't be compared with" in report


@pytest.mark.usefixtures("planted")
def test_the_plan_shows_what_was_left_out_by_reason(command: Command) -> None:
    filters = '[{path: chats.jsonl, filters: [{kind: pattern, forbid: "^zzz"}, {kind: exact_duplicates}]}]'
    told = words(command("plan", "recipe.yaml", *DROP, "--set", f"data={filters}"))
    assert "left out, all sources" in told
    assert "filtered contaminated by general 1" in told.replace("│", " ").replace("  ", " ")


@pytest.mark.usefixtures("planted")
def test_a_subset_by_name_and_no_comparison_at_all(command: Command, tmp_path: Path) -> None:
    told = words(command("plan", "recipe.yaml", *DROP, "--set", "contamination.evaluations=[general]"))
    assert "not compared" not in told and "CHATWRIGHT_DATA" not in told and "1 dropped" in told
    plain = words(command("plan", "recipe.yaml"))
    assert "contamination: rows weren't compared with any evaluation" in plain
    assert command("inspect", "recipe.yaml", "--html", "page.html", *DROP).code == 0
    assert "contamination: compared with" in (tmp_path / "page.html").read_text(encoding="utf-8")
