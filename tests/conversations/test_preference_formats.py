"""What each preference format becomes.

CValues, PKU-SafeRLHF, UltraFeedback, Orca and TRL rows are written by hand in their published schemas (dataset cards,
TRL's dataset formats page): the real files aren't at hand. hh-rlhf, LLaMA-Factory and KTO have real ones in
`test_preferences`.
"""

from __future__ import annotations

import pytest

from chatwright.conversations.preference_formats import BOTH_UNSAFE, IDENTICAL, NO_SHARED_PROMPT, PARTS_EARLY
from chatwright.conversations.preference_types import Dropped, LabelledReply, PreferencePair
from chatwright.conversations.preferences import PREFERENCE_CONVERTERS, detect_preference_format
from chatwright.conversations.schema import Message
from chatwright.errors import DataError


def convert(row: object, format: str):
    return PREFERENCE_CONVERTERS[format](row, "hand", 7)


def sides(pair: PreferencePair) -> list[list[tuple[str, str]]]:
    return [[(m.role, m.text) for m in side] for side in (pair.prompt, pair.chosen, pair.rejected)]


def message(role: str, content: str) -> dict:
    return {"role": role, "content": content}


def transcript(*turns: str) -> str:
    """`transcript("H?", "A!")`: the first letter is the speaker."""
    return "".join(f"\n\n{'Human' if turn[0] == 'H' else 'Assistant'}: {turn[1:]}" for turn in turns)


ASKED = [("user", "?")]
SIMPLE = [ASKED, [("assistant", "good")], [("assistant", "bad")]]


def test_hh_rlhf_shares_the_longest_run_of_turns():
    begin = ("H1", "A2", "H3")
    pair = convert({"chosen": transcript(*begin, "Agood"), "rejected": transcript(*begin, "Abad")}, "hh_rlhf")
    prompt = [("user", "1"), ("assistant", "2"), ("user", "3")]
    assert sides(pair) == [prompt, [("assistant", "good")], [("assistant", "bad")]]
    assert (pair.source, pair.row, pair.extra) == ("hand", 7, {})


def test_hh_rlhf_keeps_turns_of_the_assistant_in_a_row_as_one_reply():
    longer = {"chosen": transcript("H1", "A2"), "rejected": transcript("H1", "A2", "A3")}
    assert sides(convert(longer, "hh_rlhf"))[1:] == [[("assistant", "2")], [("assistant", "2"), ("assistant", "3")]]
    second = {"chosen": transcript("H1", "A2", "Agood"), "rejected": transcript("H1", "A2", "Abad")}
    assert sides(convert(second, "hh_rlhf"))[0] == [("user", "1")]


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        (("H1", "A2"), ("H1", "A2"), IDENTICAL),
        (("H1", "A2"), ("H0", "A2"), NO_SHARED_PROMPT),
        (("H1", "A2", "H3", "A4"), ("H1", "A0", "H3", "A4"), PARTS_EARLY),
        (("H1", "A2", "H3"), ("H1", "A0"), PARTS_EARLY),
    ],
)
def test_hh_rlhf_drops_what_makes_no_pair(chosen, rejected, reason):
    row = {"chosen": transcript(*chosen), "rejected": transcript(*rejected)}
    assert convert(row, "hh_rlhf") == Dropped(reason)


def test_cvalues():
    row = {"prompt": "?", "pos_resp": "good", "neg_resp": "bad", "pos_type": "拒绝&正向建议", "neg_type": "风险回复"}
    assert sides(convert(row, "cvalues")) == SIMPLE
    assert set(convert(row, "cvalues").extra) == {"pos_type", "neg_type"}


SAFE_ROW = {"prompt": "?", "response_0": "good", "response_1": "bad", "safer_response_id": 0}


