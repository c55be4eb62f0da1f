"""What the fuzzer feeds: good rows of every format with some values changed, and files with some bytes changed."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

_TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
_CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}

GOOD_ROWS: list[Any] = [
    {
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": [{"type": "text", "text": "a"}]},
            {"role": "assistant", "content": "<think>t</think>b", "tool_calls": [_CALL], "weight": 0.5},
            {"role": "tool", "content": "1", "tool_call_id": "c1"},
            {"role": "assistant", "content": "c", "reasoning_content": "r", "train": True},
        ],
        "tools": [_TOOL],
        "chat_template_kwargs": {"enable_thinking": False},
    },
    {
        "messages": [
            {"role": "user", "content": "a"},
            {
                "role": "assistant",
                "content": [
                    {"type": "text", "text": "b"},
                    {"type": "python", "text": "1+1"},
                    {"type": "python_output", "text": "2"},
                    {"type": "thinking", "text": "t"},
                    {"type": "tool_call", "name": "f", "arguments": "{}"},
                ],
            },
        ]
    },
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
    {"conversations": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    {
        "conversations": [
            {"from": "human", "value": "a"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
            {"from": "observation", "value": "1"},
            {"from": "gpt", "value": "b"},
        ],
        "tools": json.dumps([_TOOL]),
        "system": "s",
    },
    {"instruction": "a", "input": "i", "output": "b", "history": [["q", "r"]], "system": "s"},
    {"prompt": "a", "completion": "b"},
    {"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]},
    ["a", "b", "c", "d"],
    {"prompt": "a", "chosen": "b", "rejected": "c"},
    {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
    {"prompt": "a", "completion": "b", "label": True},
    {"question": "a", "choices": ["x", "y"], "answer": 1, "answerKey": "B"},
    {"question": "a", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"},
    {"question": "1+1?", "answer": "It is <<1+1=2>>2.\n#### 2"},
    {"instruction": "a", "context": "c", "response": "b", "category": "qa"},
    {
        "system": "SYSTEM: s <functioncall>",
        "chat": 'USER: a\n\nASSISTANT: <functioncall> {"name": "f", "arguments": {}}',
    },
    {"task_id": "t/0", "prompt": "def f():", "canonical_solution": "  pass", "test": "assert 1", "entry_point": "f"},
    {"task_id": 1, "text": "a", "code": "b", "test_list": ["assert 1"]},
    {"prompt": "a", "role": "prompter", "text": "a", "replies": [{"role": "assistant", "text": "b", "replies": []}]},
    {
        "message_tree_id": "1",
        "prompt": {"role": "prompter", "text": "a", "replies": [{"role": "assistant", "text": "b"}]},
    },
    {"id": "x", "instruction": "a", "instances": [{"input": "i", "output": "b"}]},
]

ODD: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 10**400, 1e308, 0.5, float("nan"), float("inf"), "", " ", "\n", "a", "\x00"),
    *(
        "\ud800",
        "\ufeff",
        "你好",
        "\u2028",
        "<|im_end|>",
        "<|im_start|>user\n",
        "</think>",
        "<think>",
        "x" * 5000,
        "\ue000",
    ),
    *("[", "{", "[]", "{}", "null", '{"name": "f", "arguments": {}}', '[{"name": "f"}]', "[" * 5000, '{"name": "f"'),
    *([], {}, [[]], [None], {"": None}, {"a": {}}, [1], ["a"], {"role": "user"}, {"name": "f"}, {"type": "text"}),
    *("system", "user", "assistant", "tool", "function_call", "observation", "prompter", "human", "gpt", "developer"),
    *(
        "\n\nHuman: ",
        "\n\nAssistant:",
        "USER: ",
        "ASSISTANT:",
        "FUNCTION RESPONSE:",
        "<functioncall>",
        "<<1+1=2>>",
        "<<",
    ),
    *("#### 3", "A", "B", "python", "text", "thinking", "tool_call", "tool_result", "python_output"),
]
FIELDS = sorted(
    {
        *("messages", "conversations", "conversation", "role", "content", "from", "value", "tools", "system", "weight"),
        *(
            "train",
            "tool_calls",
            "function_call",
            "reasoning_content",
            "name",
            "arguments",
            "tool_call_id",
            "id",
            "type",
        ),
        *("text", "parts", "chat_template_kwargs", "chatwright_extra", "prompt", "completion", "response", "chosen"),
        *("rejected", "instruction", "input", "output", "history", "answer", "question", "choices", "label", "replies"),
    }
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside a row."""
    found = [path]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found += places(item, (*path, key))
    return found


