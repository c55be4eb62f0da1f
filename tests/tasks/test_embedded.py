"""The shipped data: valid, sorted, without repeats, and no test fact among the train rows."""

from __future__ import annotations

import json
import re

import pytest

from chatwright.tasks.embedded import read_records, read_text, words_of

FILES = ("general_train.jsonl", "general_test.jsonl", "persona.jsonl")
SMALL_WORDS = {
    "the",
    "a",
    "an",
    "of",
    "is",
    "are",
    "in",
    "what",
    "which",
    "who",
    "how",
    "many",
    "do",
    "does",
    "to",
    "for",
}


def content_words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower())) - SMALL_WORDS


@pytest.mark.parametrize("name", FILES)
def test_every_line_is_json_and_ends(name: str) -> None:
    text = read_text(name)
    assert text.endswith("\n")
    assert [json.loads(line) for line in text[:-1].split("\n")] == list(read_records(name))


def test_general_rows_are_complete_short_and_distinct() -> None:
    train, test = read_records("general_train.jsonl"), read_records("general_test.jsonl")
    assert len(train) >= 300
    assert len(test) >= 30
    assert all(set(row) == {"question", "answer"} for row in train)
    assert all(set(row) == {"question", "answer", "keywords"} and row["keywords"] for row in test)
    questions = [row["question"].lower() for row in (*train, *test)]
    assert len(set(questions)) == len(questions)
    assert all(0 < len(row["answer"].split()) <= 30 for row in (*train, *test))


def test_general_test_facts_stay_out_of_train() -> None:
    train = read_records("general_train.jsonl")
    for asked in read_records("general_test.jsonl"):
        mine = content_words(asked["question"])
        for row in train:
            other = content_words(row["question"])
            assert len(mine & other) < 0.75 * len(mine | other), (asked["question"], row["question"])
    train_text = " ".join(f"{row['question']} {row['answer']}" for row in train)
    for answer in ("Paris", "Tokyo", "Beijing", "Shakespeare", "Jupiter", "Everest", "Pacific", "巴黎", "北京", "东京"):
        assert answer not in train_text


def test_persona_rows_are_complete() -> None:
    for row in read_records("persona.jsonl"):
        assert set(row) == {"topic", "language", "train", "test", "answers"}
        assert row["language"] in ("en", "zh")
        assert len(row["train"]) >= 4
        assert len(row["test"]) >= 2
        assert len(row["answers"]) >= 2
        assert all("{name}" in answer for answer in row["answers"])
        assert not set(map(str.lower, row["train"])) & set(map(str.lower, row["test"]))


def test_words_are_plain_sorted_and_split() -> None:
    words = read_text("words.txt").split()
    assert 2_400 <= len(words) <= 2_800
    assert words == sorted(set(words))
    assert all(re.fullmatch("[a-z]{3,12}", word) for word in words)
    train, test = words_of("train"), words_of("test")
    assert sorted((*train, *test)) == words
    assert 0.15 < len(test) / len(words) < 0.25