@pytest.mark.parametrize(
    ("safe_0", "safe_1", "better", "chosen"),
    [
        (True, False, 0, "good"),
        (True, False, 1, "good"),
        (False, True, 0, "bad"),
        (True, True, 0, "good"),
        (True, True, 1, "bad"),
        (False, False, 0, None),
    ],
)
def test_safe_rlhf_prefers_safe_then_better_and_drops_two_unsafe(safe_0, safe_1, better, chosen):
    flags = {"is_response_0_safe": safe_0, "is_response_1_safe": safe_1, "better_response_id": better}
    found = convert({**SAFE_ROW, **flags}, "safe_rlhf")
    if chosen is None:
        assert found == Dropped(BOTH_UNSAFE)
    else:
        assert found.chosen == (Message.of("assistant", chosen),)
        assert found.prompt == (Message.of("user", "?"),)


def test_llama_factory_in_both_shapes():
    sharegpt = {
        "conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "?"}],
        "chosen": {"from": "gpt", "value": "good"},
        "rejected": {"from": "gpt", "value": "bad"},
        "tools": '[{"name": "f"}]',
    }
    pair = convert(sharegpt, "llama_factory")
    assert sides(pair) == [[("system", "s"), *ASKED], *SIMPLE[1:]]
    assert pair.tools[0]["function"]["name"] == "f"
    alpaca = {"instruction": "Add", "input": "1 2", "chosen": "3", "rejected": "4", "history": [["hi", "ho"]]}
    assert sides(convert(alpaca, "llama_factory")) == [
        [("user", "hi"), ("assistant", "ho"), ("user", "Add\n1 2")],
        [("assistant", "3")],
        [("assistant", "4")],
    ]


GOOD, BAD, USER = message("assistant", "good"), message("assistant", "bad"), message("user", "?")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "?", "chosen": "good", "rejected": "bad"},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": "\n\nHuman: ?\n\nAssistant:", "chosen": "good", "rejected": "bad"},
    ],
)
def test_trl_explicit_and_implicit_prompts(row):
    pair = convert(row, "trl")
    assert sides(pair) == SIMPLE
    assert pair.margin is None
    assert convert({**row, "margin": 2}, "trl").margin == 2.0


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt", "replies"),
    [
        ("The sky is blue.", "The sky is green.", "The sky is", (" blue.", " green.")),
        ("The sky is blue.", "The sky is black.", "The sky is", (" blue.", " black.")),
        ("天空是蓝色的", "天空是绿色的", "天空是", ("蓝色的", "绿色的")),
    ],
)
def test_trl_strings_without_a_prompt_are_cut_between_words(chosen, rejected, prompt, replies):
    pair = convert({"chosen": chosen, "rejected": rejected}, "trl")
    assert [side[0].text for side in (pair.prompt, pair.chosen, pair.rejected)] == [prompt, *replies]


def test_trl_strings_that_share_nothing_or_everything_are_dropped():
    assert convert({"chosen": "sunny", "rejected": "sun"}, "trl") == Dropped(NO_SHARED_PROMPT)
    assert convert({"chosen": "same", "rejected": "same"}, "trl") == Dropped(IDENTICAL)
    assert convert({"prompt": "?", "chosen": "same", "rejected": "same"}, "trl") == Dropped(IDENTICAL)


def test_ultrafeedback():
    row = {
        "prompt": "?",
        "prompt_id": "9",
        "chosen": [USER, GOOD],
        "rejected": [USER, BAD],
        "messages": [USER, GOOD],
        "score_chosen": 8.0,
        "score_rejected": 5.5,
    }
    pair = convert(row, "ultrafeedback")
    assert sides(pair) == SIMPLE
    assert (pair.margin, pair.extra["prompt_id"]) == (2.5, "9")
    with pytest.raises(DataError, match="doesn't hold the row's prompt 'else'"):
        convert({**row, "prompt": "else"}, "ultrafeedback")


