"""OpenAI messages, nanochat and MiniMind rows: what each becomes, and what a bad row is told."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from chatwright.conversations.converters import convert
from chatwright.conversations.schema import Message, Part
from chatwright.conversations.sources import load_conversations
from chatwright.errors import DataError
from shared_files import shared

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "default": None}}}


def messages_of(*messages: dict, format: str = "messages", **columns: object) -> tuple[Message, ...]:
    return convert({"messages": list(messages), **columns}, format, "hand", 0).messages


def test_plain_messages_with_every_role_name():
    row = [{"role": r, "content": r} for r in ("developer", "user", "assistant", "tool", "function")]
    assert [m.role for m in messages_of(*row)] == ["system", "user", "assistant", "tool", "tool"]
    assert messages_of(*row)[1] == Message.of("user", "user")


def test_list_content_keeps_its_parts():
    content = [{"type": "text", "text": "a"}, {"type": "text", "value": "b"}]
    assert messages_of({"role": "user", "content": content})[0].parts == (Part("text", "a"), Part("text", "b"))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"city": "Zürich", "days": [1, 2]}, '{"city":"Zürich","days":[1,2]}'),
        ('{"city": "Zürich"}', '{"city": "Zürich"}'),
        (None, "{}"),
    ],
)
def test_tool_call_arguments_as_object_string_or_nothing(arguments, text):
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    (message,) = messages_of({"role": "assistant", "content": None, "tool_calls": [call]})
    assert message.parts == (Part("tool_call", text, "weather", "c1"),)


def test_text_comes_before_the_calls_and_a_result_takes_its_name_from_the_call():
    call = {"id": "c1", "function": {"name": "weather", "arguments": "{}"}}
    assistant, tool = messages_of(
        {"role": "assistant", "content": "I look.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    )
    assert assistant.parts == (Part("text", "I look."), Part("tool_call", "{}", "weather", "c1"))
    assert tool == Message("tool", (Part("tool_result", "sunny", "weather", "c1"),))


@pytest.mark.parametrize("tools", [[WEATHER], json.dumps([WEATHER]), [WEATHER["function"]], json.dumps(WEATHER)])
def test_tools_column_in_every_spelling(tools):
    found = convert({"messages": [{"role": "user", "content": "?"}], "tools": tools}, "messages", "hand", 0).tools
    assert found == (WEATHER,), "and JSON's own nulls stay"


def test_reasoning_content_and_think_blocks_become_thinking_parts():
    expected = (Part("thinking", "hm"), Part("text", "4"))
    assert messages_of({"role": "assistant", "reasoning_content": "hm", "content": "4"})[0].parts == expected
    assert messages_of({"role": "assistant", "content": "<think>\nhm\n</think>\n\n4"})[0].parts == expected
    assert messages_of({"role": "assistant", "reasoning_content": "", "content": "4"})[0].parts == expected[1:]
    asked = messages_of({"role": "user", "content": "<think>x</think>y"})[0].parts
    assert asked == (Part("text", "<think>x</think>y"),), "only an assistant thinks"
    late = messages_of({"role": "assistant", "content": "say <think>x</think>"})[0].parts
    assert late == (Part("text", "say <think>x</think>"),)


@pytest.mark.parametrize(
    ("flags", "train", "weight"),
    [({}, None, 1.0), ({"weight": 0}, False, 0.0), ({"weight": 0.5}, None, 0.5), ({"train": True}, True, 1.0)],
)
def test_train_and_weight(flags, train, weight):
    (message,) = messages_of({"role": "assistant", "content": "x", **flags})
    assert (message.train, message.weight) == (train, weight)


def test_system_column_variables_and_the_rest_of_the_row():
    found = convert(
        {
            "messages": [{"role": "user", "content": "?"}],
            "system": "Be brief.",
            "chat_template_kwargs": {"enable_thinking": False},
            "letters": ["A", "B"],
            "note": None,
        },
        "messages",
        "hand",
        7,
    )
    assert found.messages[0] == Message.of("system", "Be brief.")
    assert found.variables == {"enable_thinking": False}
    assert found.extra == {"letters": ["A", "B"]}
    assert (found.source, found.row) == ("hand", 7)


def test_odd_role_orders_are_not_errors_here():
    assert len(messages_of({"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"})) == 2


@pytest.mark.parametrize(
    ("message", "field", "says"),
    [
        ({"role": "bot", "content": "x"}, "messages.0.role", "'bot'"),
        ({"content": "x"}, "messages.0.role", "None"),
        ({"role": "user"}, "messages.0.content", "no content"),
        ({"role": "assistant", "content": None, "tool_calls": []}, "messages.0.content", "no content"),
        ({"role": "user", "content": 12}, "messages.0.content", "int 12"),
        ({"role": "user", "content": {"text": "x"}}, "messages.0.content", "dict"),
        ({"role": "user", "content": []}, "messages.0.content", "empty"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "messages.0.content.0.type", "'image_url'"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages.0.content.0", "no text"),
        ({"role": "user", "content": "\ud800"}, "messages.0.content", "half a character"),
        ({"role": "user", "content": "x", "tool_calls": [{"name": "f"}]}, "messages.0", "tool_call"),
        ({"role": "assistant", "tool_calls": [{"function": {}}]}, "messages.0.tool_calls.0.function.name", "None"),
        (
            {"role": "assistant", "tool_calls": [{"name": "f", "arguments": 3}]},
            "messages.0.tool_calls.0.arguments",
            "3",
        ),
        ({"role": "assistant", "tool_calls": "{"}, "messages.0.tool_calls", "not JSON"),
        ({"role": "user", "content": "x", "train": "yes"}, "messages.0.train", "'yes'"),
        ({"role": "user", "content": "x", "weight": -1}, "messages.0.weight", "-1"),
        ({"role": "user", "content": "x", "weight": float("nan")}, "messages.0.weight", "nan"),
        ({"role": "user", "content": "x", "weight": 0, "train": True}, "messages.0.weight", "'train'"),
        ("hello", "messages.0", "str 'hello'"),
    ],
)
def test_a_bad_message_names_source_row_field_and_value(message, field, says):
    with pytest.raises(DataError) as caught:
        convert({"messages": [message]}, "messages", "hand.jsonl", 41)
    assert (caught.value.source, caught.value.row, caught.value.field) == ("hand.jsonl", 41, field)
    assert says in caught.value.message


@pytest.mark.parametrize(
    ("row", "field", "says"),
    [
        ({"messages": []}, "messages", "empty list"),
        ({"messages": "hi"}, "messages", "not JSON"),
        ({"text": "hi"}, None, "'text'"),
        ({"messages": [{"role": "user", "content": "x"}], "tools": [{}]}, "tools.0", "name"),
        ({"messages": [{"role": "system", "content": "a"}], "system": "b"}, "system", "two system prompts"),
        (3, None, "int 3"),
    ],
)
def test_a_bad_row_names_its_field(row, field, says):
    with pytest.raises(DataError) as caught:
        convert(row, "messages", "hand", 0)
    assert caught.value.field == field
    assert says in caught.value.message


def test_nanochat_parts_and_bare_list():
    content = [
        {"type": "text", "text": "First: "},
        {"type": "python", "text": "12/60"},
        {"type": "python_output", "text": "0.2"},
        {"type": "text", "text": "So 0.2"},
    ]
    row = [{"role": "user", "content": "?"}, {"role": "assistant", "content": content}]
    found = convert(row, "nanochat", "hand", 0)
    assert found.messages == convert({"messages": row}, "nanochat", "hand", 0).messages
    assert found.messages[1].parts == (
        Part("text", "First: "),
        Part("tool_call", "12/60", "python"),
        Part("tool_result", "0.2", "python"),
        Part("text", "So 0.2"),
    )


def test_minimind_tools_stand_on_the_system_message():
    call = {"name": "weather", "arguments": {"city": "北京"}}
    conversations = [
        {"role": "system", "content": "", "tools": json.dumps([WEATHER])},
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": json.dumps([call])},
    ]
    found = convert({"conversations": conversations}, "minimind", "hand", 0)
    assert found.tools == (WEATHER,)
    assert found.messages[2].parts == (Part("thinking", "hm"), Part("tool_call", '{"city":"北京"}', "weather"))
    older = [{"role": "system", "content": "s", "functions": [WEATHER]}, {"role": "user", "content": "?"}]
    assert convert({"conversations": older}, "minimind", "hand", 0).tools == (WEATHER,)


def test_real_reasoning_and_tool_rows():
    loaded = load_conversations(shared("data/sft/reason_tool_use_demo_50.jsonl"))
    assert (loaded.format, loaded.num_rows, len(loaded.conversations)) == ("messages", 50, 50)
    kinds = Counter(part.kind for c in loaded.conversations for m in c.messages for part in m.parts)
    assert kinds == {"text": 50 + 70 + 59, "thinking": 112, "tool_call": 68, "tool_result": 42}
    assert all(tool["type"] == "function" for c in loaded.conversations for tool in c.tools)
    calls = [p for c in loaded.conversations for m in c.messages for p in m.parts if p.kind == "tool_call"]
    assert calls[0] == Part("tool_call", '{"title":"Inception"}', "get_movie_details")
