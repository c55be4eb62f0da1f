"""Loading preference data: real files whole, rows dropped and skipped with counted reasons."""

from __future__ import annotations

from collections import Counter

import pytest

from chatwright.conversations.preference_formats import BOTH_UNSAFE, IDENTICAL
from chatwright.conversations.preference_types import UNWANTED, Dropped, chosen_conversation
from chatwright.conversations.preferences import load_preferences
from chatwright.errors import DataError
from shared_files import shared

PAIR = {"prompt": "?", "chosen": "good", "rejected": "bad"}


@pytest.mark.parametrize(
    ("name", "format", "num_rows", "skipped"),
    [
        ("dpo_en_demo.json", "llama_factory", 300, {}),
        ("dpo_zh_demo.json", "llama_factory", 300, {}),
        ("hh_rlhf_harmless_base_test.jsonl.gz", "hh_rlhf", 2312, {"chosen": 4}),
    ],
)
def test_every_real_pair_converts_or_is_counted(name, format, num_rows, skipped):
    loaded = load_preferences(shared(f"data/preference/{name}"), on_bad_row="skip")
    assert (loaded.format, loaded.num_rows, loaded.skip_counts) == (format, num_rows, skipped)
    assert len(loaded.pairs) == num_rows - sum(skipped.values())
    assert (loaded.labelled, loaded.dropped) == ([], ())
    assert len({(pair.source, pair.row) for pair in loaded.pairs}) == len(loaded.pairs)
    for pair in loaded.pairs:
        assert pair.prompt[-1].role == "user"
        assert pair.chosen != pair.rejected
        assert all(message.role == "assistant" for message in (*pair.chosen, *pair.rejected))


def test_real_hh_rlhf_transcripts_are_kept_word_for_word():
    from chatwright.conversations.sources import read_rows

    path = shared("data/preference/hh_rlhf_harmless_base_test.jsonl.gz")
    names = {"user": "Human", "assistant": "Assistant"}
    rows = list(read_rows(path))
    for pair in load_preferences(path, on_bad_row="skip").pairs:
        for side in ("chosen", "rejected"):
            turns = (*pair.prompt, *getattr(pair, side))
            again = "".join(f"\n\n{names[m.role]}: {m.text}" for m in turns)
            assert again.split() == rows[pair.row][side].split()


def test_real_labelled_replies():
    loaded = load_preferences(shared("data/preference/kto_en_demo.json"))
    assert (loaded.format, loaded.num_rows, loaded.pairs) == ("kto", 300, [])
    assert Counter(reply.desirable for reply in loaded.labelled) == {True: 150, False: 150}
    assert all("label" not in reply.conversation.extra for reply in loaded.labelled)


def test_dropped_and_skipped_rows_are_counted_apart():
    rows = [PAIR, {**PAIR, "rejected": "good"}, {**PAIR, "chosen": 3}, {**PAIR, "rejected": "good"}]
    with pytest.raises(DataError, match="row 2, field 'chosen'"):
        load_preferences(rows)
    loaded = load_preferences(rows, on_bad_row="skip")
    assert (len(loaded.pairs), loaded.num_rows) == (1, 4)
    assert loaded.skip_counts == {"chosen": 1}
    assert [(row.row, row.reason) for row in loaded.dropped] == [(1, IDENTICAL), (3, IDENTICAL)]


def test_nothing_left_is_an_error():
    unsafe = {
        "prompt": "?",
        "response_0": "a",
        "response_1": "b",
        "is_response_0_safe": False,
        "is_response_1_safe": False,
    }
    with pytest.raises(DataError, match=f"none of 2 rows makes a pair; the first .*{BOTH_UNSAFE}"):
        load_preferences([unsafe, unsafe])


def test_other_rows_and_unknown_formats_are_refused():
    with pytest.raises(DataError, match=r"no known preference format[\s\S]*cvalues: .*'pos_resp'"):
        load_preferences([{"prompt": "?", "completion": "!"}])
    with pytest.raises(DataError, match="unknown preference format 'dpo'"):
        load_preferences([PAIR], format="dpo")
    with pytest.raises(DataError, match="no rows"):
        load_preferences([])


def test_conversations_are_told_what_they_lack():
    with pytest.raises(
        DataError, match=r"^memory: these rows have no second reply: .* a rejected reply[\s\S]*stage: sft"
    ):
        load_preferences([{"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]}])
    with pytest.raises(DataError, match=r"^memory: no known preference format"):
        load_preferences([{"a": 1}])


def test_a_line_that_is_not_json_stops_or_is_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "?", "chosen": "good", "rejected": "bad"}\n{oops\n')
    with pytest.raises(DataError, match="line 2 is not JSON"):
        load_preferences(path)
    assert load_preferences(path, on_bad_row="skip").skip_counts == {"line": 1}


@pytest.mark.parametrize(
    "path",
    [
        "sft/identity.json",
        "sft/glaive_toolcall_en_demo.json",
        "sft/reason_tool_use_demo_50.jsonl",
        "sft/self_instruct_seed_tasks.jsonl",
        "gsm8k/test.jsonl",
        "humaneval/HumanEval.jsonl.gz",
        "dialogue/chatterbot/german",
    ],
)
def test_conversations_are_not_taken_for_preferences(path):
    with pytest.raises(DataError, match="no known preference format"):
        load_preferences(shared(f"data/{path}"))


def test_the_chosen_side_as_a_conversation():
    loaded = load_preferences([{**PAIR, "id": 7}])
    made = chosen_conversation(loaded.pairs[0])
    assert [(m.role, m.text) for m in made.messages] == [("user", "?"), ("assistant", "good")]
    assert (made.source, made.row, made.extra) == ("memory", 0, {"id": 7})
    replies = [{"prompt": "?", "completion": "!", "label": wanted} for wanted in (True, False)]
    found = [chosen_conversation(reply) for reply in load_preferences(replies).labelled]
    assert found[0].messages[-1].text == "!" and found[1] == Dropped(UNWANTED)
    assert chosen_conversation(Dropped(IDENTICAL)) == Dropped(IDENTICAL)


def test_real_chosen_transcripts_as_conversations():
    loaded = load_preferences(shared("data/preference/hh_rlhf_harmless_base_test.jsonl.gz"), on_bad_row="skip")
    first = chosen_conversation(loaded.pairs[0])
    assert [m.role for m in first.messages] == ["user", "assistant"] * 3
    assert first.messages[2].text == "yep"
    assert first.extra == {}, "the rejected half isn't carried along"
