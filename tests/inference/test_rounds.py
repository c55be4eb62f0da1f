"""The engine's own ids of a reply: what reinforcement trains is what training shows, mask and all."""

from __future__ import annotations

from pathlib import Path

from fakes import ModelThatLearnedByHeart, byte_tokenizer
from test_json_tools import CONTROL, DIALOGUE, HERMES

from chatwright.conversations.schema import Conversation, Message, Part
from chatwright.inference.responder import ChatReply, Responder, make_engine
from chatwright.inference.sampling import SamplingSettings
from chatwright.inference.tools import ToolBox
from chatwright.tasks.task import calculator_reply
from chatwright.templates.template import Template, TemplateSettings, load_template

NANOCHAT = ("bos", "user_start", "user_end", "assistant_start", "assistant_end")
TOOLS = ("python_start", "python_end", "output_start", "output_end")


def reply_to(dialogue: Conversation, template: Template, max_new_tokens: int = 300) -> ChatReply:
    """What a model that learned the dialogue by heart says, the calculator at hand."""
    model = ModelThatLearnedByHeart(template.render(dialogue), template.tokenizer.vocab_size)
    responder = Responder(make_engine(model, template), template, ToolBox())
    question = Conversation(dialogue.messages[:-1], tools=dialogue.tools)
    return responder.replies([question], SamplingSettings(max_new_tokens=max_new_tokens))[0]


def test_a_result_is_forced_and_the_rest_drawn_exactly_as_training_weighs_them(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(tmp_path, [f"<|{name}|>" for name in NANOCHAT + TOOLS])
    template = load_template(tokenizer, TemplateSettings(format="nanochat"))
    call = calculator_reply("12*12", "144", "It is 144.")
    dialogue = Conversation((Message.of("user", "12*12?"), call))
    (example,) = template.render(dialogue)
    (round_,) = reply_to(dialogue, template).rounds
    assert [*round_.prompt, *round_.ids] == example.ids.tolist()
    given = [0.0] * len(round_.prompt) + [0.0 if each is None else 1.0 for each in round_.logprobs]
    assert given == example.weights.tolist()


def test_a_reply_with_json_calls_has_a_round_for_each_turn(tmp_path: Path) -> None:
    template = load_template(byte_tokenizer(tmp_path, CONTROL, HERMES), TemplateSettings(format="jinja"))
    reply = reply_to(DIALOGUE, template)
    assert [part.kind for part in reply.message.parts] == ["thinking", "text", "tool_call", "tool_result", "text"]
    first, second = reply.rounds
    assert list(first.prompt) == template.render_prompt(Conversation(DIALOGUE.messages[:1], tools=DIALOGUE.tools))
    said = Message("assistant", tuple(part for part in reply.message.parts[:4]))
    assert list(second.prompt) == template.render_prompt(
        Conversation((*DIALOGUE.messages[:1], said), tools=DIALOGUE.tools)
    )
    assert all(each is not None for round_ in reply.rounds for each in round_.logprobs)  # nothing was forced
    assert sum(len(round_.ids) for round_ in reply.rounds) == reply.reply_tokens


def test_a_reply_that_is_cut_off_has_no_end(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(tmp_path, [f"<|{name}|>" for name in NANOCHAT + TOOLS])
    template = load_template(tokenizer, TemplateSettings(format="nanochat"))
    dialogue = Conversation((Message.of("user", "Hi"), Message("assistant", (Part("text", "Hello there"),))))
    reply = reply_to(dialogue, template, max_new_tokens=5)
    assert reply.finish_reason == "length"
    assert len(reply.rounds[0].ids) == 5
    assert not set(reply.rounds[0].ids) & set(template.stop_ids)
