"""The five laws hold for every shipped template and every family, over generated conversations.

`CHATWRIGHT_EXAMPLES=300` looks harder than the few seconds of the default run.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from template_families import FAMILIES, WITH_THINKING, WITH_TOOLS, chat, family_template, native_template, tool_chat
from template_strategies import conversations, texts

from chatwright.conversations.schema import Conversation, Message, Part
from chatwright.templates.laws import LAW_NAMES, check_laws, trained_spans
from chatwright.templates.template import Template, TrainOn

EXAMPLES = int(os.environ.get("CHATWRIGHT_EXAMPLES", "5"))
quick = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))


def assert_laws(template: Template, conversation: Conversation) -> None:
    results = check_laws(template, [conversation])
    assert [result.name for result in results] == list(LAW_NAMES)
    assert [result.failures for result in results if not result.passed] == []


@pytest.mark.parametrize("name", ["nanochat", "chatml", "minimind"])
@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
@quick
@given(data=st.data())
def test_native_formats_keep_the_laws(name: str, kind: str, data: st.DataObject) -> None:
    tools = "auto" if name == "nanochat" else "add"
    template = native_template(name, kind, tools=tools, add_tokens=("<think>", "</think>"))
    assert_laws(template, data.draw(conversations(tools=True, thinking=True)))


@pytest.mark.parametrize("name", FAMILIES)
@quick
@given(data=st.data())
def test_families_keep_the_laws_with_their_own_tools(name: str, data: st.DataObject) -> None:
    tools, thinking = name in WITH_TOOLS, name in WITH_THINKING
    # this Mistral template shows the system message in the last prompt only, so system messages are refused there
    shape = conversations(
        tools=tools, thinking=thinking, system=name != "mistral", one_call=name in ("llama3", "mistral")
    )
    assert_laws(family_template(name), data.draw(shape))


@pytest.mark.parametrize("name", FAMILIES)
@quick
@given(data=st.data())
def test_families_keep_the_laws_with_tools_inside_the_turn(name: str, data: st.DataObject) -> None:
    template = family_template(name, tools="add")
    assert_laws(
        template, data.draw(conversations(tools=True, thinking=name in WITH_THINKING, system=name != "mistral"))
    )


@pytest.mark.parametrize("name", ["qwen2.5", "smollm2", "llama3"])
@quick
@given(data=st.data())
def test_the_line_break_can_be_trained_too(name: str, data: st.DataObject) -> None:
    assert_laws(family_template(name, train_line_break_after_end=True), data.draw(conversations()))


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece", "unigram"])
@quick
@given(text=texts(), after=texts(), before=texts())
def test_what_stands_around_a_text_never_changes_its_ids(kind: str, text: str, after: str, before: str) -> None:
    """Law 1's ground: what was generated stays the same tokens when the conversation goes on."""
    template = native_template("chatml", kind)
    short = template.render(chat(before, text))[0]
    long = template.render(chat(before, text, after, text))[0]
    assert long.ids[: len(short.ids)].tolist() == short.ids.tolist()


# The laws notice what they are there for


class Broken(Template):
    """A template with one thing wrong."""

    def __init__(self, inner: Template) -> None:
        self.__dict__.update(inner.__dict__)
        self.inner = inner

    def outline(self, conversation, train_on):  # type: ignore[no-untyped-def]
        return self.inner.outline(conversation, train_on)

    def prompt_outline(self, conversation):  # type: ignore[no-untyped-def]
        return self.inner.prompt_outline(conversation)

    def arranged(self, conversation):  # type: ignore[no-untyped-def]
        return self.inner.arranged(conversation)

    def parse_reply(self, ids):  # type: ignore[no-untyped-def]
        return self.inner.parse_reply(ids)

    def canonical_reply(self, message):  # type: ignore[no-untyped-def]
        return self.inner.canonical_reply(message)

    def expected_bos(self, conversation):  # type: ignore[no-untyped-def]
        return self.inner.expected_bos(conversation)


def changed_pieces(change):  # type: ignore[no-untyped-def]
    class Changed(Broken):
        def outline(self, conversation, train_on):  # type: ignore[no-untyped-def]
            outlines = self.inner.outline(conversation, train_on)
            return [outline._replace(pieces=tuple(change(outline.pieces, self))) for outline in outlines]

    return Changed


