"""One state machine for training masks and decoding: what the loss trains is what the engine draws, token for token.

A model that has learned its training examples by heart replies through the real engine, tools in the loop. Each token
of its replies must stand in the training example at the same place: trained where the engine drew it, given where the
engine forced it or where it came with the next prompt.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from fakes import ModelThatLearnedByHeart
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chatwright.conversations.schema import Conversation, Message, Part
from chatwright.inference.batch import Batch
from chatwright.inference.engine import Engine
from chatwright.inference.requests import Request, StreamedToken
from chatwright.inference.responder import Responder, make_engine
from chatwright.inference.sampling import SamplingSettings
from chatwright.inference.tools import ToolBox
from chatwright.templates.rendered import RenderedExample
from chatwright.templates.template import Template

sys.path.append(str(Path(__file__).resolve().parent.parent / "templates"))
from template_families import WEATHER, family_template, native_template
from template_strategies import ARGUMENTS, texts

EXAMPLES = int(os.environ.get("CHATWRIGHT_EXAMPLES", "5"))
quick = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
SETTINGS = SamplingSettings(max_new_tokens=2000)

IN_TURN = {
    "nanochat": lambda: native_template("nanochat", add_tokens=("<think>", "</think>")),
    "nanochat, sentencepiece": lambda: native_template("nanochat", "sentencepiece"),
    "chatml": lambda: native_template("chatml", tools="add"),
    "minimind": lambda: native_template("minimind", tools="add"),
    "minimind, sentencepiece": lambda: native_template("minimind", "sentencepiece", tools="add"),
    "smollm2": lambda: family_template("smollm2", tools="add"),
    "qwen2.5": lambda: family_template("qwen2.5", tools="add"),
    "llama3": lambda: family_template("llama3", tools="add"),
    "gemma": lambda: family_template("gemma", tools="add"),
}
"""Templates whose calls and results stand in one turn between control tokens."""

JSON_CALLS = ("qwen2.5", "qwen3", "llama3", "mistral")
"""Templates whose calls are JSON and end the turn: Hermes, Llama 3, Mistral."""


@dataclass(slots=True)
class Round:
    """One request to the engine: the prompt it held, and each token of the reply with whether it was drawn."""

    prompt: list[int]
    tokens: list[StreamedToken] = field(default_factory=list)

    @property
    def ids(self) -> list[int]:
        return [token.token_id for token in self.tokens]

    @property
    def drawn(self) -> list[bool]:
        return [token.logprob is not None for token in self.tokens]


class ListeningEngine(Engine):
    """The real engine, which remembers what was asked of it and what it did."""

    rounds: list[Round]

    def open(self) -> Batch:
        batch = super().open()
        submit, step = batch.submit, batch.step
        own: dict[int, Round] = {}

        def listen_to_request(request: Request) -> int:
            number = submit(request)
            own[number] = Round(list(request.prompt))
            self.rounds.append(own[number])
            return number

        def listen_to_tokens() -> list[StreamedToken]:
            tokens = step()
            for token in tokens:
                own[token.row].tokens.append(token)
            return tokens

        batch.submit, batch.step = listen_to_request, listen_to_tokens  # type: ignore[method-assign]
        return batch


class Answers(ToolBox):
    """A toolbox that answers with the results that stand in the data, in order."""

    def __init__(self, message_parts: tuple[Part, ...]) -> None:
        super().__init__()
        object.__setattr__(self, "answers", iter([part.text for part in message_parts if part.kind == "tool_result"]))

    def run(self, tool: str | None, text: str) -> str:
        return next(self.answers)  # type: ignore[attr-defined]


def rounds_of(template: Template, conversation: Conversation, examples: list[RenderedExample]) -> Iterator[list[Round]]:
    """For each assistant message: what the engine does when it replies there."""
    columns = template.tokenizer.vocab_size
    for index, message in enumerate(conversation.messages):
        if message.role != "assistant":
            continue
        model = ModelThatLearnedByHeart(examples, columns)
        engine = make_engine(model, template)  # type: ignore[arg-type]
        engine.__class__ = ListeningEngine
        engine.rounds = []  # type: ignore[attr-defined]
        responder = Responder(engine, template, Answers(message.parts), max_tool_calls=50)
        before = replace(conversation, messages=conversation.messages[:index])
        (reply,) = responder.replies([before], SETTINGS)
        assert reply.finish_reason == "stop"
        yield engine.rounds  # type: ignore[attr-defined]


def call(arguments: str) -> Part:
    return Part("tool_call", arguments, "get_weather")


def result(text: str) -> Part:
    return Part("tool_result", text, "get_weather")


@st.composite
def replies_with_calls(draw: st.DrawFn, think: bool) -> Message:
    """Words, calls with their results (bare code or JSON, empty or full of control strings), and words."""
    parts = [Part("thinking", draw(texts()))] if think and draw(st.booleans()) else []
    for _ in range(draw(st.integers(0, 3))):
        parts += [Part("text", draw(texts()))] if draw(st.booleans()) else []
        code = draw(st.one_of(texts(plain=True), ARGUMENTS))
        parts += [call(code), result(draw(texts()))]
    return Message("assistant", (*parts, Part("text", draw(texts()))))


@st.composite
def dialogues(draw: st.DrawFn, think: bool) -> Conversation:
    messages: list[Message] = []
    for _ in range(draw(st.integers(1, 2))):
        messages += [Message.of("user", draw(texts())), draw(replies_with_calls(think))]
    return Conversation(tuple(messages))


@pytest.mark.parametrize("name", IN_TURN)
@quick
@given(data=st.data())
def test_in_turn_calls_are_decoded_exactly_as_they_are_masked(name: str, data: st.DataObject) -> None:
    template = IN_TURN[name]()
    conversation = data.draw(dialogues(think=name == "nanochat"))
    (example,) = template.render(conversation)
    ids, trained = example.ids.tolist(), (example.weights > 0).tolist()
    seen = np.zeros(len(ids), dtype=bool)
    for (only,) in rounds_of(template, conversation, [example]):
        start, end = len(only.prompt), len(only.prompt) + len(only.ids)
        assert only.prompt == ids[:start]
        assert only.ids == ids[start:end]
        assert only.drawn == trained[start:end], "drawn where trained, forced where given"
        assert only.ids[-1] in template.stop_ids
        seen[start:end] = only.drawn
    assert seen.tolist() == trained, "nothing else is trained"


@pytest.mark.parametrize("name", JSON_CALLS)
@quick
@given(data=st.data())
def test_json_calls_are_decoded_exactly_as_they_are_masked(name: str, data: st.DataObject) -> None:
    template = family_template(name)
    conversation = data.draw(json_dialogues(name))
    examples = template.render(conversation)
    trained_places: set[tuple[tuple[int, ...], int]] = set()
    for rounds in rounds_of(template, conversation, examples):
        for one in rounds:
            start, end = len(one.prompt), len(one.prompt) + len(one.ids)
            assert all(one.drawn), "results come with the next prompt, never as forced tokens"
            taught = [each for each in examples if each.ids[:end].tolist() == [*one.prompt, *one.ids]]
            assert any((each.weights[start:end] > 0).all() for each in taught), "drawn where trained"
            trained_places |= {((*one.prompt, *one.ids)[: place + 1], place) for place in range(start, end)}
        for first, second in pairwise(rounds):
            given_start, given_end = len(first.prompt) + len(first.ids), len(second.prompt)
            taught = [each for each in examples if each.ids[:given_end].tolist() == second.prompt]
            assert taught, "the next prompt holds what training showed there"
            assert not any((each.weights[given_start:given_end] > 0).any() for each in taught), "the result is given"
    places = ((each, int(place)) for each in examples for place in np.flatnonzero(each.weights))
    wanted = {(tuple(each.ids[: place + 1].tolist()), place) for each, place in places}
    assert trained_places == wanted, "nothing else is trained"


def is_kept(text: str) -> bool:
    """Whether a text before a call comes back when a reply is read: Qwen3's template drops line breaks at its start."""
    return bool(text.strip()) and not text.startswith("\n")


