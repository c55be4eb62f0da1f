"""Folding and unfolding tool turns: worked cases, and that each undoes the other."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from chatwright.conversations.schema import Message, Part
from chatwright.conversations.sources import load_conversations
from chatwright.conversations.turns import fold_tool_turns, unfold_tool_turns
from shared_files import shared

TEXT, CALL, RESULT = Part("text", "t"), Part("tool_call", "{}", "f", "1"), Part("tool_result", "r", "f", "1")
UNFOLDED = (
    Message.of("user", "?"),
    Message("assistant", (TEXT, CALL, CALL)),
    Message("tool", (RESULT,)),
    Message("tool", (RESULT,)),
    Message("assistant", (TEXT,)),
    Message.of("user", "!"),
)
FOLDED = (
    UNFOLDED[0],
    Message("assistant", (TEXT, CALL, CALL, RESULT, RESULT, TEXT)),
    UNFOLDED[5],
)


def test_the_two_shapes():
    assert fold_tool_turns(UNFOLDED) == FOLDED
    assert unfold_tool_turns(FOLDED) == UNFOLDED


def test_shapes_without_tools_stay():
    plain = (Message.of("user", "?"), Message.of("assistant", "a"), Message.of("assistant", "b"))
    assert fold_tool_turns(plain) == unfold_tool_turns(plain) == plain


def test_a_tool_message_without_an_assistant_stays():
    alone = (Message.of("user", "?"), Message("tool", (RESULT,)), Message("assistant", (TEXT,)))
    assert fold_tool_turns(alone) == alone


def test_replies_with_other_flags_stay_apart():
    messages = (
        Message("assistant", (CALL,), train=False),
        Message("tool", (RESULT,)),
        Message("assistant", (TEXT,), train=True),
    )
    assert fold_tool_turns(messages) == (Message("assistant", (CALL, RESULT), train=False), messages[2])


spoken = st.lists(
    st.builds(Part, st.sampled_from(["text", "thinking", "tool_call"]), st.text(max_size=3)), min_size=1, max_size=3
).map(tuple)
results = st.builds(Part, st.just("tool_result"), st.text(max_size=3))
flags = {"train": st.sampled_from([None, True, False]), "weight": st.sampled_from([1.0, 0.5])}
unfolded_messages = st.lists(
    st.one_of(
        st.just(Message.of("user", "?")),
        st.builds(Message, st.just("assistant"), spoken, **flags),
        st.builds(Message, st.just("tool"), st.tuples(results)),
    ),
    max_size=10,
).map(tuple)


@given(unfolded_messages)
def test_unfold_undoes_fold(messages):
    assert unfold_tool_turns(fold_tool_turns(messages)) == messages


replies = st.tuples(spoken, st.lists(st.one_of(results, st.builds(Part, st.just("text"), st.text(max_size=3))))).map(
    lambda pair: (*pair[0], *pair[1])
)


@given(st.lists(st.builds(Message, st.just("assistant"), replies, **flags), max_size=5))
def test_fold_undoes_unfold(messages):
    turns = [message for reply in messages for message in (Message.of("user", "?"), reply)]
    assert fold_tool_turns(unfold_tool_turns(turns)) == tuple(turns)


def test_real_tool_conversations_come_back():
    for name in ("glaive_toolcall_en_demo.json", "glaive_toolcall_zh_demo.json", "reason_tool_use_demo_50.jsonl"):
        for conversation in load_conversations(shared(f"data/sft/{name}")).conversations:
            folded = fold_tool_turns(conversation.messages)
            assert not any(message.role == "tool" for message in folded)
            assert unfold_tool_turns(folded) == conversation.messages
