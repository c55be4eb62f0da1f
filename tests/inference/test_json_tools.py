"""Chat through a Hugging Face template with thinking and Hermes calls: results go through the template as new turns."""

from __future__ import annotations

from itertools import pairwise

import pytest
from fakes import ModelThatLearnedByHeart, byte_tokenizer

from chatwright.conversations.schema import Conversation, Message, Part
from chatwright.inference.chat_session import ChatSession
from chatwright.inference.reply_events import ChatEvent
from chatwright.inference.responder import Responder, make_engine
from chatwright.inference.sampling import SamplingSettings
from chatwright.inference.tools import CALCULATOR_DEFINITION, ToolBox
from chatwright.tasks.registry import TASKS
from chatwright.templates.template import Template, TemplateSettings, load_template

HERMES = """\
{%- if tools %}{{- '<|im_start|>system\\n' }}
{%- for tool in tools %}{{- tool | tojson }}{%- endfor %}{{- '<|im_end|>\\n' }}{%- endif %}
{%- for message in messages %}
{%- if message.role == 'assistant' %}
{{- '<|im_start|>assistant\\n' }}
{%- if message.reasoning_content %}{{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}{%- endif %}
{{- message.content }}
{%- for call in message.tool_calls or [] %}
{{- '\\n<tool_call>\\n' + ({'name': call.function.name, 'arguments': call.function.arguments} | tojson) }}
{{- '\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- elif message.role == 'tool' %}
{{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
{%- else %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

SETTINGS = SamplingSettings(max_new_tokens=300)
REPLY = Message(
    "assistant",
    (
        Part("thinking", "Zwölf mal …"),
        Part("text", "Let me see: "),
        Part("tool_call", '{"expression": "12*12"}', "calculator"),
        Part("tool_result", "144", "calculator"),
        Part("text", "It is 144 ✓."),
    ),
)
DIALOGUE = Conversation((Message.of("user", "12*12?"), REPLY), tools=(CALCULATOR_DEFINITION,))
CONTROL = ["<|im_start|>", "<|im_end|>"]


@pytest.fixture(params=["tags are tokens", "tags are text"])
def template(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Template:
    tags = ["<think>", "</think>", "<tool_call>", "</tool_call>"] if request.param == "tags are tokens" else []
    tokenizer = byte_tokenizer(tmp_path_factory.mktemp("tokenizer"), [*CONTROL, *tags], HERMES)
    return load_template(tokenizer, TemplateSettings(format="jinja"))


@pytest.fixture
def model(template: Template) -> ModelThatLearnedByHeart:
    return ModelThatLearnedByHeart(template.render(DIALOGUE), template.tokenizer.vocab_size)


def test_results_go_through_the_template_and_the_reply_goes_on(
    model: ModelThatLearnedByHeart, template: Template
) -> None:
    chat = ChatSession(make_engine(model, template), template, ToolBox(), settings=SETTINGS, tools=DIALOGUE.tools)
    assert chat.ask("12*12?") == REPLY
    assert chat.messages == DIALOGUE.messages


def test_events_follow_the_parts(model: ModelThatLearnedByHeart, template: Template) -> None:
    chat = ChatSession(make_engine(model, template), template, ToolBox(), settings=SETTINGS, tools=DIALOGUE.tools)
    merged: list[ChatEvent] = []
    events = list(chat.stream_events("12*12?"))
    for event in events:
        if merged and merged[-1].kind == event.kind:
            merged[-1] = ChatEvent(event.kind, merged[-1].text + event.text, event.tool)
        else:
            merged.append(event)
    assert [(e.kind, e.text, e.tool) for e in merged] == [(p.kind, p.text, p.tool) for p in chat.messages[-1].parts]
    assert len([e for e in events if e.kind == "thinking"]) > 5, "thinking is shown as it comes"


def test_thinking_that_the_prompt_opened_is_shown_as_thinking(
    template: Template, tmp_path_factory: pytest.TempPathFactory
) -> None:
    always = HERMES.replace("{%- if message.reasoning_content %}", "{%- if true %}")
    always = always.replace("message.reasoning_content +", "(message.reasoning_content or '') +")
    opened = always[: always.rindex("' }}")] + "<think>\\n' }}{%- endif %}"
    tokenizer = byte_tokenizer(tmp_path_factory.mktemp("tokenizer"), list(template.tokenizer.control_ids), opened)
    thinker = load_template(tokenizer, TemplateSettings(format="jinja"))
    thought = Conversation(
        (Message.of("user", "Hm?"), Message("assistant", (Part("thinking", "Oh, a\nquestion"), Part("text", "Yes."))))
    )
    model = ModelThatLearnedByHeart(thinker.render(thought), tokenizer.vocab_size)
    chat = ChatSession(make_engine(model, thinker), thinker, settings=SETTINGS)
    events = list(chat.stream_events("Hm?"))
    shown = {kind: "".join(e.text for e in events if e.kind == kind) for kind in ("thinking", "text")}
    assert shown == {"thinking": "Oh, a\nquestion", "text": "Yes."}
    assert len(events) > 10 and chat.messages == thought.messages


def test_without_a_toolbox_the_call_is_returned(model: ModelThatLearnedByHeart, template: Template) -> None:
    reply = Responder(make_engine(model, template), template).replies(
        [Conversation(DIALOGUE.messages[:1], DIALOGUE.tools)], SETTINGS
    )[0]
    assert reply.finish_reason == "tool_calls" and reply.message.parts[-1] == REPLY.parts[2]


@pytest.mark.parametrize("name", ["letter_counting", "arithmetic", "spelling"])
def test_the_calculator_says_what_the_training_data_says(name: str) -> None:
    task_type = TASKS[name]
    task = task_type(task_type.options_type())
    calls = 0
    for split in ("train", "test"):
        for conversation in task.conversations(split, 300, 0):
            parts = [part for message in conversation.messages for part in message.parts]
            for call, result in pairwise(parts):
                if call.kind == "tool_call":
                    calls += 1
                    assert result.kind == "tool_result"
                    assert ToolBox().run(call.tool, call.text) == result.text
    assert calls or name == "spelling"


@pytest.mark.parametrize("stop", ["expression", "calculator", "mal", "144", "see"])
def test_stop_texts_count_only_where_they_are_visible(
    model: ModelThatLearnedByHeart, template: Template, stop: str
) -> None:
    settings = SETTINGS.model_copy(update={"stop": (stop,)})
    responder = Responder(make_engine(model, template), template, ToolBox())
    asked = Conversation(DIALOGUE.messages[:1], DIALOGUE.tools)
    (reply,) = responder.replies([asked], settings)
    visible = any(stop in part.text for part in REPLY.parts if part.kind == "text")
    assert reply.message.text == REPLY.text.partition(stop)[0] if visible else reply.message == REPLY
    shown = [event.text for event in responder.events(asked, settings) if event.kind == "text"]
    assert "".join(shown).strip() == reply.message.text.strip()


def test_the_bound_is_that_of_the_whole_reply(model: ModelThatLearnedByHeart, template: Template) -> None:
    responder = Responder(make_engine(model, template), template, ToolBox())
    asked = Conversation(DIALOGUE.messages[:1], DIALOGUE.tools)
    whole = responder.replies([asked], SETTINGS)[0]
    for bound in (whole.reply_tokens - 1, whole.reply_tokens - 5, 10):
        reply = responder.replies([asked], SamplingSettings(max_new_tokens=bound))[0]
        assert reply.finish_reason == "length" and reply.reply_tokens <= bound


def test_a_result_too_long_for_the_context_ends_its_own_reply_alone(template: Template) -> None:
    greeting = Conversation((Message.of("user", "Hi"), Message.of("assistant", "Hello.")), DIALOGUE.tools)
    examples = [example for each in (DIALOGUE, greeting) for example in template.render(each)]
    prompt = len(template.render_prompt(Conversation(DIALOGUE.messages[:1], DIALOGUE.tools)))
    model = ModelThatLearnedByHeart(examples, template.tokenizer.vocab_size, max_positions=prompt + 200)
    long = ToolBox({"calculator": lambda text: "4" * 300})
    responder = Responder(make_engine(model, template), template, long)
    asked = [Conversation(each.messages[:1], DIALOGUE.tools) for each in (DIALOGUE, greeting)]
    first, second = responder.replies(asked, SETTINGS)
    assert first.finish_reason == "length" and first.message.parts[-1].text == "4" * 300
    assert second.message == greeting.messages[1] and second.finish_reason == "stop"