@st.composite
def json_dialogues(draw: st.DrawFn, name: str) -> Conversation:
    """One or two questions; an answer calls up to two rounds of tools first. Some templates take a call alone.

    A text before a call is one that comes back as it was (`is_kept`).
    """
    alone = name in ("llama3", "mistral")
    messages: list[Message] = []
    for _ in range(draw(st.integers(1, 2))):
        messages.append(Message.of("user", draw(texts(plain=True))))
        parts: list[Part] = []
        for _ in range(draw(st.integers(0, 2))):
            parts += (
                [Part("text", draw(texts(plain=True).filter(is_kept)))] if not alone and draw(st.booleans()) else []
            )
            parts += [call(draw(ARGUMENTS)), result(draw(texts()))]
        messages.append(Message("assistant", (*parts, Part("text", "It is " + draw(texts(plain=True))))))
    return Conversation(tuple(messages), tools=(WEATHER,))


# The proof can fail


def test_a_trained_result_is_noticed() -> None:
    """If rendering gave a result weight, or decoding forced other tokens, the two would part."""
    template = IN_TURN["nanochat"]()
    parts = (call("1+1"), result("2"), Part("text", "Two"))
    conversation = Conversation((Message.of("user", "1+1?"), Message("assistant", parts)))
    (example,) = template.render(conversation)
    ((only,),) = rounds_of(template, conversation, [example])
    assert not all(only.drawn)
    everything = replace(example, weights=np.ones_like(example.weights))
    assert only.drawn != (everything.weights > 0)[len(only.prompt) :].tolist()
    other = replace(conversation, messages=(conversation.messages[0], Message("assistant", (*parts[:1], result("3")))))
    with pytest.raises(AssertionError):  # the model never saw this result, and doesn't come to an end
        list(rounds_of(template, other, [example]))
