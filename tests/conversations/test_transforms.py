"""Row transforms: each changes what it should and leaves the rest, the same in every process and order."""

from __future__ import annotations

import pickle
import sys
from typing import Any

import pytest
from filter_examples import CALL, calling, chat

from chatwright.conversations import transforms as module
from chatwright.conversations.data_settings import DataSettings
from chatwright.conversations.schema import Conversation, Message, Part
from chatwright.conversations.sources import load_conversations
from chatwright.conversations.transforms import RowTransforms, build_transforms
from chatwright.errors import ConfigError, UserError
from chatwright.settings import build
from shared_files import shared

SYSTEM = {"kind": "random_system", "prompts": ["You help.", "Du hilfst."]}
TOOL = {"type": "function", "function": {"name": "f"}}


def transforms(*settings: dict[str, Any]) -> RowTransforms:
    return build_transforms(build(DataSettings, {"path": "x.jsonl", "transforms": list(settings)}, "recipe").transforms)


def once(settings: dict[str, Any], row: Conversation, seed: int = 0) -> Conversation:
    """The row after one transform; checks that the record tells whether it changed."""
    after, names = transforms(settings).apply(row, seed)
    assert names == (() if after is row else (settings["kind"],))
    return after


def test_random_system_prompts_come_as_often_as_asked():
    rows = [chat("a", "b", row=i) for i in range(2000)]
    made = [once(SYSTEM, row) for row in rows]
    given = [row.messages[0].text for row in made if row.messages[0].role == "system"]
    assert 330 < len(given) < 470, "20 %"
    assert 130 < given.count("You help.") < 270
    assert all(row.messages[-2:] == before.messages for row, before in zip(made, rows, strict=True))


def test_random_system_leaves_rows_with_tools_or_a_system_message():
    always = {**SYSTEM, "probability": 1}
    assert once(always, chat("a", "b")).messages[0].text in SYSTEM["prompts"]
    with_tools = chat("a", "b", tools=(TOOL,))
    with_system = Conversation((Message.of("system", "s"), *chat("a", "b").messages))
    assert once(always, with_tools) is with_tools
    assert once(always, with_system) is with_system


def test_draws_depend_on_seed_source_and_row_alone():
    rows = [chat("a", "b", row=i, source=source) for i in range(200) for source in ("x", "y")]
    chosen = transforms(SYSTEM)

    def who(made: list[Conversation]) -> list[bool]:
        return [len(row.messages) == 3 for row in made]

    first = who([chosen.apply(row, 1)[0] for row in rows])
    again = pickle.loads(pickle.dumps(chosen))
    assert who([again.apply(row, 1)[0] for row in reversed(rows)]) == first[::-1]
    assert who([chosen.apply(row, 2)[0] for row in rows]) != first
    assert first[::2] != first[1::2], "another source, other draws"
    twice = [transforms(SYSTEM, {"kind": "drop_system"}, SYSTEM).apply(row, 1) for row in rows]
    assert [names[0] == "random_system" for _, names in twice if names] != [True] * len(twice)


def test_empty_thinking_goes_as_often_as_asked_and_real_thinking_stays():
    def row(i: int, thought: str = "\n") -> Conversation:
        parts = (Part("thinking", thought), Part("text", "x"))
        return Conversation((Message.of("user", "?"), Message("assistant", parts)), row=i)

    made = [once({"kind": "drop_empty_thinking"}, row(i)) for i in range(1000)]
    assert 750 < sum(len(each.messages[1].parts) == 1 for each in made) < 850
    always = {"kind": "drop_empty_thinking", "probability": 1}
    thinking = row(0, "hm")
    assert once(always, thinking) is thinking
    alone = calling(Part("thinking", ""))
    assert once(always, alone) is alone, "a message keeps a part"
    assert once(always, row(0)).messages[1].parts == (Part("text", "x"),)


def test_fill_fills_only_what_it_knows():
    fill = {"kind": "fill", "values": {"name": r"Ada \1", "author": "us"}}
    row = chat("Who made {{author}}?", "I am {{ name }} by {{author}} and {{other}}.")
    assert [m.text for m in once(fill, row).messages] == ["Who made us?", r"I am Ada \1 by us and {{other}}."]
    plain = chat("a", "{name}")
    assert once(fill, plain) is plain


