"""How replies are read: numbers, spelled words, keywords, and which text counts."""

from __future__ import annotations

import pytest

from chatwright.conversations.schema import Message, Part
from chatwright.tasks.grading import final_text, last_number, marked_number, mentions_any, spelled_word


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("There are 3 r in strawberry.", 3),
        ("123 * 456 = 56,088.", 56088),
        ("12-30 = -18", -18),
        ("it is −18", -18),
        ("(5)-2", 2),
        ("1/4 is 0.25.", 0.25),
        ("The answer is...7", 7),
        ("1. three 2. four", 2),
        ("There are three of them", 3),
        ("Twelve!", 12),
        ("someone weighs a stone", None),
        ("", None),
    ],
)
def test_last_number(text: str, number: float | None) -> None:
    assert last_number(text) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so she has 7 left.\n#### 7", 7),
        ("#### 1,234.50 dollars", 1234.5),
        ("#### -3", -3),
        ("#### 5\nno: #### 6", 5),
        ("#### 10.", 10),
        ("The answer is 7", None),
        ("####7", None),
        ("#### seven", None),
        ("", None),
    ],
)
def test_marked_number(text: str, number: float | None) -> None:
    assert marked_number(text) == number


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("a-p-p-l-e", "apple"),
        ("A P P L E", "apple"),
        ("a, p, p, l, e.", "apple"),
        ('The word "apple" is spelled A-P-P-L-E.', "apple"),
        ("I think it is c a t", "cat"),
        ("apple", None),
        ("ap-ple", None),
        ("a-p-p-l-es", "appl"),
        ("", None),
    ],
)
def test_spelled_word(text: str, word: str | None) -> None:
    assert spelled_word(text) == word


@pytest.mark.parametrize(
    ("text", "keyword", "found"),
    [
        ("It is PARIS.", "Paris", True),
        ("a comparison", "Paris", False),
        ("at 100 degrees", "0", False),
        ("at 0 degrees", "0", True),
        ("我是Chatwright，你好", "Chatwright", True),
        ("首都是北京。", "北京", True),
        ('{"color": "red"}', '"color": "red"', True),
        ("Written in C++.", "C++", True),
    ],
)
def test_mentions_any(text: str, keyword: str, found: bool) -> None:
    assert mentions_any(text, ["nowhere", keyword]) is found


def test_final_text_begins_after_the_last_tool_part() -> None:
    parts = (Part("text", "7"), Part("tool_call", "1+1"), Part("tool_result", "2"), Part("text", "It is 2."))
    assert final_text(Message("assistant", parts)) == "It is 2."
    assert final_text(Message("assistant", parts[:3])) == ""
    assert final_text(Message("assistant", (Part("thinking", "9"), Part("text", "It is 2.")))) == "It is 2."
