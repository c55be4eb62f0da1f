"""Preference pairs as tokens: both sides as SFT would render them, the prompt once, cut by the same rules."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatwright.conversations.preference_types import PairConversation, PreferencePair, pair_conversation
from chatwright.conversations.schema import Conversation, Message, Part
from chatwright.templates.overflow import Overflow
from chatwright.templates.pairs import fit_pairs, pair_sides, render_pairs
from chatwright.templates.template import Template, TemplateSettings, TrainOn, load_template
from chatwright.templates.tokenizer import TextTokenizer

WORDS = st.text("abc d.", min_size=1, max_size=30).filter(str.strip)
FORMATS = ["chatml", "nanochat", "minimind", "role_text"]


def user(text: str) -> Message:
    return Message.of("user", text)


def reply(text: str) -> Message:
    return Message.of("assistant", text)


def pair(prompt: tuple[Message, ...], better: str, worse: str, row: int = 0) -> PairConversation:
    made = pair_conversation(PreferencePair(prompt, (reply(better),), (reply(worse),), row=row))
    assert isinstance(made, PairConversation)
    return made


@pytest.fixture(scope="module", params=FORMATS)
def template(request: pytest.FixtureRequest, tiny_model: Path) -> Template:
    return load_template(TextTokenizer.load(tiny_model), TemplateSettings(format=request.param))


@settings(max_examples=25, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=3), WORDS, WORDS)
def test_each_side_is_the_conversation_that_sft_trains(template, asked, better, worse):
    turns = [message for text in asked for message in (user(text), reply("so " + text))][:-1]
    made = render_pairs(template, [pair(tuple(turns), better, worse)])[0]
    prompt = template.render_prompt(Conversation(tuple(turns)))
    assert made.ids[: made.prompt_length].tolist() == prompt, "what the engine would hold"
    assert not made.weights[: made.prompt_length].any()
    for side, text in zip(pair_sides(made), (better, worse), strict=True):
        [whole] = template.render(Conversation((*turns, reply(text))), TrainOn.LAST)
        end = np.flatnonzero(whole.weights)[-1] + 1
        assert side.ids.tolist() == whole.ids[:end].tolist()
        assert side.weights.tolist() == (whole.weights[:end] > 0).tolist()
        assert side.ids[-1] in template.stop_ids


def test_replies_that_call_tools_train_what_the_model_writes(tiny_model):
    template = load_template(TextTokenizer.load(tiny_model), TemplateSettings(format="chatml", tools="add"))
    turns = (user("2+2?"),)
    calls = (
        Message("assistant", (Part("tool_call", "2+2"),)),
        Message("tool", (Part("tool_result", "4"),)),
        reply("Four."),
    )
    made = pair_conversation(PreferencePair(turns, calls, (reply("Five."),)))
    [example] = render_pairs(template, [made])
    better, worse = pair_sides(example)
    [whole] = template.render(Conversation((*turns, *calls)), TrainOn.LAST)
    end = np.flatnonzero(whole.weights)[-1] + 1
    assert better.ids.tolist() == whole.ids[:end].tolist()
    assert better.weights.tolist() == (whole.weights[:end] > 0).tolist()
    gaps = better.weights[example.prompt_length :]
    assert 0 < gaps.sum() < len(gaps), "the tool's output is given"
    assert worse.weights[example.prompt_length :].all()


def test_a_prompt_that_ends_in_a_tools_output_is_told_apart_in_any_template(tiny_model):
    for format in ("chatml", "nanochat"):
        template = load_template(TextTokenizer.load(tiny_model), TemplateSettings(format=format, tools="add"))
        turns = (
            user("2+2?"),
            Message("assistant", (Part("tool_call", "2+2"),)),
            Message("tool", (Part("tool_result", "4"),)),
        )
        [example] = render_pairs(template, [pair(turns, "Four.", "Five.")])
        for side, text in zip(pair_sides(example), ("Four.", "Five."), strict=True):
            [whole] = template.render(Conversation((*turns, reply(text))), TrainOn.LAST)
            assert side.ids.tolist() == whole.ids[: len(side.ids)].tolist()


def test_flags_and_weights_of_messages_are_left_out(tiny_model):
    template = load_template(TextTokenizer.load(tiny_model), TemplateSettings(format="chatml"))
    flagged = Message.of("assistant", "no", train=False, weight=3.0)
    made = pair_conversation(PreferencePair((user("?"),), (flagged,), (reply("yes"),)))
    [example] = render_pairs(template, [made])
    assert set(example.weights[example.prompt_length :].tolist()) == {1.0}


def test_a_reply_that_writes_nothing_leaves_nothing_to_train(tiny_model):
    template = load_template(TextTokenizer.load(tiny_model), TemplateSettings(format="chatml"))
    made = pair_conversation(PreferencePair((user("?"),), (reply("yes"),), (user("what?"),)))
    [example] = render_pairs(template, [made])
    assert example.num_supervised == 0


@settings(max_examples=40, deadline=None)
@given(WORDS, st.integers(1, 60), st.integers(1, 60), st.integers(4, 90))
def test_cut_pairs_fit_and_keep_prompt_and_stop(tiny_model, asked, many, few, most):
    template = load_template(TextTokenizer.load(tiny_model), TemplateSettings(format="chatml"))
    [example] = render_pairs(template, [pair((user(asked),), "good " * many, "worse " * few)])
    fitted = fit_pairs([example], most, Overflow.TRUNCATE, template)
    lost = sum(record.tokens for record in (*fitted.drops, *fitted.cuts))
    assert len(example.ids) == lost + sum(len(each.ids) for each in fitted.kept)
    assert len(fitted.kept) + len(fitted.drops) == 1
    for kept in fitted.kept:
        assert len(kept.ids) <= most
        assert kept.prompt_length == example.prompt_length
        assert np.array_equal(kept.ids[: kept.prompt_length], example.ids[: kept.prompt_length])
        for side, whole in zip(pair_sides(kept), pair_sides(example), strict=True):
            assert side.ids[-1] in template.stop_ids and side.weights[-1] == 1
            assert np.array_equal(side.ids[:-1], whole.ids[: len(side.ids) - 1])


def test_the_longer_reply_is_cut_first(tiny_model):
    template = load_template(TextTokenizer.load(tiny_model), TemplateSettings(format="chatml"))
    [example] = render_pairs(template, [pair((user("?"),), "yes", "no " * 80)])
    [kept] = fit_pairs([example], len(example.ids) - 10, Overflow.TRUNCATE, template).kept
    assert kept.chosen_length == example.chosen_length and len(kept.ids) == len(example.ids) - 10


def test_replies_that_become_the_same_are_dropped(tiny_model):
    template = load_template(TextTokenizer.load(tiny_model), TemplateSettings(format="chatml"))
    same = "the very same words again and again " * 3
    [example] = render_pairs(template, [pair((user("?"),), same + "yes", same + "no")])
    fitted = fit_pairs([example], example.prompt_length + 16, Overflow.TRUNCATE, template)
    assert not fitted.kept and "don't fit" in fitted.drops[0].reason
    dropped = fit_pairs([example], 20, Overflow.DROP, template)
    assert [each.reason for each in dropped.drops] == ["longer than 20 tokens"]
