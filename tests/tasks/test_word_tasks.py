"""The two spelling tasks of nanochat: their form, their languages, and the large word list."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import pytest

from chatwright.conversations.schema import Message
from chatwright.errors import DataError, UserError
from chatwright.inference.calculator import calculate
from chatwright.tasks.registry import make_task
from shared_files import shared

LANGUAGES = {"en", "zh", "es", "fr", "de", "pt", "it", "ja", "ko", "ru"}


def test_simple_spelling_has_nanochats_form() -> None:
    task = make_task("simple_spelling", size=300)
    rows = task.conversations("train")
    assert len(rows) == len(task.conversations("train", 500)) == 300
    for row in rows:
        word = row.extra["word"]
        assert [message.text for message in row.messages] == [f"Spell the word: {word}", f"{word}:{','.join(word)}"]
    row = rows[0]
    assert not task.grade(row, Message.of("assistant", f"{row.extra['word']}:a,b,c,x,y"))


def test_spelling_bee_counts_by_hand_and_by_tool() -> None:
    for row in make_task("spelling_bee").conversations("train"):
        word, letter, answer = row.extra["word"], row.extra["letter"], row.extra["answer"]
        by_hand, call, result, last = row.messages[1].parts
        assert f"\n{word}:{','.join(word)}\n" in by_hand.text
        lines = re.findall(r"^(\d+):([a-z])(?: yes, that makes (\d+))?$", by_hand.text, re.MULTILINE)
        assert [(int(place), found) for place, found, _ in lines] == list(enumerate(word, 1))
        hits = [int(count) for _, found, count in lines if found == letter]
        assert hits == list(range(1, answer + 1))
        assert f"By hand: {answer}." in by_hand.text
        assert call.text == f'"{word}".count("{letter}")'
        assert calculate(call.text) == result.text == str(answer)
        assert last.text.endswith(f"#### {answer}")


def test_spelling_bee_asks_in_many_ways() -> None:
    rows = make_task("spelling_bee").conversations("train", 1000)
    assert {row.extra["language"] for row in rows} == LANGUAGES
    asked = [row.messages[0].text for row in rows]
    assert all(row.extra["word"] in text for row, text in zip(rows, asked, strict=True))
    assert len({text.replace(row.extra["word"], "_") for row, text in zip(rows, asked, strict=True)}) > 500
    marked = sum(text[-1] in "?？" for text in asked)
    assert 300 < marked < 700
    absent = sum(row.extra["answer"] == 0 for row in rows)
    assert 20 < absent < 150


def test_more_rows_than_words_come_in_rounds() -> None:
    rows = make_task("spelling_bee", size=5_000).conversations("test")
    words = [row.extra["word"] for row in rows]
    assert len(rows) > 4_900, "but for a few that came twice"
    assert len(set(words)) < 700
    assert len({row.messages for row in rows}) == len(rows)


def test_the_large_list(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CHATWRIGHT_DATA", str(tmp_path))
    task = make_task("simple_spelling", words="large")
    with pytest.raises(UserError, match=r"words_alpha.*\n.*words: shipped"):
        task.conversations("train")
    (tmp_path / "words").mkdir()
    (tmp_path / "words/words_alpha.txt").write_text("a\nstrawberry\n" + "\n".join(f"word{i}" for i in range(50)))
    train, test = ({row.extra["word"] for row in task.conversations(split)} for split in ("train", "test"))
    assert len(train) + len(test) == 51, "one letter can't be spelled"
    assert not train & test
    assert "strawberry" in test
    print_of_text = task.fingerprint("train")
    (tmp_path / "words/words_alpha.txt").unlink()
    with zipfile.ZipFile(tmp_path / "words/words_alpha.zip", "w") as archive:
        archive.writestr("words_alpha.txt", "apples\r\nbananas\r\ncherries\r\n")
    assert task.fingerprint("train") != print_of_text != make_task("simple_spelling").fingerprint("train") == ""
    assert len(task.conversations("train") + task.conversations("test")) == 3
    (tmp_path / "words/words_alpha.zip").write_bytes(b"no zip")
    with pytest.raises(DataError, match="no word list"):
        make_task("spelling_bee", words="large").conversations("train")


def test_the_large_list_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATWRIGHT_DATA", str(shared("data/words/words_alpha.zip").parents[1]))
    task = make_task("spelling_bee", words="large", size=300)
    train, test = ({row.extra["word"] for row in task.conversations(split)} for split in ("train", "test"))
    assert len(train) == len(test) == 300
    assert not train & test


def test_copying_wants_the_text_and_nothing_else() -> None:
    task = make_task("copying")
    row = task.conversations("test", 30)[3]
    asked, text = row.messages[0].text, row.extra["answer"]
    assert text in asked and row.messages[1].text == text
    replies = {text: True, f' "{text}" ': True, f"{text}!": False, f"I say {text}": False, "": False}
    for reply, right in replies.items():
        assert task.grade(row, Message.of("assistant", reply)) is right