def test_whitespace_is_tidied_and_tool_parts_stay():
    row = chat(" a\r\nb ", "\n\nx\n\n \n\n\ny  z\n")
    assert [m.text for m in once({"kind": "whitespace"}, row).messages] == ["a\nb", "x\n\n\ny  z"]
    assert once({"kind": "whitespace", "max_blank_lines": 0}, row).messages[1].text == "x\ny  z"
    assert once({"kind": "whitespace", "max_blank_lines": None}, row).messages[1].text == "x\n\n \n\n\ny  z"
    tidy = calling(Part("text", "a "), Part("tool_call", " 1 "), Part("tool_result", " 1\r\n"), Part("text", " b"))
    assert once({"kind": "whitespace"}, tidy) is tidy, "spaces between parts belong to them"


def test_system_messages_are_dropped():
    row = Conversation((Message.of("system", "s"), *chat("a", "b").messages))
    assert once({"kind": "drop_system"}, row).messages == chat("a", "b").messages
    plain, alone = chat("a", "b"), Conversation((Message.of("system", "s"),))
    assert once({"kind": "drop_system"}, plain) is plain
    assert once({"kind": "drop_system"}, alone) is alone


def test_the_last_turns_are_kept_with_the_system_message_and_tool_turns_whole():
    long = chat("1", "2", "3", "4", "5", "6")
    keep = {"kind": "keep_last_turns", "turns": 1}
    assert [m.text for m in once(keep, long).messages] == ["5", "6"]
    assert once({**keep, "turns": 3}, long) is long
    tools = Conversation(
        (
            Message.of("system", "s"),
            *chat("1", "2", "3").messages,
            Message("assistant", (CALL,)),
            Message("tool", (Part("tool_result", "0.2"),)),
            Message.of("assistant", "4"),
        )
    )
    assert [m.role for m in once(keep, tools).messages] == ["system", "user", "assistant", "tool", "assistant"]


def test_mojibake_is_repaired():
    pytest.importorskip("ftfy")
    fixed = once({"kind": "fix_mojibake"}, chat("Das ist schÃ¶n.", "Itâ€™s \u201cfine\u201d."))
    assert [m.text for m in fixed.messages] == ["Das ist schön.", "It’s “fine”."]
    good = chat("schön", "It’s “fine” — NÃO!")
    assert once({"kind": "fix_mojibake"}, good) is good


def test_without_ftfy_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ftfy", None)
    module._fix_encoding.cache_clear()
    with pytest.raises(UserError, match=r"chatwright\[data\]"):
        transforms({"kind": "fix_mojibake"})


def test_changes_are_recorded_by_name_in_order():
    row = Conversation((Message.of("system", "s "), *chat("a", "b").messages))
    work = transforms(
        {"kind": "whitespace", "name": "tidy"}, {"kind": "fill", "values": {"x": "y"}}, {"kind": "drop_system"}
    )
    assert work.apply(row, 0)[1] == ("tidy", "drop_system")
    assert RowTransforms().apply(row, 0) == (row, ())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "random_system", "prompts": []}, "at least 1 item"),
        ({"kind": "random_system", "prompts": [" "]}, "blank"),
        ({**SYSTEM, "probability": 1.5}, "less than or equal to 1"),
        ({"kind": "keep_last_turns", "turns": 0}, "greater than or equal to 1"),
        ({"kind": "random_sistem", "prompts": ["a"]}, "did you mean 'random_system'"),
    ],
)
def test_wrong_settings_are_told(settings, words):
    with pytest.raises(ConfigError) as caught:
        transforms(settings)
    assert words in str(caught.value)


def test_identity_json_is_filled():
    rows = load_conversations(shared("data/sft/identity.json")).conversations
    fill = transforms({"kind": "fill", "values": {"name": "Chatwright", "author": "its makers"}})
    made = [fill.apply(row, 0) for row in rows]
    assert sum(bool(names) for _, names in made) > 60
    assert not any("{{" in part.text for row, _ in made for message in row.messages for part in message.parts)