def failing(template: Template, conversation: Conversation) -> set[str]:
    return {result.name for result in check_laws(template, [conversation]) if not result.passed}


def nanochat() -> Template:
    return native_template("nanochat")


def test_a_lost_mask_is_noticed() -> None:
    lost = changed_pieces(lambda pieces, _: [piece._replace(weight=1.0) for piece in pieces])
    assert {"prompt", "weights"} <= failing(lost(nanochat()), tool_chat())


def test_a_trained_tool_result_is_noticed() -> None:
    def trained(pieces, template):  # type: ignore[no-untyped-def]
        start = next(i for i, piece in enumerate(pieces) if piece.content == template.grammar.result_start)
        return [piece._replace(weight=1.0) if start <= i < start + 3 else piece for i, piece in enumerate(pieces)]

    assert "weights" in failing(changed_pieces(trained)(nanochat()), tool_chat())


def test_an_untrained_stop_token_is_noticed() -> None:
    def untrained(pieces, template):  # type: ignore[no-untyped-def]
        return [piece._replace(weight=0.0) if piece.content in template.stop_ids else piece for piece in pieces]

    assert {"begin and stop", "weights"} <= failing(changed_pieces(untrained)(nanochat()), chat("Hi", "Hello"))


def test_a_second_begin_of_text_is_noticed() -> None:
    template = family_template("gemma")
    doubled = changed_pieces(lambda pieces, _: [pieces[0], *pieces])
    assert {"prompt", "begin and stop"} <= failing(doubled(template), chat("Hi", "Hello"))


def test_a_prompt_that_serving_would_not_send_is_noticed() -> None:
    def renamed(old: str, new: str):  # type: ignore[no-untyped-def]
        return changed_pieces(lambda pieces, _: [p._replace(content=new) if p.content == old else p for p in pieces])

    template = native_template("chatml")
    assert "parse" in failing(renamed("Hello", "\nHello")(template), chat("Hi", "Hello"))
    assert "prompt" in failing(renamed("assistant\n", "assistant")(template), chat("Hi", "Hello"))


def test_weights_of_one_turn_in_another_are_noticed() -> None:
    shifted = changed_pieces(
        lambda pieces, _: [piece._replace(weight=pieces[i - 1].weight if i else 0.0) for i, piece in enumerate(pieces)]
    )
    assert {"prompt", "weights"} <= failing(shifted(nanochat()), chat("Hi", "Hello", "More", "Yes"))


def test_a_forged_control_token_is_noticed() -> None:
    class Forging(Broken):
        def outline(self, conversation, train_on):  # type: ignore[no-untyped-def]
            return self.inner.outline(conversation, train_on)

    template = Forging(native_template("chatml"))
    template.tokenizer = _Forging(template.tokenizer)  # type: ignore[assignment]
    assert "text" in failing(template, chat("a <|im_end|> b", "Hello"))


class _Forging:
    """A tokenizer that encodes text with its control tokens on, as `encode` of other programs does."""

    def __init__(self, inner) -> None:  # type: ignore[no-untyped-def]
        self.inner = inner

    def __getattr__(self, name: str):  # type: ignore[no-untyped-def]
        return getattr(self.inner, name)

    def encode_placed(self, placed):  # type: ignore[no-untyped-def]
        return [self.inner.encode_whole(text) for text, _ in placed]


def test_per_turn_examples_train_one_turn_each() -> None:
    template = family_template("qwen3")
    thinking = (Part("thinking", "Easy."), Part("text", "4"))
    conversation = Conversation(
        (
            Message.of("user", "2+2?"),
            Message("assistant", thinking),
            Message.of("user", "3+3?"),
            Message("assistant", thinking),
        )
    )
    examples = template.render(conversation)
    assert [example.key.part for example in examples] == [1, 3]
    texts_trained = [
        template.tokenizer.decode(example.ids[start:end].tolist(), with_control=True)
        for example in examples
        for start, end in trained_spans(example)
    ]
    assert texts_trained == ["<think>\nEasy.\n</think>\n\n4<|im_end|>"] * 2
    (everything,) = template.render(conversation, TrainOn.EVERYTHING)
    assert everything.num_supervised == len(everything.ids) - 1 and not everything.weights[0]
    assert np.all(everything.weights[1:] > 0)
