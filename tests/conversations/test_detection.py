"""Which format rows are taken for, and what is said when none fits."""

from __future__ import annotations

import pytest

from chatwright.conversations.converters import CONVERTERS, convert, detect_format
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
}


@pytest.mark.parametrize("name", CONVERTERS)
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
        detect_format([{"question": "a", "answer": "b"}], "gsm.jsonl")
    text = str(caught.value)
    assert "'question', 'answer'" in text
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


def test_real_rows_of_no_known_format():
    with pytest.raises(DataError, match="'instances'"):
        load_conversations(shared("data/sft/self_instruct_seed_tasks.jsonl"))
