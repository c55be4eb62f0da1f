"""Chat in nanochat's format: what the engine ends up with is the training render, token for token."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from fakes import ModelThatLearnedByHeart, byte_tokenizer

from chatwright.conversations.schema import Conversation, Message, Part
from chatwright.errors import ConfigError
from chatwright.inference.chat_session import ChatSession
from chatwright.inference.reply_events import ChatEvent
from chatwright.inference.responder import Responder, make_engine
from chatwright.inference.sampling import SamplingSettings
from chatwright.inference.tools import ToolBox
from chatwright.settings import build
from chatwright.templates.native import NATIVE_FORMATS
from chatwright.templates.template import Template, TemplateSettings, load_template

SETTINGS = SamplingSettings(max_new_tokens=200)
HELLO = Message("assistant", (Part("text", "Grüße, 世界! 👩‍🚀 Wie geht’s?"),))
BERRIES = Message(
    "assistant",
    (
        Part("text", "Let me count. "),
        Part("tool_call", '"strawberry".count("r")'),
        Part("tool_result", "3"),
        Part("text", " There are 3, and half of it is "),
        Part("tool_call", "3/2"),
        Part("tool_result", "1.5"),
        Part("text", "."),
    ),
)
DIALOGUE = Conversation(
    (Message.of("user", "Hallo"), HELLO, Message.of("user", "How many r in strawberry? <|output_start|>"), BERRIES)
)
GREETING = Conversation((Message.of("user", "Again"), HELLO))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Template:
    tokenizer = byte_tokenizer(tmp_path_factory.mktemp("tokenizer"), NATIVE_FORMATS["nanochat"].control)
    return load_template(tokenizer, TemplateSettings(format="nanochat"))


@pytest.fixture
def model(template: Template) -> ModelThatLearnedByHeart:
    examples = [example for conversation in (DIALOGUE, GREETING) for example in template.render(conversation)]
    return ModelThatLearnedByHeart(examples, template.tokenizer.vocab_size + 3)


def session(model: ModelThatLearnedByHeart, template: Template, **options: object) -> ChatSession:
    return ChatSession(make_engine(model, template), template, settings=SETTINGS, **{"toolbox": ToolBox(), **options})


def test_a_dialogue_with_tools_comes_out_as_trained(model: ModelThatLearnedByHeart, template: Template) -> None:
    chat = session(model, template)
    assert chat.ask("Hallo") == HELLO
    assert chat.ask("How many r in strawberry? <|output_start|>") == BERRIES
    assert chat.messages == DIALOGUE.messages
    chat.reset()
    assert chat.messages == () and chat.ask("Again") == HELLO


def test_prompt_and_reply_are_the_ids_of_the_training_render(
    model: ModelThatLearnedByHeart, template: Template
) -> None:
    (example,) = template.render(DIALOGUE)
    prompt = Conversation(DIALOGUE.messages[:3])
    responder = Responder(make_engine(model, template), template, ToolBox())
    turn_ids = template.render_prompt(prompt)
    reply = responder.replies([prompt], SETTINGS)[0]
    assert reply.prompt_tokens + reply.reply_tokens == len(example.ids)
    held = model.seen
    assert held == example.ids[:-1].tolist(), "all but the stop token, which nothing follows"
    forced = [i for i in range(len(turn_ids), len(held)) if example.weights[i] == 0]
    spelled = template.tokenizer.decode(np.array(held)[forced].tolist(), with_control=True)
    assert spelled == "<|output_start|>3<|output_end|><|output_start|>1.5<|output_end|>"


def test_streamed_text_never_splits_a_character(model: ModelThatLearnedByHeart, template: Template) -> None:
    pieces = list(session(model, template).stream("Hallo"))
    assert "".join(pieces) == HELLO.text
    assert len(pieces) > 15 and not any("\ufffd" in piece for piece in pieces)


def test_events_show_calls_and_results_whole_and_in_order(model: ModelThatLearnedByHeart, template: Template) -> None:
    chat = session(model, template)
    chat.ask("Hallo")
    events = list(chat.stream_events("How many r in strawberry? <|output_start|>"))
    merged: list[ChatEvent] = []
    for event in events:
        if merged and merged[-1].kind == event.kind == "text":
            merged[-1] = ChatEvent("text", merged[-1].text + event.text)
        else:
            merged.append(event)
    assert [(event.kind, event.text) for event in merged] == [(part.kind, part.text) for part in BERRIES.parts]
    assert chat.messages == DIALOGUE.messages
    assert "".join(e.text for e in events if e.kind == "text") == BERRIES.text


def test_a_closed_stream_leaves_no_trace(model: ModelThatLearnedByHeart, template: Template) -> None:
    chat = session(model, template)
    stream = chat.stream("Hallo")
    assert next(stream) == "G"
    stream.close()
    assert chat.messages == ()
    assert chat.ask("Hallo") == HELLO


def test_batches_equal_single_replies(model: ModelThatLearnedByHeart, template: Template) -> None:
    prompts = [
        Conversation(DIALOGUE.messages[:3]),
        Conversation(GREETING.messages[:1]),
        Conversation(DIALOGUE.messages[:1]),
    ]
    assert session(model, template).reply_many(prompts) == [BERRIES, HELLO, HELLO]


def test_without_a_toolbox_the_reply_ends_where_it_calls(model: ModelThatLearnedByHeart, template: Template) -> None:
    responder = Responder(make_engine(model, template), template, None)
    prompt = Conversation(DIALOGUE.messages[:3])
    reply = responder.replies([prompt], SETTINGS)[0]
    assert reply.finish_reason == "tool_calls" and reply.message.parts == BERRIES.parts[:2]
    # The caller runs the call and sends the result back as a tool message, as OpenAI's clients do.
    answered = (*prompt.messages, reply.message, Message("tool", (Part("tool_result", "3"),)))
    second = responder.replies([Conversation(answered)], SETTINGS)[0]
    assert second.message.parts == BERRIES.parts[3:5] and second.finish_reason == "tool_calls"


def test_the_number_of_calls_is_bounded(model: ModelThatLearnedByHeart, template: Template) -> None:
    responder = Responder(make_engine(model, template), template, ToolBox(), max_tool_calls=1)
    reply = responder.replies([Conversation(DIALOGUE.messages[:3])], SETTINGS)[0]
    assert reply.finish_reason == "tool_calls" and reply.message.parts == BERRIES.parts[:5]


def test_a_failing_tool_answers_in_words(model: ModelThatLearnedByHeart, template: Template) -> None:
    chat = session(model, template, toolbox=ToolBox({}))
    chat.ask("Hallo")
    reply = chat.ask("How many r in strawberry? <|output_start|>")
    assert reply.parts[2].kind == "tool_result" and reply.parts[2].text.startswith("error: unknown tool 'calculator'")


def test_running_out_of_tokens_is_said(model: ModelThatLearnedByHeart, template: Template) -> None:
    responder = Responder(make_engine(model, template), template, ToolBox())
    settings = SamplingSettings(max_new_tokens=5)
    reply = responder.replies([Conversation(DIALOGUE.messages[:1])], settings)[0]
    assert reply.finish_reason == "length" and reply.reply_tokens == 5 and HELLO.text.startswith(reply.message.text[:2])


def test_a_system_message_stays_after_reset(model: ModelThatLearnedByHeart, template: Template) -> None:
    chat = session(model, template, system="Be kind.")
    chat.ask("Hallo")
    chat.reset()
    assert chat.messages == (Message.of("system", "Be kind."),)


def test_a_chat_goes_on_from_what_its_cache_holds(template: Template) -> None:
    """The second turn computes only what is new, and says what a fresh session says; so after a cancelled one."""
    tokens: list[int] = []

    class Counting(ModelThatLearnedByHeart):
        def forward(self, input_ids: torch.Tensor, *rest: Any, **named: Any) -> Any:
            tokens.append(len(input_ids))
            return super().forward(input_ids, *rest, **named)

    model = Counting(template.render(DIALOGUE), template.tokenizer.vocab_size + 8)
    chat, long = session(model, template), "a" * 60
    first = chat.ask(long)
    for _ in chat.stream_events("stopped after one event"):
        break
    spent = sum(tokens)
    second = chat.ask("and then?")
    prompt = template.render_prompt(Conversation((Message.of("user", long), first, Message.of("user", "and then?"))))
    fresh = session(model, template)
    assert sum(tokens) - spent < len(prompt), "the first turn was not computed again"
    assert fresh.ask(long) == first and fresh.ask("and then?") == second


@pytest.mark.parametrize("stop", ["a", "Berlin", "wie", "世", "berry", ".count", "half of it"])
@pytest.mark.parametrize("bound", [200, 30, 17, 16, 15, 14])
def test_a_stop_text_ends_the_reply_and_is_never_shown(
    model: ModelThatLearnedByHeart, template: Template, stop: str, bound: int
) -> None:
    """Split over tokens or not, on the last token or before, streamed or whole; inside a call it means nothing."""
    settings = SamplingSettings(max_new_tokens=bound, stop=(stop, "never there"))
    responder = Responder(make_engine(model, template), template, ToolBox())
    for end in (1, 3):
        asked = Conversation(DIALOGUE.messages[:end])
        (reply,) = responder.replies([asked], settings)
        (free,) = responder.replies([asked], SamplingSettings(max_new_tokens=bound))
        texts = [part.text for part in free.message.parts if part.kind == "text"]
        if any(stop in text for text in texts):
            assert reply.finish_reason == "stop"
            assert reply.message.text == "".join(texts).partition(stop)[0]
        else:
            assert reply.message == free.message and reply.finish_reason == free.finish_reason
        shown = [event.text for event in responder.events(asked, settings) if event.kind == "text"]
        assert "".join(shown) == reply.message.text


def test_an_empty_stop_text_is_refused() -> None:
    with pytest.raises(ConfigError, match="stop"):
        build(SamplingSettings, {"stop": [""]}, "chat")


def test_a_stream_that_was_left_open_does_no_harm(model: ModelThatLearnedByHeart, template: Template) -> None:
    chat = session(model, template)
    left = chat.stream_events("Hallo")
    next(left)
    assert chat.ask("Hallo") == HELLO
    left.close()
    chat.reset()
    assert chat.ask("Again") == HELLO


def test_a_tool_that_fails_badly_leaves_no_trace(model: ModelThatLearnedByHeart, template: Template) -> None:
    def broken(text: str) -> str:
        raise RuntimeError(text)

    chat = session(model, template, toolbox=ToolBox({"calculator": broken}))
    assert chat.ask("Hallo") == HELLO
    with pytest.raises(RuntimeError):
        chat.ask("How many r in strawberry? <|output_start|>")
    chat.use_tools(ToolBox())
    assert chat.ask("How many r in strawberry? <|output_start|>") == BERRIES