def test_orca():
    row = {"system": "Think.", "question": "?", "chosen": "good", "rejected": "bad"}
    assert sides(convert(row, "orca")) == [[("system", "Think."), *ASKED], *SIMPLE[1:]]
    assert sides(convert({**row, "system": ""}, "orca")) == SIMPLE


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, BAD]},
        {"prompt": "?", "completion": "bad"},
        {"prompt": [USER], "completion": [BAD]},
        {"conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "bad"}]},
        {"instruction": "?", "input": "", "output": "bad"},
    ],
)
@pytest.mark.parametrize("name", ["label", "kto_tag"])
def test_labelled_replies_in_every_shape(row, name):
    found = convert({**row, name: False}, "kto")
    assert isinstance(found, LabelledReply)
    assert not found.desirable
    assert [(m.role, m.text) for m in found.conversation.messages] == [*ASKED, ("assistant", "bad")]
    assert convert({**row, name: True}, "kto").desirable


@pytest.mark.parametrize(
    ("format", "row", "field", "says"),
    [
        ("hh_rlhf", {"chosen": "x", "rejected": "y"}, "chosen", "must begin with"),
        ("hh_rlhf", {"chosen": transcript("H1"), "rejected": transcript("H1", "A2")}, None, "no reply"),
        ("hh_rlhf", {"chosen": transcript("H1", "A")}, "chosen", "turn 1 (Assistant) is empty"),
        ("cvalues", {"prompt": "?", "pos_resp": "a"}, None, "'neg_resp'"),
        ("cvalues", {"prompt": "?", "pos_resp": "a", "neg_resp": " "}, None, "rejected reply is empty"),
        ("safe_rlhf", {**SAFE_ROW, "is_response_0_safe": 1}, "is_response_0_safe", "true or false"),
        (
            "safe_rlhf",
            {**SAFE_ROW, "is_response_0_safe": True, "is_response_1_safe": True, "better_response_id": 2},
            "better_response_id",
            "must be 0 or 1, found 2",
        ),
        ("llama_factory", {"conversations": [], "chosen": {}, "rejected": {}}, "chosen", "'from'"),
        ("trl", {"prompt": [message("system", "s")], "chosen": "a", "rejected": "b"}, None, "nobody asks"),
        ("trl", {"instruction": "?", "chosen": "a b", "rejected": "a c"}, "instruction", "TRL's rows ask in 'prompt'"),
        ("trl", {"prompt": "?", "chosen": "a", "rejected": "b", "margin": "x"}, "margin", "must be a number"),
        ("kto", {"messages": [USER, GOOD], "label": "yes"}, "label", "true or false"),
        ("kto", {"messages": [USER], "label": True}, None, "last message isn't"),
        ("kto", {"text": "?", "label": True}, None, "'messages'"),
    ],
)
def test_a_bad_row_names_its_field_and_value(format, row, field, says):
    with pytest.raises(DataError) as caught:
        convert(row, format)
    assert (caught.value.row, caught.value.field) == (7, field)
    assert says in str(caught.value)


ROWS = {
    "hh_rlhf": {"chosen": transcript("H1", "Agood"), "rejected": transcript("H1", "Abad")},
    "llama_factory": {"instruction": "?", "chosen": "good", "rejected": "bad"},
    "safe_rlhf": {**SAFE_ROW, "is_response_0_safe": False, "is_response_1_safe": False, "better_response_id": 0},
    "cvalues": {"prompt": "?", "pos_resp": "good", "neg_resp": "bad"},
    "kto": {"messages": [USER, GOOD], "label": True},
    "ultrafeedback": {"prompt": "?", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
    "orca": {"system": "", "question": "?", "chosen": "good", "rejected": "bad"},
    "trl": {"prompt": "?", "chosen": "good", "rejected": "bad"},
}


@pytest.mark.parametrize("name", PREFERENCE_CONVERTERS)
def test_each_format_is_recognized(name):
    assert detect_preference_format([ROWS[name]], "hand") == name
