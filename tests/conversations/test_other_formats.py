"""ShareGPT, Alpaca, prompt/completion and plain dialogues: hand rows, real rows, bad rows."""

from __future__ import annotations

from collections import Counter

import pytest

from chatwright.conversations.converters import convert
from chatwright.conversations.schema import Message, Part
from chatwright.conversations.sources import load_conversations
from chatwright.errors import DataError
from shared_files import shared


def turn(name: str, value: object) -> dict:
    return {"from": name, "value": value}


def test_sharegpt_with_tools_and_system():
    row = {
        "system": "Be kind.",
        "tools": '[{"name": "f"}]',
        "conversations": [
            turn("human", "?"),
            turn("function_call", '{"name": "f", "arguments": {"ä": 1}}'),
            turn("observation", "ok"),
            turn("gpt", "done"),
        ],
    }
    found = convert(row, "sharegpt", "hand", 0)
    assert found.tools == ({"type": "function", "function": {"name": "f"}},)
    assert found.messages == (
        Message.of("system", "Be kind."),
        Message.of("user", "?"),
        Message("assistant", (Part("tool_call", '{"ä":1}', "f"),)),
        Message("tool", (Part("tool_result", "ok"),)),
        Message.of("assistant", "done"),
    )


def test_sharegpt_call_joins_the_reply_before_it_and_keeps_thinking():
    value = '<think>hm</think>[{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]'
    found = convert({"conversations": [turn("gpt", "Wait."), turn("function_call", value)]}, "sharegpt", "hand", 0)
    kinds = [(p.kind, p.tool) for p in found.messages[0].parts]
    assert kinds == [("text", None), ("thinking", None), ("tool_call", "f"), ("tool_call", "g")]


def test_sharegpt_accepts_role_and_content():
    row = {"conversations": [{"role": "human", "content": "a"}, {"role": "gpt", "content": "b"}]}
    assert [m.text for m in convert(row, "sharegpt", "hand", 0).messages] == ["a", "b"]


def test_alpaca_with_history_and_system():
    row = {
        "instruction": "Add",
        "input": "1 2",
        "output": "3",
        "history": [["hi", "ho"]],
        "system": "s",
        "status": "ok",
    }
    found = convert(row, "alpaca", "hand", 0)
    assert [(m.role, m.text) for m in found.messages] == [
        ("system", "s"),
        ("user", "hi"),
        ("assistant", "ho"),
        ("user", "Add\n1 2"),
        ("assistant", "3"),
    ]
    assert found.extra == {"status": "ok"}
    assert convert({**row, "input": ""}, "alpaca", "hand", 0).messages[3].text == "Add"


def test_prompt_completion_as_strings_and_as_messages():
    found = convert({"prompt": "1+1=", "completion": "2"}, "prompt_completion", "hand", 0)
    assert found.messages == (Message.of("user", "1+1="), Message.of("assistant", "2"))
    prompt = [{"role": r, "content": r} for r in ("user", "assistant", "user")]
    completion = [{"role": "assistant", "content": "end"}]
    found = convert({"prompt": prompt, "completion": completion}, "prompt_completion", "hand", 0)
    assert [m.train for m in found.messages] == [None, False, None, None], "a reply inside the prompt isn't trained"


def test_dialogue_takes_turns():
    expected = [("user", "a"), ("assistant", "b"), ("user", "c")]
    for row in (["a", "b", "c"], {"dialogue": ["a", "b", "c"]}):
        assert [(m.role, m.text) for m in convert(row, "dialogue", "hand", 0).messages] == expected


@pytest.mark.parametrize(
    ("format", "row", "field", "says"),
    [
        ("sharegpt", {"conversations": [turn("robot", "x")]}, "conversations.0.from", "'robot'"),
        ("sharegpt", {"conversations": [turn("gpt", None)]}, "conversations.0.value", "no content"),
        ("sharegpt", {"conversations": [turn("function_call", "f(1)")]}, "conversations.0.value", "'f(1)'"),
        ("sharegpt", {"conversations": [turn("function_call", "7")]}, "conversations.0.value", "int 7"),
        ("sharegpt", {"conversations": []}, "conversations", "empty list"),
        ("alpaca", {"instruction": "x", "output": 3}, "output", "int 3"),
        ("alpaca", {"instruction": "", "input": "", "output": "y"}, "instruction", "both empty"),
        ("alpaca", {"instruction": "x"}, None, "'output'"),
        ("alpaca", {"instruction": "x", "output": "y", "history": [["a"]]}, "history.0", "['a']"),
        ("prompt_completion", {"prompt": 3, "completion": "x"}, "prompt", "int 3"),
        ("prompt_completion", {"prompt": "x"}, None, "'completion'"),
        ("dialogue", ["a", True], "dialogue.1", "bool True"),
        ("dialogue", "a", None, "str 'a'"),
    ],
)
def test_a_bad_row_names_its_field_and_value(format, row, field, says):
    with pytest.raises(DataError) as caught:
        convert(row, format, "hand", 5)
    assert (caught.value.row, caught.value.field) == (5, field)
    assert says in caught.value.message


@pytest.mark.parametrize(
    ("path", "format", "num_rows"),
    [
        ("sft/identity.json", "alpaca", 91),
        ("sft/glaive_toolcall_en_demo.json", "sharegpt", 300),
        ("sft/glaive_toolcall_zh_demo.json", "sharegpt", 300),
        ("sft/fastchat_dummy_conversation.json", "sharegpt", 500),
        ("sft/alpaca_libre_tasks_v1.jsonl", "alpaca", 2375),
        ("sft/alpaca_libre_tasks_v3.jsonl", "alpaca", 1205),
        ("dialogue/chatterbot/german", "dialogue", 113),
    ],
)
def test_real_files_are_read_whole(path, format, num_rows):
    loaded = load_conversations(shared(f"data/{path}"))
    assert (loaded.format, loaded.num_rows, len(loaded.conversations)) == (format, num_rows, num_rows)
    assert len({(c.source, c.row) for c in loaded.conversations}) == num_rows


def test_real_tool_calls_keep_their_roles():
    loaded = load_conversations(shared("data/sft/glaive_toolcall_en_demo.json"))
    kinds = Counter(part.kind for c in loaded.conversations for m in c.messages for part in m.parts)
    assert kinds == {"text": 2 * 746, "tool_call": 211, "tool_result": 211}
    assert loaded.conversations[0].tools[0]["function"]["name"] == "search_recipes"
