"""Which format rows are taken for, and what is said when none fits."""

from __future__ import annotations

import pytest

from chatwright.conversations.converters import CONVERTERS, NAMED_ONLY, convert, detect_format
from chatwright.conversations.sources import load_conversations
from chatwright.errors import DataError
from shared_files import shared

USER = {"role": "user", "content": "?"}
PYTHON = {"role": "assistant", "content": [{"type": "python", "text": "1+1"}]}
ROWS = {
    "messages": {"messages": [USER]},
    "nanochat": [USER],
    "minimind": {"conversations": [USER]},
    "sharegpt": {"conversations": [{"from": "human", "value": "?"}]},
    "prompt_completion": {"prompt": "a", "completion": "b"},
    "alpaca": {"instruction": "a", "output": "b"},
    "dialogue": ["a", "b"],
    "custom_json": [USER, {"role": "assistant", "content": "!"}],
    "oasst": {"prompt": {"text": "?", "role": "prompter", "replies": [{"text": "!", "role": "assistant"}]}},
    "glaive": {"system": "SYSTEM: Help.", "chat": "USER: ?\n\n\nASSISTANT: ! <|endoftext|>"},
    "humaneval": {"prompt": "def f():", "canonical_solution": " 1", "test": "f()", "entry_point": "f"},
    "mbpp": {"text": "Write f.", "code": "def f(): 1", "test_list": ["assert f()"]},
    "dolly": {"instruction": "a", "context": "", "response": "b", "category": "open_qa"},
    "self_instruct": {"instruction": "a", "instances": [{"input": "", "output": "b"}]},
    "multiple_choice": {"question": "?", "choices": ["a", "b"], "answer": 1},
    "gsm8k": {"question": "?", "answer": "1+1=<<1+1=2>>2\n#### 2"},
    "question_answer": {"question": "?", "answer": "!"},
}


@pytest.mark.parametrize("name", [name for name in CONVERTERS if name not in NAMED_ONLY])
def test_each_format_is_recognized(name):
    assert detect_format([ROWS[name]], "hand") == name


def test_python_parts_name_nanochat_wherever_they_stand():
    assert detect_format([{"messages": [USER]}, {"messages": [USER, PYTHON]}], "hand") == "nanochat"


def test_the_format_that_fits_most_rows_wins():
    assert detect_format([ROWS["minimind"], ROWS["sharegpt"], ROWS["sharegpt"]], "hand") == "sharegpt"


def test_bad_first_rows_do_not_mislead():
    assert detect_format([{"messages": [{"role": "bot"}]}, ROWS["messages"]], "hand") == "messages"


def test_nothing_fits_lists_fields_reasons_and_formats():
    with pytest.raises(DataError) as caught:
        detect_format([{"query": "a", "reply": "b"}], "own.jsonl")
    text = str(caught.value)
    assert "'query', 'reply'" in text
    assert all(name in text for name in CONVERTERS)


def test_nothing_fits_says_why_the_nearest_format_refused():
    with pytest.raises(DataError, match=r"messages: field 'messages.0.role': unknown role 'bot'"):
        detect_format([{"messages": [{"role": "bot", "content": "x"}]}], "hand")


def test_no_rows_and_unknown_formats_are_errors():
    with pytest.raises(DataError, match="no rows"):
        detect_format([], "hand")
    with pytest.raises(DataError, match="unknown format 'sharegtp'"):
        convert({}, "sharegtp", "hand", 0)


def test_preference_pairs_are_not_taken_for_conversations():
    with pytest.raises(DataError, match="preference pairs"):
        load_conversations(shared("data/preference/dpo_en_demo.json"))


@pytest.mark.parametrize("fields", [("pos_resp", "neg_resp"), ("response_0", "response_1")])
def test_pairs_of_other_names_are_not_taken_either(fields):
    row = {"prompt": "?", "response": "!", **dict.fromkeys(fields, "!")}
    with pytest.raises(DataError, match=f"preference pairs .*{fields[0]}"):
        detect_format([row], "hand")


def test_labelled_replies_are_taken_only_where_the_format_is_named():
    path = shared("data/preference/kto_en_demo.json")
    with pytest.raises(DataError, match=r"labelled replies[\s\S]*preference: chosen[\s\S]*name the format"):
        load_conversations(path)
    assert len(load_conversations(path, format="messages").conversations) == 300
    assert detect_format([{**ROWS["messages"], "label": "news"}], "hand") == "messages", "a word is no verdict"


def test_hh_rlhf_rows_ask_which_side_is_meant():
    path = shared("data/preference/hh_rlhf_harmless_base_test.jsonl.gz")
    with pytest.raises(DataError, match="preference: chosen"):
        load_conversations(path)


def test_rows_of_text_are_told_of_the_format():
    with pytest.raises(DataError, match="format: text trains on the text as it is"):
        detect_format([{"text": "Once upon a time"}], "hand")
    with pytest.raises(DataError) as caught:
        detect_format([{"body": "Once upon a time"}], "hand")
    assert "format: text" not in caught.value.full_text()


def test_flat_oasst_messages_ask_for_the_name():
    row = {"message_id": "1", "parent_id": None, "text": "?", "role": "prompter"}
    with pytest.raises(DataError, match="oasst_flat"):
        detect_format([row], "hand")


@pytest.mark.parametrize("column", ["choices", "context", "options"])
def test_a_question_that_needs_more_is_no_plain_pair(column):
    with pytest.raises(DataError, match="would lose it"):
        detect_format([{"question": "?", "answer": "!", column: "x"}], "hand")


@pytest.mark.parametrize(
    ("row", "says", "unsaid"),
    [
        ({"query": "a", "reply": "b"}, "columns: {instruction: query, output: reply}", "oasst: field"),
        ({"messages": [{"role": "usr", "content": "x"}]}, "roles: {user: [usr]}", "columns:"),
        ({"conversations": [{"from": "chatbot", "value": "x"}]}, "roles: {assistant: [chatbot]}", "columns:"),
        ({"question;answer": "a;b"}, "the only field holds ';'", "columns:"),
        ({"text": "a; b"}, "format: text", "columns:"),
    ],
)
def test_nothing_fits_says_what_is_most_likely_meant(row, says, unsaid):
    with pytest.raises(DataError) as caught:
        detect_format([row], "own.csv")
    assert says in caught.value.full_text()
    assert unsaid not in caught.value.full_text()


def test_a_file_of_semicolons_is_told_where_its_values_hold_commas(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text("question;answer\na, b;c\n")
    with pytest.raises(DataError, match=r"the header has ';' between its names"):
        load_conversations(path)
    path.write_text("question,answer\na, b;c,d\n")
    with pytest.raises(DataError, match="quote values that hold commas"):
        load_conversations(path)
