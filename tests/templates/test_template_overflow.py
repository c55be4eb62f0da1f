"""Over-long examples: an error, or dropped, cut or split by named rules; never a lost end of turn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from template_families import chat, family_template, native_template, tool_chat
from template_strategies import conversations

from chatwright.conversations.schema import Conversation, Message, Part
from chatwright.errors import DataError
from chatwright.templates.laws import check_laws, trained_spans
from chatwright.templates.overflow import Overflow, fit, truncate
from chatwright.templates.rendered import RenderedExample
from chatwright.templates.template import Template, TrainOn

LONG = chat("q", "one two three four five six seven eight", "again", "nine ten eleven twelve", system="Be kind.")


def text(template: Template, example: RenderedExample) -> str:
    return template.tokenizer.decode(example.ids.tolist(), with_control=True)


def rendered(template: Template, *chats: Conversation) -> list[RenderedExample]:
    numbered = [Conversation(c.messages, tools=c.tools, source="data.jsonl", row=row) for row, c in enumerate(chats)]
    return [example for group in template.render_many(numbered) for example in group]


def test_an_error_names_the_count_and_the_longest_rows() -> None:
    template = native_template("chatml")
    examples = rendered(template, chat("a", "b"), LONG, chat("a", "b " * 200))
    with pytest.raises(DataError, match=r"2 of 3 examples .* row 2: .*row 1: ") as caught:
        fit(examples, 20, Overflow.ERROR, template)
    assert "truncate" in str(caught.value)
    assert fit(examples, 10_000, Overflow.ERROR, template).kept == tuple(examples)


def test_drops_are_listed() -> None:
    template = native_template("chatml")
    examples = rendered(template, chat("a", "b"), LONG)
    fitted = fit(examples, 20, Overflow.DROP, template)
    assert fitted.kept == (examples[0],)
    ((key, tokens, reason),) = [(drop.key, drop.tokens, drop.reason) for drop in fitted.drops]
    assert (key.row, tokens) == (1, len(examples[1].ids)) and "20 tokens" in reason


def test_a_cut_reply_keeps_its_end_of_turn() -> None:
    template = native_template("chatml")
    (example,) = rendered(template, LONG)
    whole = text(template, example)
    for limit in range(2, len(example.ids)):
        cut = truncate(example, limit, template)
        if cut is None:
            assert "six" not in text(template, example)[: limit // 8]
            continue
        assert len(cut.ids) <= limit
        assert cut.ids[-1] in template.stop_ids and cut.weights[-1] > 0
        assert whole.startswith(text(template, cut).removesuffix("<|im_end|>"))
        assert cut.spans[-1].end == len(cut.ids)
        assert [span.start for span in cut.spans] == [0, *[span.end for span in cut.spans[:-1]]]


def test_the_text_of_the_crossing_reply_is_cut() -> None:
    template = native_template("chatml")
    (example,) = rendered(template, LONG)
    cut = truncate(example, len(example.ids) - 4, template)
    assert cut is not None
    *_, last = trained_spans(cut)
    shown = template.tokenizer.decode(cut.ids[slice(*last)].tolist(), with_control=True)
    assert shown.startswith("nine") and shown.endswith("<|im_end|>") and "twelve<" not in shown


def test_never_half_a_call_a_result_a_thought_or_a_character() -> None:
    parts = (
        Part("text", "Let me see. "),
        Part("tool_call", "12/60 + 1000000"),
        Part("tool_result", "0.2 and much more"),
        Part("text", "It is 0.2, 你好🙂🙂"),
    )
    conversation = Conversation((Message.of("user", "What?"), Message("assistant", parts)))
    template = native_template("nanochat")
    (example,) = rendered(template, conversation)
    prompt = len(template.render_prompt(Conversation(conversation.messages[:1])))
    seen = set()
    for limit in range(2, len(example.ids)):
        cut = truncate(example, limit, template)
        if cut is None:
            assert limit <= prompt + 1
            continue
        reply = template.parse_reply(cut.ids[prompt:].tolist()).parts
        kinds = tuple(part.kind for part in reply)
        assert kinds in (("text",), ("text", "tool_call", "tool_result"), ("text", "tool_call", "tool_result", "text"))
        assert all(whole.text.startswith(part.text) for part, whole in zip(reply, parts, strict=False))
        assert "\ufffd" not in "".join(part.text for part in reply)
        if len(kinds) > 1:
            assert reply[1:3] == template.canonical_reply(Message("assistant", parts)).parts[1:3]
        seen.add(kinds)
    assert len(seen) == 3


def test_a_thought_is_never_cut_short() -> None:
    template = family_template("qwen3")
    parts = (Part("thinking", "one two three four five six"), Part("text", "The answer is seven eight nine ten."))
    conversation = Conversation((Message.of("user", "What?"), Message("assistant", parts)))
    (example,) = rendered(template, conversation)
    prompt = len(template.render_prompt(Conversation(conversation.messages[:1])))
    cuts = [truncate(example, limit, template) for limit in range(2, len(example.ids))]
    kept = [cut for cut in cuts if cut is not None]
    assert kept and len(kept) < len(cuts)
    for cut in kept:
        reply = template.parse_reply(cut.ids[prompt:].tolist()).parts
        assert reply[0] == parts[0]


def test_json_calls_are_not_cut() -> None:
    template = family_template("qwen2.5")
    (example,) = rendered(template, tool_chat())
    for limit in range(2, len(example.ids)):
        cut = truncate(example, limit, template)
        if cut is not None:
            shown = text(template, cut)
            tail = shown.partition("<|im_start|>user")[2]  # the system prompt explains the tags
            assert tail.count("<tool_call>") == tail.count("</tool_call>")


def test_mid_training_is_simply_cut() -> None:
    template = native_template("chatml")
    (example,) = template.render(LONG, TrainOn.EVERYTHING)
    cut = truncate(example, 9, template)
    assert cut is not None and cut.ids.tolist() == example.ids[:9].tolist() and cut.num_supervised == 8


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_cut_examples_still_keep_the_laws_of_prompt_and_stop(data: st.DataObject) -> None:
    template = native_template("nanochat", add_tokens=("<think>", "</think>"))
    conversation = data.draw(conversations(tools=True, thinking=True))
    examples = template.render(conversation)
    limit = data.draw(st.integers(2, 80))
    fitted = fit(examples, limit, Overflow.TRUNCATE, template)
    assert len(fitted.kept) + len(fitted.drops) == len(examples)
    for before, after in zip(examples, fitted.kept, strict=False):
        assert len(after.ids) <= limit
        if after is not before:
            assert after.ids[-1] in template.stop_ids and after.weights[-1] > 0
            assert np.array_equal(after.ids[:-1], before.ids[: len(after.ids) - 1])
            assert np.array_equal(after.weights[:-1], before.weights[: len(after.ids) - 1])


@pytest.mark.parametrize("name", ["chatml", "nanochat", "qwen2.5", "qwen3"])
def test_turns_are_split_with_the_system_prompt(name: str) -> None:
    native = name in ("chatml", "nanochat")
    template = native_template(name) if native else family_template(name)
    exchanges = [f"{kind} number {number}" for number in range(6) for kind in ("question", "answer")]
    conversation = Conversation(chat(*exchanges, system="Be kind.").messages, source="data.jsonl", row=3)
    examples = template.render(conversation)
    limit = max(len(example.ids) for example in examples) // 2 + 10
    fitted = fit(examples, limit, Overflow.SPLIT_TURNS, template, [conversation])
    assert not fitted.drops and fitted.cuts
    assert fitted.num_added == len(fitted.kept) - len(examples) >= (0 if name == "qwen3" else 1)
    shown = [text(template, example) for example in fitted.kept]
    assert all(len(example.ids) <= limit for example in fitted.kept)
    assert len({example.key for example in fitted.kept}) == len(fitted.kept)
    assert all("Be kind." in part for part in shown)
    trained = "".join(template.tokenizer.decode(e.ids[e.weights > 0].tolist()) for e in fitted.kept)
    assert [trained.count(f"answer number {number}") for number in range(6)] == [1] * 6
    for example in fitted.kept:  # each is what rendering its own turns gives
        assert example.ids[trained_spans(example)[-1][1] - 1] in template.stop_ids


def test_splitting_keeps_the_mask_policy() -> None:
    template = native_template("chatml")
    (example,) = template.render(LONG, TrainOn.LAST)
    fitted = fit([example], len(example.ids) - 1, Overflow.SPLIT_TURNS, template, [LONG], TrainOn.LAST)
    trained = "".join(template.tokenizer.decode(e.ids[e.weights > 0].tolist()) for e in fitted.kept)
    assert "one" not in trained and trained.startswith("nine")


def test_split_without_the_conversation_falls_back_to_a_cut() -> None:
    template = native_template("chatml")
    examples = rendered(template, LONG)
    fitted = fit(examples, len(examples[0].ids) - 4, Overflow.SPLIT_TURNS, template)
    assert len(fitted.kept) == 1 and "cut" in fitted.cuts[0].reason
    assert all(result.passed for result in check_laws(template, [LONG]))