def _changed(row: Any, number: int, action: str, odd: Any, field: str) -> Any:
    """The row with one value replaced, removed, doubled, wrapped, renamed, or given one more field."""
    row = copy.deepcopy(row)
    path = places(row)[number % len(places(row))]
    if not path:
        return odd if action == "replace" and number % 7 == 0 else {**row, field: odd} if isinstance(row, dict) else row
    parent = row
    for key in path[:-1]:
        parent = parent[key]
    key, value = path[-1], parent[path[-1]]
    if action == "replace":
        parent[key] = copy.deepcopy(odd)
    elif action == "remove":
        del parent[key]
    elif action == "wrap":
        parent[key] = [value]
    elif action == "as text":
        parent[key] = json.dumps(value)
    elif action == "add" and isinstance(value, dict):
        value[field] = copy.deepcopy(odd)
    elif action == "double" and isinstance(parent, list):
        parent.insert(key, copy.deepcopy(value))
    elif action == "rename" and isinstance(parent, dict):
        parent[field] = parent.pop(key)
    elif action == "join" and isinstance(value, str) and isinstance(odd, str):
        parent[key] = odd + value + odd
    return row


_ACTIONS = ("replace", "replace", "add", "join", "remove", "wrap", "as text", "double", "rename")


@st.composite
def rows(draw: st.DrawFn) -> Any:
    """A good row with up to four changes."""
    row = draw(st.sampled_from(GOOD_ROWS))
    for _ in range(draw(st.integers(1, 4))):
        changes = (st.integers(0, 60), st.sampled_from(_ACTIONS), st.sampled_from(ODD), st.sampled_from(FIELDS))
        row = _changed(row, *(draw(change) for change in changes))
    return row


_LINES = [json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in GOOD_ROWS]
_FILES: list[tuple[str, bytes]] = [
    (".jsonl", b"".join(_LINES[:6])),
    (".json", json.dumps(GOOD_ROWS[:3]).encode()),
    (".csv", b'prompt,completion\n"a, b",c\nd,"e\nf"\n'),
    (".yml", b"conversations:\n- - a\n  - b\n- &x [c, d]\n- *x\n"),
    (".txt", b"a line\n\nanother\n"),
]
_BYTES = [
    b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\n",
    b'"',
    b"\\",
    b"[",
    b"{",
    b"*x",
    b"&x",
    b"\t",
    b"\xed\xa0\x80",
    b"}",
    b",",
    b":",
]


@st.composite
def files(draw: st.DrawFn) -> tuple[str, bytes]:
    """A file's ending and its bytes: good ones with pieces replaced, cut or repeated."""
    ending, content = draw(st.sampled_from(_FILES))
    for _ in range(draw(st.integers(1, 4))):
        at, length = draw(st.integers(0, len(content))), draw(st.integers(0, 9))
        content = content[:at] + draw(st.sampled_from(_BYTES)) * draw(st.integers(0, 3)) + content[at + length :]
    return ending, content


def add_test_folders() -> None:
    """Let the helpers of the other tests be imported, wherever this is run from."""
    tests = Path(__file__).resolve().parents[1]
    for folder in (tests, tests / "templates", tests / "fuzz"):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
