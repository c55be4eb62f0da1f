"""OpenAI's fine-tuning files and TRL's tool rows, by hand in the schemas of their documentation."""

from __future__ import annotations

import json

import pytest

from chatwright.conversations.converters import convert, detect_format
from chatwright.conversations.schema import Message, Part
from chatwright.errors import DataError

FUNCTION = {"name": "weather", "parameters": {"type": "object", "properties": {}}}
TOOL = {"type": "function", "function": FUNCTION}


def test_weights_tools_and_parallel_tool_calls():
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    row = {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": "Hm.", "weight": 0},
            {"role": "user", "content": "Well?"},
            {"role": "assistant", "tool_calls": [call], "weight": 1},
            {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
            {"role": "assistant", "content": "Sunny."},
        ],
        "tools": [TOOL],
        "parallel_tool_calls": False,
    }
    assert detect_format([row], "hand") == "messages"
    found = convert(row, "messages", "hand", 0)
    assert [(m.train, m.weight) for m in found.messages if m.role == "assistant"] == [
        (False, 0.0),
        (None, 1.0),
        (None, 1.0),
    ]
    assert found.tools == (TOOL,)
    assert found.messages[5].parts == (Part("tool_result", "sunny", "weather", "c1"),)
    assert found.extra == {"parallel_tool_calls": False}


def test_the_older_function_call_and_functions():
    row = {
        "messages": [
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": '{"a": 1}'}},
            {"role": "function", "name": "weather", "content": "sunny"},
            {"role": "assistant", "content": "Sunny."},
        ],
        "functions": [FUNCTION],
    }
    found = convert(row, "messages", "hand", 0)
    assert found.tools == (TOOL,)
    assert found.messages[1] == Message("assistant", (Part("tool_call", '{"a": 1}', "weather"),))
    assert found.messages[2] == Message("tool", (Part("tool_result", "sunny", "weather"),))
    assert found.extra == {}


def test_a_function_call_without_a_name_is_an_error():
    with pytest.raises(DataError, match="tool's name") as caught:
        convert({"messages": [{"role": "assistant", "function_call": {"arguments": "{}"}}]}, "messages", "hand", 0)
    assert caught.value.field == "messages.0.function_call.name"


@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL])])
def test_trl_prompt_completion_with_tools(tools):
    prompt, completion = [{"role": "user", "content": "?"}], [{"role": "assistant", "content": "!"}]
    found = convert({"prompt": prompt, "completion": completion, "tools": tools}, "prompt_completion", "hand", 0)
    assert found.tools == (TOOL,)
    assert [m.text for m in found.messages] == ["?", "!"]
