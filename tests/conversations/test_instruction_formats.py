"""Dolly, self-instruct, question/answer pairs, hh-rlhf as conversations, and bare lists of messages.

The Dolly and ChatAlpaca rows are written by hand in the published schemas (databricks-dolly-15k's card, ChatAlpaca's
README): the real files aren't at hand.
"""

from __future__ import annotations

import pytest

from chatwright.conversations.converters import convert, detect_format
from chatwright.conversations.schema import Message
from chatwright.conversations.sources import load_conversations
from chatwright.errors import DataError
from shared_files import shared


def said(row: object, format: str) -> list[tuple[str, str]]:
    return [(m.role, m.text) for m in convert(row, format, "hand", 0).messages]


def test_dolly_puts_the_context_under_the_instruction():
    row = {"instruction": "When did it begin?", "context": "It began in 2000.", "response": "2000", "category": "qa"}
    assert said(row, "dolly") == [("user", "When did it begin?\n\nIt began in 2000."), ("assistant", "2000")]
    assert said({**row, "context": ""}, "dolly")[0] == ("user", "When did it begin?")
    assert convert(row, "dolly", "hand", 0).extra == {"category": "qa"}


def test_self_instruct_asks_anew_for_each_instance():
    instances = [{"input": "1 2", "output": "3"}, {"input": "", "output": "none"}]
    assert said({"instruction": "Add", "instances": instances}, "self_instruct") == [
        ("user", "Add\n1 2"),
        ("assistant", "3"),
        ("user", "Add"),
        ("assistant", "none"),
    ]


def test_real_self_instruct_rows():
    found = load_conversations(shared("data/sft/self_instruct_seed_tasks.jsonl")).conversations[1]
    assert found.messages[0].text == "What is the relation between the given pairs?\nNight : Day :: Right : Left"
    assert found.messages[1].text == "The relation between the given pairs is that they are opposites."
    assert found.extra["name"] == "antonym_relation"


def test_question_answer_pairs_of_every_name():
    assert said({"question": "?", "answer": "!"}, "question_answer") == [("user", "?"), ("assistant", "!")]
    row = {"id": "niv.1", "system_prompt": "Think.", "question": "?", "response": "!"}
    assert said(row, "question_answer") == [("system", "Think."), ("user", "?"), ("assistant", "!")]
    assert said({**row, "system_prompt": ""}, "question_answer")[0] == ("user", "?")


def test_real_riddles():
    found = load_conversations(shared("data/text/zh/xiehouyu.json")).conversations[1]
    assert [m.text for m in found.messages] == ["做贼碰上劫路人", "坏到一块了；冤家路窄"]


CHAT = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]


def test_chatalpaca_rows_are_bare_lists_of_messages():
    assert detect_format([CHAT * 2], "hand") == "custom_json"
    assert said(CHAT * 2, "custom_json") == [("user", "?"), ("assistant", "!")] * 2
    assert detect_format([{"id": 1, "messages": CHAT}], "hand") == "messages", "the hub's copy has them in a field"


@pytest.mark.parametrize(
    ("row", "field", "says"),
    [
        (CHAT[::-1], "messages.0.role", "message 0 must be the user's, found 'assistant'"),
        ([*CHAT, CHAT[1]], "messages.2.role", "message 2 must be the user's, found 'assistant'"),
        ([{"role": "system", "content": "s"}, *CHAT], "messages.0.role", "format nanochat"),
        (CHAT[:1], None, "two or more"),
        ([CHAT[0], {"role": "assistant", "content": [{"type": "text", "text": "x"}]}], "messages.1.content", "text"),
        ({"messages": CHAT}, None, "bare list"),
    ],
)
def test_custom_json_says_which_message_breaks_the_order(row, field, says):
    with pytest.raises(DataError) as caught:
        convert(row, "custom_json", "hand", 3)
    assert (caught.value.row, caught.value.field) == (3, field)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("format", "row", "field", "says"),
    [
        ("dolly", {"instruction": "a", "response": "b"}, None, "neither 'context' nor 'category'"),
        ("dolly", {"instruction": " ", "context": "", "response": "b"}, "instruction", "nothing asked"),
        ("dolly", {"instruction": "a", "context": ["x"], "response": "b"}, "context", "list ['x']"),
        ("self_instruct", {"instruction": "a", "instances": []}, "instances", "empty list"),
        ("self_instruct", {"instruction": "a", "instances": [{"input": "b"}]}, "instances.0", "'output'"),
        ("question_answer", {"question": "a", "answer": 3}, "answer", "int 3"),
        ("question_answer", {"question": "a"}, None, "'answer'"),
    ],
)
def test_a_bad_row_names_its_field_and_value(format, row, field, says):
    with pytest.raises(DataError) as caught:
        convert(row, format, "hand", 5)
    assert (caught.value.row, caught.value.field) == (5, field)
    assert says in caught.value.message


def test_thinking_in_an_answer_is_read():
    found = convert({"question": "?", "answer": "<think>hm</think>!"}, "question_answer", "hand", 0)
    assert [part.kind for part in found.messages[1].parts] == ["thinking", "text"]
    assert found.messages[0] == Message.of("user", "?")
