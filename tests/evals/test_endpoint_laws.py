"""A model measured through HTTP gives what it gives in this process: replies, tools in the loop, letters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import ModelThatLearnedByHeart, byte_tokenizer
from openai_server import ModelServer, Script, next_log_probs, serving
from test_json_tools import CONTROL, DIALOGUE, HERMES, REPLY

from chatwright.conversations.schema import Conversation, Message
from chatwright.evals.endpoint import EndpointSubject, endpoint_subject
from chatwright.evals.endpoint_messages import openai_messages
from chatwright.evals.local import LocalSubject
from chatwright.evals.run import EvalSettings, Session, evaluate_task
from chatwright.evals.selection import select_tasks
from chatwright.evals.subject import Unanswered
from chatwright.inference.responder import ChatReply, Responder, make_engine
from chatwright.inference.sampling import SamplingSettings
from chatwright.inference.tools import ToolBox
from chatwright.models.weights import load_model
from chatwright.templates.template import Template, TemplateSettings, load_template
from chatwright.templates.tokenizer import TextTokenizer

ASKED = [
    Conversation((Message.of("user", "What is two and three?"),)),
    Conversation((Message.of("system", "Be brief."), Message.of("user", "Name a colour."))),
    Conversation((Message.of("user", "A"), Message.of("assistant", "b\n\nc"), Message.of("user", "d"))),
]


@pytest.fixture
def local(tiny_model: Path) -> LocalSubject:
    template = load_template(TextTokenizer.load(tiny_model))
    return LocalSubject("tiny", Responder(make_engine(load_model(tiny_model), template), template, ToolBox()), "tiny")


@pytest.fixture
def script(local: LocalSubject) -> Script:
    return Script(ModelServer(local.engine, local.template).chat, chunked=True)


@pytest.fixture
def subject(script: Script) -> Iterator[EndpointSubject]:
    with serving(script) as url:
        yield endpoint_subject(url, concurrency=3)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_replies_are_those_of_the_local_subject(
    subject: EndpointSubject, local: LocalSubject, script: Script, temperature: float
) -> None:
    settings = [
        SamplingSettings(temperature=temperature, max_new_tokens=12, seed=number, stop=("e",) if number else ())
        for number in range(len(ASKED))
    ]
    found, expected = dict(subject.replies(ASKED, settings)), dict(local.replies(ASKED, settings))
    assert sorted(found) == [0, 1, 2]
    for number, reply in found.items():
        assert replace(reply, reply_tokens=0) == replace(expected[number], reply_tokens=0)
    assert all(("seed" in body) == (temperature > 0) for body in script.seen)
    assert sorted(body.get("stop", []) for body in script.seen) == [[], ["e"], ["e"]]


def test_letters_are_those_of_the_local_subject(subject: EndpointSubject, local: LocalSubject) -> None:
    letters = ["a", "e", "t", "Z"]
    found = dict(subject.choose(ASKED, [letters] * len(ASKED)))
    expected = dict(local.choose(ASKED, [letters] * len(ASKED)))
    listed = 0
    for number, conversation in enumerate(ASKED):
        log_probs = next_log_probs(local.engine.model, local.template.render_prompt(conversation))
        least = log_probs.topk(20).values[-1].item()
        answer, exact = found[number], expected[number]
        assert not isinstance(exact, Unanswered)
        if isinstance(answer, Unanswered):
            assert max(exact) < least
            continue
        for mine, real in zip(answer, exact, strict=True):
            if real >= least:
                listed += 1
                assert mine == pytest.approx(real, abs=1e-5)
            else:  # a bound: above the truth, below all that the server listed
                assert real <= mine < least
    assert listed, "the test must weigh at least one letter"


@pytest.mark.parametrize("task", ["arithmetic", "letter_counting"])
def test_a_whole_task_gives_the_same_scores_and_goes_on(
    subject: EndpointSubject, local: LocalSubject, script: Script, task: str, tmp_path: Path
) -> None:
    (selected,) = select_tasks(task)
    settings = EvalSettings(limit=5, samples=2, max_new_tokens=10)

    def run(one: Any, folder: Path) -> list[Any]:
        session = Session(folder, show_progress=False)
        records = evaluate_task(one, selected, settings, session).records
        return [(record.key, record.prompt, record.score, record.details["reply"]) for record in records]

    assert run(subject, tmp_path / "there") == run(local, tmp_path / "here")
    asked = len(script.seen)
    assert asked == 10 and run(subject, tmp_path / "there") and len(script.seen) == asked, "nothing is asked twice"


@pytest.fixture(params=["tags are tokens", "tags are text"])
def hermes(request: pytest.FixtureRequest, tmp_path: Path) -> Template:
    tags = ["<think>", "</think>", "<tool_call>", "</tool_call>"] if request.param == "tags are tokens" else []
    return load_template(byte_tokenizer(tmp_path, [*CONTROL, *tags], HERMES), TemplateSettings(format="jinja"))


def test_tools_in_the_loop_give_the_reply_of_the_local_loop(hermes: Template) -> None:
    model = ModelThatLearnedByHeart(hermes.render(DIALOGUE), hermes.tokenizer.vocab_size)
    engine = make_engine(model, hermes)  # type: ignore[arg-type]
    asked = Conversation(DIALOGUE.messages[:1], DIALOGUE.tools)
    settings = SamplingSettings(max_new_tokens=300)
    (local,) = Responder(engine, hermes, ToolBox()).replies([asked], settings)
    assert local.message == REPLY
    script = Script(ModelServer(engine, hermes).chat)
    with serving(script) as url:
        ((_, reply),) = endpoint_subject(url, tools=True).replies([Conversation(DIALOGUE.messages[:1])], [settings])
        ((_, without),) = endpoint_subject(url).replies([asked], [settings])
    assert isinstance(reply, ChatReply) and isinstance(without, ChatReply)
    said = [(part.kind, part.text, part.tool) for part in reply.message.parts]
    assert said == [(part.kind, part.text, part.tool) for part in REPLY.parts]
    assert reply.finish_reason == "stop" and reply.reply_tokens == local.reply_tokens
    assert [part.kind for part in without.message.parts] == ["thinking", "text", "tool_call"]
    assert without.finish_reason == "tool_calls" and len(script.seen) == 3


def test_requests_tell_tool_turns_of_either_shape_alike() -> None:
    ask = Message.of("user", "12*12?")
    rows = openai_messages(Conversation((*DIALOGUE.messages, ask)))
    assert [row["role"] for row in rows] == ["user", "assistant", "tool", "assistant", "user"]
    (call,) = rows[1]["tool_calls"]
    assert call["id"] == rows[2]["tool_call_id"] and call["function"]["name"] == "calculator"
    assert rows[2]["content"] == "144" and "Zwölf" not in str(rows)
