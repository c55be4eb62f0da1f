"""Glaive's function calling: raw rows by hand in the published schema (its card), ShareGPT rows from real files."""

from __future__ import annotations

from collections import Counter

import pytest

from chatwright.conversations.converters import convert
from chatwright.conversations.schema import Message, Part
from chatwright.conversations.sources import load_conversations, read_rows
from chatwright.errors import DataError
from shared_files import shared

SYSTEM = """SYSTEM: You are a helpful assistant with access to the following functions. Use them if required -
{
    "name": "get_price",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}
}
{"name": "get_time", "parameters": {}}
"""
CHAT = """USER: Price in "Zürich"?


ASSISTANT: Look. <functioncall> {"name": "get_price", "arguments": '{"city": "Zürich's \\"old town\\""}'} <|endoftext|>


FUNCTION RESPONSE: {"price": 3}


ASSISTANT: It is 3.

NOTE: prices change. <|endoftext|>


USER: Time?


ASSISTANT: <functioncall> {"name": "get_time", "arguments": {}} <|endoftext|>


FUNCTION RESPONSE: noon


ASSISTANT: Noon. <|endoftext|>

"""


def test_a_raw_chat_with_calls_and_results():
    found = convert({"system": SYSTEM, "chat": CHAT}, "glaive", "hand", 0)
    assert [tool["function"]["name"] for tool in found.tools] == ["get_price", "get_time"]
    system = "You are a helpful assistant with access to the following functions. Use them if required"
    assert found.messages == (
        Message.of("system", system),
        Message.of("user", 'Price in "Zürich"?'),
        Message(
            "assistant",
            (
                Part("text", "Look."),
                Part("tool_call", '{"city": "Zürich\'s \\"old town\\""}', "get_price"),
            ),
        ),
        Message("tool", (Part("tool_result", '{"price": 3}'),)),
        Message.of("assistant", "It is 3.\n\nNOTE: prices change."),
        Message.of("user", "Time?"),
        Message("assistant", (Part("tool_call", "{}", "get_time"),)),
        Message("tool", (Part("tool_result", "noon"),)),
        Message.of("assistant", "Noon."),
    )


def test_a_raw_chat_without_functions():
    row = {"system": "SYSTEM: You are a helpful assistant, with no access to external functions.", "chat": "USER: Hi"}
    found = convert(row, "glaive", "hand", 0)
    assert found.tools == ()
    assert found.messages[0].text == "You are a helpful assistant, with no access to external functions."
    assert found.messages[1:] == (Message.of("user", "Hi"),)


@pytest.mark.parametrize(
    ("row", "field", "says"),
    [
        ({"system": SYSTEM, "chat": "Hello"}, "chat", "must begin with 'USER:'"),
        ({"system": "SYSTEM: x {oops", "chat": CHAT}, "system", "function definition that is not JSON"),
        ({"system": "", "chat": "ASSISTANT: <functioncall> f(1)"}, "chat", "not JSON"),
        ({"chat": """ASSISTANT: <functioncall> {"name": "f", "arguments": '{"a": 1'}"""}, "chat", "arguments are not"),
        ({"system": SYSTEM}, None, "'chat'"),
    ],
)
def test_a_bad_row_names_its_field_and_value(row, field, says):
    with pytest.raises(DataError) as caught:
        convert(row, "glaive", "hand", 5)
    assert (caught.value.row, caught.value.field) == (5, field)
    assert says in caught.value.message


@pytest.mark.parametrize(("language", "calls", "results"), [("en", 211, 211), ("zh", 216, 218)])
def test_every_call_and_result_of_the_real_sharegpt_files_is_kept(language, calls, results):
    path = shared(f"data/sft/glaive_toolcall_{language}_demo.json")
    loaded = load_conversations(path)
    assert (loaded.format, loaded.num_rows, len(loaded.conversations)) == ("sharegpt", 300, 300)
    kinds = Counter(part.kind for c in loaded.conversations for m in c.messages for part in m.parts)
    assert (kinds["tool_call"], kinds["tool_result"]) == (calls, results)
    for row, found in zip(read_rows(path), loaded.conversations, strict=True):
        turns = Counter(turn["from"] for turn in row["conversations"])
        parts = Counter(part.kind for m in found.messages for part in m.parts)
        assert (parts["tool_call"], parts["tool_result"]) == (turns["function_call"], turns["observation"])
        assert bool(found.tools) == (row["tools"] != "[]")
