"""Instructions that a program can check: each check on texts that follow and that don't, and the task that asks."""

from __future__ import annotations

from typing import Any

import pytest

from chatwright.conversations.schema import Message, Part
from chatwright.tasks.instruction_checks import CHECKS, FollowingOptions, follows
from chatwright.tasks.registry import make_task

BULLETS = "Here:\n* one\n- two\n  * three\n**not one**\ntext - no"
CASES: list[tuple[str, dict[str, Any], str, bool]] = [
    ("keywords:existence", {"keywords": ["sea", "salt"]}, "The Sea is salty.", True),
    ("keywords:existence", {"keywords": ["sea", "sand"]}, "The sea.", False),
    ("keywords:frequency", {"keyword": "ha", "frequency": 3, "relation": "at least"}, "Ha ha HA", True),
    ("keywords:frequency", {"keyword": "ha", "frequency": 3, "relation": "less than"}, "Ha ha HA", False),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "A category.", True),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "A CAT.", False),
    ("keywords:letter_frequency", {"letter": "E", "let_frequency": 2, "let_relation": "at least"}, "Eve", True),
    ("keywords:letter_frequency", {"letter": "e", "let_frequency": 2, "let_relation": "less than"}, "Eve", False),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, "It's here", True),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, "one two three", False),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "***\none\n***\ntwo", True),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "one\n***\n***\ntwo", False),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 1}, "one", True),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Now"},
        'First.\n\n"Now", it goes.',
        True,
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Now"},
        "First.\n\nNowhere.",
        False,
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "now"},
        "now",
        False,
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name], [date]", True),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name, date]", False),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye.\np. s. one more", True),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Bye.\nP.S. one more", False),
    ("detectable_format:number_bullet_lists", {"num_bullets": 3}, BULLETS, True),
    ("detectable_format:number_bullet_lists", {"num_bullets": 4}, BULLETS, False),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*one* and **two**", True),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*one* and ** **", False),
    ("detectable_format:multiple_sections", {"section_spliter": "Part", "num_sections": 2}, "Part 1 a Part 2 b", True),
    ("detectable_format:multiple_sections", {"section_spliter": "Part", "num_sections": 2}, "Part 1 a Part b", False),
    ("detectable_format:constrained_response", {}, "Well: My answer is maybe.", True),
    ("detectable_format:constrained_response", {}, "my answer is maybe", False),
    ("detectable_format:json_format", {}, '```json\n{"a": [1]}\n```', True),
    ("detectable_format:json_format", {}, 'Here: {"a": 1}', False),
    ("detectable_format:title", {}, "<<On bees>>\nText", True),
    ("detectable_format:title", {}, "<< >>\nText", False),
    ("combination:two_responses", {}, "one\n******\ntwo", True),
    ("combination:two_responses", {}, "one\n******\none", False),
    ("combination:two_responses", {}, "one\n******\n\n******\ntwo", False),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say hi."}, "say HI. Hi!", True),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say hi."}, "Hi! Say hi.", False),
    ("startend:end_checker", {"end_phrase": "Bye now."}, '"So long. BYE NOW."', True),
    ("startend:end_checker", {"end_phrase": "Bye now."}, "Bye now. And then", False),
    ("startend:quotation", {}, ' "all of it" ', True),
    ("startend:quotation", {}, '"', False),
    ("punctuation:no_comma", {}, "None here.", True),
    ("punctuation:no_comma", {}, "One, here.", False),
    ("case:lower", {}, "all small 1.", True),
    ("case:lower", {}, "One large.", False),
    ("case:upper", {}, "ALL LARGE 1.", True),
    ("case:upper", {}, "One large.", False),
]


@pytest.mark.parametrize(("name", "arguments", "text", "right"), CASES)
def test_every_check_tells_followed_from_not(name: str, arguments: dict[str, Any], text: str, right: bool) -> None:
    assert follows(text, name, arguments) is right


def test_every_check_has_both_kinds_of_texts() -> None:
    assert {(name, right) for name, _, _, right in CASES} == {
        (name, right) for name in CHECKS for right in (True, False)
    }


@pytest.mark.parametrize("name", CHECKS)
def test_an_empty_text_follows_nothing(name: str) -> None:
    arguments = next(arguments for known, arguments, _, _ in CASES if known == name)
    assert not follows(" \n", name, arguments)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("punctuation:no_comma", {"num_words": 1}),
        ("length_constraints:number_words", {"num_words": 1}),
        ("length_constraints:number_words", {"num_words": 1, "relation": "about"}),
        ("keywords:existence", {"keywords": ["("]}),
    ],
)
def test_arguments_that_do_not_fit_are_named(name: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{name} can't be checked with"):
        follows("text", name, arguments)


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_reference_follows_its_own_instructions(split: str) -> None:
    task = make_task("instructions")
    rows = task.conversations(split)
    assert len(rows) == {"train": 1_000, "test": 200}[split]
    assert [row.messages[0].text for row in rows if not task.grade(row, row.messages[-1])] == []
    asked = {name for row in rows for name, _ in row.extra["instructions"]}
    assert len(asked) == 12 and {len(row.extra["instructions"]) for row in rows} == {1, 2}


def test_a_plain_answer_seldom_follows() -> None:
    """The instructions ask for something: the answer alone, without them, mostly fails."""
    task = make_task("instructions")
    rows = task.conversations("test")
    plain = Message.of("assistant", "Paris is the capital of France, as everyone knows.")
    assert sum(map(float, (task.grade(row, plain) for row in rows))) < 0.25 * len(rows)


def test_by_prompt_or_by_instruction() -> None:
    wanted = (("punctuation:no_comma", {}), ("case:lower", {}))
    strict, share = FollowingOptions(), FollowingOptions(level="instruction")
    for text, whole, part in [("all small", True, 1.0), ("One", False, 0.5), ("One, two", False, 0.0)]:
        assert (strict.grade(text, wanted), share.grade(text, wanted)) == (whole, part)


def test_the_text_behind_the_tools_is_graded() -> None:
    task = make_task("instructions")
    row = next(row for row in task.conversations("train") if row.extra["instructions"] == (("case:lower", {}),))
    reply = Message("assistant", (Part("text", "LOUD"), Part("tool_call", "1+1"), Part("text", "all small")))
    assert task.grade(row, reply)
