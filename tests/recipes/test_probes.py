"""Probes: every check passes what it should and fails what it should, and prompts come from any file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chatwright.conversations.schema import Message, Part, PartKind
from chatwright.errors import ConfigError, UserError
from chatwright.recipes.probes import CHECKS, Answer, Probe, built_in_probes, count_words, marks, read_probes


def answer(*parts: tuple[PartKind, str], ended: bool = True, foreign: tuple[str, ...] = ()) -> Answer:
    return Answer(Message("assistant", tuple(Part(kind, text) for kind, text in parts)), ended, foreign, 5)


def said(text: str) -> Answer:
    return answer(("text", text))


CALL, RESULT = ("tool_call", "123*456"), ("tool_result", "56088")
THREE = '{"colors": ["red", "green", "blue"]}'
OUTCOMES: list[tuple[dict[str, object], Answer, str, bool]] = [
    ({"mentions": ["Paris"]}, said("It's Paris."), "right", True),
    ({"mentions": ["Paris"]}, said("It's Parisian."), "right", False),
    ({"number": 56088}, said("123 * 456 = 56,088"), "right", True),
    ({"number": 56088}, said("56088 is near 56,089."), "right", False),
    ({"calls": "calculator"}, answer(CALL, RESULT, ("text", "56088")), "tool", True),
    ({"calls": "calculator"}, answer(CALL, ("text", "56088")), "tool", False),
    ({"calls": "calculator"}, said("56088"), "tool", False),
    ({"most_words": 3}, said("Just three words."), "brief", True),
    ({"most_words": 3}, said("These are four words."), "brief", False),
    ({"most_words": 3}, said(""), "brief", False),
    ({"words": 3}, said("Vast, blue, deep."), "format", True),
    ({"words": 3}, said("Vast and blue and deep."), "format", False),
    ({"json_items": 3}, said(f"Here you are:\n```json\n{THREE}\n```"), "format", True),
    ({"json_items": 3}, said('[{"name": "red", "hex": "#f00"}, {"name": "green"}, {"name": "blue"}]'), "format", True),
    ({"json_items": 3}, said('{"first": "red", "second": "green", "third": "blue"}'), "format", True),
    ({"json_items": 3}, said('["red", "green"]'), "format", False),
    ({"json_items": 3}, said('{"colors": ["red", "green", "blue"'), "format", False),
    ({"json_items": 3}, said("red, green, blue"), "format", False),
    ({"most_functions": 1}, said("def add(a, b):\n    return a + b"), "to the point", True),
    ({"most_functions": 1}, said("def add(a, b): ...\ndef sub(a, b): ..."), "to the point", False),
    ({"no_question": True}, said("法国的首都是巴黎。"), "answers", True),
    ({"no_question": True}, said("法国最大的城市是哪个？"), "answers", False),
    ({"no_question": True}, said(""), "answers", False),
    ({}, said("A user may ask: what now?"), "own turn", True),
    ({}, said("It is 4.\nUser: And 3+3?"), "own turn", False),
    ({}, said("It is 4.\nuser\nAnd 3+3?"), "own turn", False),
    ({}, said("Paris.\n### Question: and Spain?"), "own turn", False),
    ({}, said("巴黎。\n用户：西班牙呢？"), "own turn", False),
    ({}, answer(("text", "It is 4."), foreign=("<|user_start|>",)), "own turn", False),
    ({}, said("It is 4."), "ends", True),
    ({}, answer(("text", "It is 4, and so"), ended=False), "ends", False),
]


@pytest.mark.parametrize(("checks", "given", "mark", "good"), OUTCOMES, ids=range(len(OUTCOMES)))
def test_a_check_tells_good_from_bad(checks: dict[str, object], given: Answer, mark: str, good: bool) -> None:
    assert marks(Probe.model_validate({"prompt": "?", **checks}), given)[mark] is good


def test_every_check_is_seen_to_pass_and_to_fail() -> None:
    seen = {(name, good) for checks, _, _, good in OUTCOMES for name in checks}
    assert seen == {(name, good) for name in CHECKS for good in (True, False)}


def test_two_checks_of_one_mark_must_both_hold() -> None:
    probe = Probe(prompt="?", mentions=("sum",), number=4)
    assert marks(probe, said("The sum is 4."))["right"]
    assert not marks(probe, said("It is 4."))["right"]
    assert not marks(probe, said("The sum is 5."))["right"]


def test_words_are_counted_in_scripts_without_spaces_too() -> None:
    assert count_words("It's a well-known 1,000.5 fact") == 5
    assert count_words("法国的首都是巴黎。") == 8


def test_the_built_in_probes_are_those_of_the_seeds() -> None:
    prompts = [probe.prompt for probe in built_in_probes()]
    for wanted in ("What is the capital of France?", "List three colors in JSON format.", "What is 123 * 456?"):
        assert wanted in prompts
    assert len(set(prompts)) == len(prompts)
    assert all(len(marks(probe, said("x"))) > 2 for probe in built_in_probes()), "a probe without a check of its own"


def test_prompts_are_read_from_text_yaml_and_conversations(tmp_path: Path) -> None:
    text = tmp_path / "prompts.txt"
    text.write_text("\ufeffWho are you?\n\n  What is 2+2?  \n", encoding="utf-8")
    assert [probe.prompt for probe in read_probes(text)] == ["Who are you?", "What is 2+2?"]
    yaml = tmp_path / "probes.yaml"
    yaml.write_text('- {prompt: "What is 2+2?", number: 4, name: sum}\n', encoding="utf-8")
    assert read_probes(yaml) == (Probe(name="sum", prompt="What is 2+2?", number=4),)
    rows = tmp_path / "chats.jsonl"
    turns = [("system", "Be kind."), ("user", "Hello"), ("assistant", "Hi."), ("user", "Bye"), ("assistant", "Bye.")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    rows.write_text(json.dumps(row) + "\n", encoding="utf-8")
    (probe,) = read_probes(rows)
    assert [(m.role, m.text) for m in probe.conversation.messages] == [("system", "Be kind."), ("user", "Bye")]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.txt", b"\n \n", "holds no prompt"),
        ("marked.txt", b"caf\xe9\n", "not UTF-8"),
        ("one.yaml", b"prompt: Hello\n", "must be a list"),
        ("broken.yaml", b"- {prompt: [\n", "is no YAML"),
        ("unknown.yaml", b"- {prompt: Hello, mention: [a]}\n", "mentions"),
    ],
)
def test_a_file_that_holds_no_prompts_is_refused(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_probes(tmp_path / name)
    assert words in str(caught.value)
    assert isinstance(caught.value, ConfigError) or caught.value.hint


def test_a_file_that_is_absent_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_probes(tmp_path / "absent.txt")
