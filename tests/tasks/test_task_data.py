"""Where task data is found, and which rows are drawn; on files made here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chatwright.conversations import sources
from chatwright.conversations.schema import Message
from chatwright.errors import ConfigError, DataError, UserError
from chatwright.tasks.registry import make_task


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty `CHATWRIGHT_DATA`."""
    monkeypatch.setenv("CHATWRIGHT_DATA", str(tmp_path))
    return tmp_path


def unreachable(text: str, mode: str = "cached") -> Iterator[Any]:
    """A hub without a network."""
    raise DataError("can't be loaded from the hub: no network", source=text)
    yield


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "hub_rows", unreachable)


def write(path: Path, rows: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def sums(count: int) -> list[dict[str, str]]:
    return [
        {"question": f"What is {n}+1?", "answer": f"It is <<{n}+1={n + 1}>>{n + 1}.\n#### {n + 1}"}
        for n in range(count)
    ]


def test_rows_come_in_an_order_of_the_seed(folder: Path) -> None:
    write(folder / "gsm8k/train.jsonl", sums(60))
    task = make_task("gsm8k")
    rows = task.conversations("train", seed=1)
    assert sorted(row.row for row in rows) == list(range(60)), "each row once"
    assert [row.row for row in rows] != list(range(60))
    assert {row.source for row in rows} == {str(folder / "gsm8k/train.jsonl")}
    assert task.conversations("train", 10, seed=1) == rows[:10]
    assert task.conversations("train", 1000, seed=1) == rows
    assert task.conversations("train", seed=2) != rows
    assert task.conversations("train", 0) == []


def test_equal_rows_are_all_there(folder: Path) -> None:
    write(folder / "gsm8k/train.jsonl", sums(1) * 4)
    assert [row.row for row in make_task("gsm8k").conversations("train")] != []
    assert len(make_task("gsm8k").conversations("train")) == 4


def test_the_fingerprint_follows_the_files(folder: Path) -> None:
    task = make_task("gsm8k")
    assert task.fingerprint("train") is None, "the hub's"
    write(folder / "gsm8k/train.jsonl", sums(3))
    write(folder / "gsm8k/test.jsonl", sums(4))
    before = task.fingerprint("train")
    assert before not in (None, "", task.fingerprint("test"))
    assert make_task("gsm8k").fingerprint("train") == before
    write(folder / "gsm8k/train.jsonl", sums(4))
    assert task.fingerprint("train") != before


@pytest.mark.parametrize(
    ("task", "options", "path"),
    [
        ("gsm8k", {}, "gsm8k/main/test-00000-of-00001.jsonl"),
        ("gsm8k", {"subset": "socratic"}, "gsm8k/test_socratic.jsonl"),
        ("gsm8k", {"subset": "socratic"}, "gsm8k/socratic/test-00000-of-00001.jsonl"),
    ],
)
def test_files_are_found_under_either_name(folder: Path, task: str, options: dict[str, Any], path: str) -> None:
    write(folder / path, sums(2))
    assert len(make_task(task, **options).conversations("test")) == 2
    with pytest.raises(UserError):
        make_task(task, **options).conversations("train")


def test_several_files_are_read_in_order_of_name(folder: Path) -> None:
    chats = [[{"role": "user", "content": str(n)}, {"role": "assistant", "content": "ok"}] for n in range(6)]
    for number in range(3):
        part = [{"messages": chat, "source": "made"} for chat in chats[2 * number : 2 * number + 2]]
        write(folder / f"smoltalk/data/train-{number:05}-of-00003.jsonl", part)
    task = make_task("smoltalk")
    rows = task.conversations("train")
    assert sorted(row.messages[0].text for row in rows) == list("012345")
    assert {row.extra["source"] for row in rows} == {"made"}
    with pytest.raises(UserError, match="no right answer"):
        task.grade(rows[0], rows[0].messages[-1])


def test_custom_json_takes_a_file_from_either_folder(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path_factory.mktemp("here")
    monkeypatch.chdir(here)
    task = make_task("custom_json", path="mine/chats.jsonl")
    with pytest.raises(UserError, match=r"no file 'mine/chats.jsonl'.*\n.*one conversation a line"):
        task.conversations("train")
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
    write(folder / "mine/chats.jsonl", [chat])
    (row,) = task.conversations("train")
    assert row.messages == (Message.of("user", "Hi"), Message.of("assistant", "Hello!"))
    write(here / "mine/chats.jsonl", [chat, [*chat[:1], {"role": "assistant", "content": "Hey!"}]])
    assert len(task.conversations("train")) == 2, "the working folder comes first"
    write(here / "mine/chats.jsonl", [chat, chat[::-1]])
    with pytest.raises(DataError, match="row 1"):
        task.conversations("train")
    with pytest.raises(ConfigError, match="split: must be one of train"):
        task.conversations("test")


def hub(rows: list[dict[str, Any]], asked: list[str]) -> Any:
    def read(text: str, mode: str = "cached") -> Iterator[Any]:
        asked.append(text)
        yield from rows

    return read


@pytest.mark.parametrize("data", ["unset", "empty"])
def test_the_hub_is_asked_for_what_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data: str) -> None:
    monkeypatch.delenv("CHATWRIGHT_DATA", raising=False)
    if data == "empty":
        monkeypatch.setenv("CHATWRIGHT_DATA", str(tmp_path))
    asked: list[str] = []
    monkeypatch.setattr(sources, "hub_rows", hub(sums(9), asked))
    rows = make_task("gsm8k", subset="socratic").conversations("test", 5)
    assert asked == ["hub:openai/gsm8k:socratic/test"]
    assert len({row.row for row in rows}) == 5
    assert {row.source for row in rows} == {"hub:openai/gsm8k:socratic/test"}


def test_the_hubs_auxiliary_rows_are_unwrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHATWRIGHT_DATA", raising=False)
    row = {"question": "Which is it?", "subject": "", "choices": list("wxyz"), "answer": 3}
    asked: list[str] = []
    monkeypatch.setattr(sources, "hub_rows", hub([{"train": row}], asked))
    task = make_task("mmlu", subset="auxiliary_train")
    (made,) = task.conversations("train")
    assert asked == ["hub:cais/mmlu:auxiliary_train/train"]
    assert made.extra == {"letters": ("A", "B", "C", "D"), "answer": "D", "subject": ""}
    with pytest.raises(ConfigError, match="split: must be one of train"):
        task.conversations("test")
    with pytest.raises(ConfigError, match="split: must be one of test, validation, dev"):
        make_task("mmlu").conversations("train")


def test_missing_data_names_both_ways(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CHATWRIGHT_DATA", raising=False)
    with pytest.raises(UserError) as unset:
        make_task("arc").conversations("test")
    assert "CHATWRIGHT_DATA isn't set" in str(unset.value)
    assert "no network" in str(unset.value)
    monkeypatch.setenv("CHATWRIGHT_DATA", str(tmp_path))
    with pytest.raises(UserError) as empty:
        make_task("arc", subset="ARC-Challenge").conversations("test")
    assert empty.value.place == "task arc"
    assert f"CHATWRIGHT_DATA={tmp_path} has no arc/ARC-Challenge/test.*" in empty.value.message
    assert "set CHATWRIGHT_DATA to a folder" in str(empty.value.hint)
    assert "allenai/ai2_arc:ARC-Challenge/test" in str(empty.value.hint)
    assert "HF_ENDPOINT" in str(empty.value.hint)


@pytest.mark.parametrize(
    ("task", "path", "row", "field"),
    [
        ("arc", "arc/ARC-Easy/test.jsonl", {"question": "Q", "choices": {"text": ["a"], "label": []}}, "choices"),
        ("arc", "arc/ARC-Easy/test.jsonl", {"question": "Q", "choices": None, "answerKey": "A"}, "choices"),
        ("arc", "arc/ARC-Easy/test.jsonl", {"instruction": "What is it?", "answer": "answer1"}, "instruction"),
        ("mmlu", "mmlu/all/test.jsonl", {"question": "Q", "choices": list("abcd"), "answer": 4}, "answer"),
        ("gsm8k", "gsm8k/test.jsonl", {"question": "Q", "answer": "I don't know"}, "answer"),
    ],
)
def test_a_bad_row_is_named(folder: Path, task: str, path: str, row: dict[str, Any], field: str) -> None:
    write(folder / path, [row])
    with pytest.raises(DataError) as caught:
        make_task(task).conversations("test")
    assert (caught.value.row, caught.value.source) == (0, str(folder / path))
    assert str(caught.value.field).startswith(field)


def test_a_line_that_is_not_json_is_named(folder: Path) -> None:
    write(folder / "gsm8k/test.jsonl", sums(2))
    with (folder / "gsm8k/test.jsonl").open("a") as file:
        file.write("{oh\n")
    with pytest.raises(DataError, match="line 3 is not JSON"):
        make_task("gsm8k").conversations("test", 1)
