"""The texts of evaluations: questions, choices and answers of tasks, without what all their items say."""

from __future__ import annotations

import pytest

from chatwright.conversations.schema import Conversation, Message
from chatwright.errors import ConfigError
from chatwright.inspection.evaluation_texts import collect_evaluations, evaluation_texts, without_frame

FRAME = "Multiple Choice question: {}\n{}\nRespond only with the letter of the correct answer."


def conversation(question: str, answer: str, row: int = 0) -> Conversation:
    return Conversation((Message.of("user", question), Message.of("assistant", answer)), source="s", row=row)


def listed(*choices: str) -> str:
    return "".join(f"- {choice}={letter}\n" for choice, letter in zip(choices, "ABCD", strict=False))


def test_choices_stand_apart_and_the_frame_is_gone() -> None:
    long = "of the four planets below: which is the one that takes the longest time to go around the sun"
    many = [
        conversation(FRAME.format(f"{n} {long} in case {n}?", listed(f"Mars {n}", f"Venus {n}")), "A", n)
        for n in range(25)
    ]
    texts = evaluation_texts("quiz", "test", many)
    assert [(text.field, text.text) for text in texts if text.row == 7] == [
        ("question", f"7 {long} in case 7?"),
        ("choices", "Mars 7\nVenus 7"),
        ("answer", "A"),
    ]


def test_a_short_question_is_kept_with_its_choices_and_alone_only_where_it_is_the_only_one() -> None:
    same = [conversation(f"Which is true?\nA. {what} is red\nB. {what} is blue", "A", n) for n, what in enumerate("xy")]
    other = conversation("Which metal is liquid?\n(A) iron\n(B) mercury", "B", 2)
    texts = evaluation_texts("quiz", "test", [*same, other])
    assert [(text.row, text.field, text.text) for text in texts if text.field != "answer"] == [
        (0, "choices", "Which is true?\nx is red\nx is blue"),
        (0, "choices", "Which is true?\nA. x is red\nB. x is blue"),
        (1, "choices", "Which is true?\ny is red\ny is blue"),
        (1, "choices", "Which is true?\nA. y is red\nB. y is blue"),
        (2, "question", "Which metal is liquid?"),
        (2, "choices", "Which metal is liquid?\niron\nmercury"),
        (2, "choices", "Which metal is liquid?\n(A) iron\n(B) mercury"),
    ]


def test_an_answer_that_repeats_the_question_is_only_what_it_adds() -> None:
    texts = evaluation_texts("code", "test", [conversation("def f(x):\n", "def f(x):\n    return x\n")])
    assert [text.text for text in texts] == ["def f(x):\n", "    return x\n"]


def test_few_texts_keep_what_they_share() -> None:
    assert without_frame(["say one", "say two"]) == ["say one", "say two"]
    assert without_frame([f"please say w{n} now" for n in range(20)]) == [f"w{n}" for n in range(20)]
    assert without_frame(["same words"] * 20) == ["words"] * 20


def test_generated_tasks_need_no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHATWRIGHT_DATA", raising=False)
    found = collect_evaluations()
    assert {"arithmetic", "general", "persona", "spelling", "letter_counting"} <= set(found.items)
    assert "gsm8k" not in found.items
    assert all("CHATWRIGHT_DATA" in reason for reason in found.unchecked.values())
    assert {text.task for text in found.texts} == set(found.items)
    assert all(text.made_here and text.field != "answer" for text in found.texts)
    assert found.items["general"] == len({text.row for text in found.texts if text.task == "general"})


def test_only_what_is_named() -> None:
    found = collect_evaluations(["general", "general"])
    assert list(found.items) == ["general"]
    assert found.identity == collect_evaluations(["general"]).identity
    assert found.identity != collect_evaluations(["persona"]).identity
    with pytest.raises(ConfigError, match="'persona'"):
        collect_evaluations(["personal"])
