"""Which tokens are trained: the policy, a message's own flags, and its weight."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from template_families import chat, family_template, native_template, tool_chat

from chatwright.conversations.schema import Conversation, Message, Part
from chatwright.errors import TemplateError
from chatwright.templates.laws import trained_spans
from chatwright.templates.rendered import RenderedExample
from chatwright.templates.template import Template, TrainOn

TEMPLATES = [
    native_template("nanochat"),
    native_template("chatml"),
    family_template("qwen2.5"),
    family_template("llama2"),
]


def trained_texts(template: Template, example: RenderedExample) -> list[str]:
    return [template.tokenizer.decode(example.ids[a:b].tolist()).strip() for a, b in trained_spans(example)]


def flagged(*flags: bool | None) -> Conversation:
    conversation = chat("q1", "a1", "q2", "a2", "q3", "a3")
    replies = iter(flags)
    messages = [replace(m, train=next(replies)) if m.role == "assistant" else m for m in conversation.messages]
    return Conversation(tuple(messages))


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda t: t.settings.format + str(t.stop_ids))
@pytest.mark.parametrize(
    ("policy", "flags", "expected"),
    [
        (TrainOn.ASSISTANT, (None, None, None), ["a1", "a2", "a3"]),
        (TrainOn.ASSISTANT, (None, False, True), ["a1", "a3"]),
        (TrainOn.LAST, (None, None, None), ["a3"]),
        (TrainOn.LAST, (True, None, None), ["a1", "a3"]),
        (TrainOn.LAST, (None, None, False), []),
        (TrainOn.FLAGS, (None, True, None), ["a2"]),
        (TrainOn.FLAGS, (None, None, None), []),
    ],
)
def test_policies_and_flags(
    template: Template, policy: TrainOn, flags: tuple[bool | None, ...], expected: list[str]
) -> None:
    (example,) = template.render(flagged(*flags), policy)
    assert trained_texts(template, example) == expected


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda t: t.settings.format + str(t.stop_ids))
def test_everything_trains_all_but_the_first_token(template: Template) -> None:
    (example,) = template.render(flagged(None, None, None), TrainOn.EVERYTHING)
    assert example.weights[0] == 0 and np.all(example.weights[1:] == 1)
    (partly,) = template.render(flagged(None, False, None), TrainOn.EVERYTHING)
    assert 0 < (partly.weights[1:] == 0).sum() <= 6


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda t: t.settings.format + str(t.stop_ids))
def test_a_message_s_weight_is_its_tokens_weight(template: Template) -> None:
    conversation = chat("q1", "a1", "q2", "a2")
    messages = (*conversation.messages[:3], replace(conversation.messages[3], weight=0.25))
    (example,) = template.render(Conversation(messages))
    first, second = trained_spans(example)
    assert set(example.weights[slice(*first)]) == {1.0} and set(example.weights[slice(*second)]) == {0.25}


def test_the_last_turn_holds_all_rounds_of_its_tools() -> None:
    conversation = Conversation(tool_chat().messages[:2], tools=tool_chat().tools)
    (example,) = family_template("qwen2.5").render(conversation, TrainOn.LAST)
    assert len(trained_spans(example)) == 2
    (native,) = native_template("nanochat").render(conversation, TrainOn.LAST)
    assert len(trained_spans(native)) == 2


def test_training_a_user_message_is_refused() -> None:
    messages = (Message.of("user", "Hi", train=True), Message.of("assistant", "Hello"))
    with pytest.raises(TemplateError, match="train: true"):
        native_template("nanochat").render(Conversation(messages))
    native_template("nanochat").render(Conversation(messages), TrainOn.EVERYTHING)


def test_parts_that_only_replies_have_are_refused_elsewhere() -> None:
    messages = (Message("user", (Part("thinking", "Hm"),)), Message.of("assistant", "Hello"))
    for template in TEMPLATES:
        with pytest.raises(TemplateError, match="'thinking'"):
            template.render(Conversation(messages))


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda t: t.settings.format + str(t.stop_ids))
def test_spans_cover_the_tokens_and_name_their_parts(template: Template) -> None:
    conversation = chat("First question", "First answer", "Second question", "Second answer")
    (example,) = template.render(conversation)
    assert [span.start for span in example.spans] == [0, *[span.end for span in example.spans[:-1]]]
    assert example.spans[-1].end == len(example.ids)
    for index, message in enumerate(conversation.messages):
        texts = [
            template.tokenizer.decode(example.ids[s.start : s.end].tolist())
            for s in example.spans
            if s[2:] == (index, 0)
        ]
        assert len(texts) == 1 and message.text in texts[0], (index, texts)


def test_render_many_equals_one_by_one() -> None:
    conversations = [chat("Hi", "Hello"), flagged(None, False, True), chat("你好", "你好！")] * 15
    for template in [*TEMPLATES, family_template("qwen3")]:
        together = template.render_many(conversations)
        for conversation, group in zip(conversations, together, strict=True):
            for one, other in zip(template.render(conversation), group, strict=True):
                assert np.array_equal(one.ids, other.ids) and np.array_equal(one.weights, other.weights)
                assert (one.spans, one.key) == (other.spans, other.key)
                assert one.ids.dtype == np.int32 and one.weights.dtype == np.float32
