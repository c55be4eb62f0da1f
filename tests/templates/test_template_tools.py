"""Tool calls: the one state machine, the JSON grammars, and what comes back from a reply's ids."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from template_families import WEATHER, WITH_TOOLS, chat, family_template, native_template, tool_chat
from template_strategies import CONTROL_STRINGS

from chatwright.conversations.schema import Conversation, Message, Part
from chatwright.errors import ConfigError, TemplateError
from chatwright.settings import build
from chatwright.templates.json_grammars import JSON_GRAMMARS, read_hermes, read_llama, read_mistral
from chatwright.templates.template import Template, TemplateSettings, load_template
from chatwright.templates.tool_grammars import Mode


def nanochat() -> Template:
    return native_template("nanochat")


def call(code: str, tool: str | None = None) -> Part:
    return Part("tool_call", code, tool)


def result(text: str) -> Part:
    return Part("tool_result", text)


def reply(*parts: Part | str) -> Message:
    return Message("assistant", tuple(Part("text", part) if isinstance(part, str) else part for part in parts))


def reply_ids(template: Template, message: Message, question: str = "What is 12/60?") -> list[int]:
    before = Conversation((Message.of("user", question),))
    whole = Conversation((*before.messages, message))
    return template.render(whole)[0].ids.tolist()[len(template.render_prompt(before)) :]


# The mask table's worked examples


def test_the_calculator_example_is_masked_as_in_the_table() -> None:
    template = nanochat()
    conversation = Conversation(
        (Message.of("user", "What is 12/60?"), reply(call("12/60", "python"), result("0.2"), "The answer is 0.2"))
    )
    (example,) = template.render(conversation)
    trained = ""
    for index, weight in zip(example.ids.tolist(), example.weights.tolist(), strict=True):
        text = template.tokenizer.token_text(index)
        trained += text if weight else ("" if trained.endswith("·") else "·")
    assert trained == "·<|python_start|>12/60<|python_end|>·The answer is 0.2<|assistant_end|>"
    given_text = template.tokenizer.decode(example.ids[example.weights == 0].tolist(), with_control=True)
    assert given_text == (
        "<|bos|><|user_start|>What is 12/60?<|user_end|><|assistant_start|><|output_start|>0.2<|output_end|>"
    )


@pytest.mark.parametrize("name", ["chatml", "minimind"])
def test_headers_and_glue_are_given_the_end_of_turn_is_trained(name: str) -> None:
    template = native_template(name)
    start, end = ("<s>", "</s>") if name == "minimind" else ("<|im_start|>", "<|im_end|>")
    (example,) = template.render(chat("Hi", "Hello", system="Be kind."))
    decode = template.tokenizer.decode
    assert decode(example.ids[example.weights > 0].tolist(), with_control=True) == f"Hello{end}"
    assert decode(example.ids.tolist(), with_control=True) == (
        f"{start}system\nBe kind.{end}\n{start}user\nHi{end}\n{start}assistant\nHello{end}\n"
    )


# The state machine


def test_events_and_modes_follow_the_tokens() -> None:
    template = nanochat()
    grammar = template.grammar
    assert grammar is not None
    state = grammar.start()
    code = template.tokenizer.encode_text("12/60")
    assert state.feed(grammar.call_start) is None and state.mode is Mode.CALL
    assert [state.feed(index) for index in code] == [None] * len(code)
    event = state.feed(grammar.call_end)
    assert event is not None and (event.kind, list(event.code_ids)) == ("call", code)
    forced = state.forced_result("0.2")
    assert forced == [grammar.result_start, *template.tokenizer.encode_text("0.2"), grammar.result_end]
    assert [state.feed(index) for index in forced] == [None] * len(forced)
    assert state.mode is Mode.TEXT and state.given
    state.feed(code[0])
    assert not state.given


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_the_state_machine_survives_any_tokens(data: st.DataObject) -> None:
    template = nanochat()
    grammar = template.grammar
    assert grammar is not None
    roles = list(grammar.token_ids().values())
    ids = data.draw(st.lists(st.sampled_from([*roles, 300, 301, template.stop_ids[-1]]), max_size=12))
    mask = grammar.given_mask(ids)
    assert len(mask) == len(ids)
    assert any(mask) == (grammar.result_start in ids)
    message = template.parse_reply(ids)
    assert all(part.kind in ("text", "tool_call", "tool_result") for part in message.parts)
    # what a reply says doesn't change by parsing a longer and longer beginning of it
    for end in range(len(ids)):
        template.parse_reply(ids[:end])


def test_forced_results_never_hold_control_tokens() -> None:
    template = nanochat()
    assert template.grammar is not None
    control = set(template.tokenizer.control_names)
    for text in CONTROL_STRINGS:
        assert control.isdisjoint(template.grammar.start().forced_result(text)[1:-1])


# Replies


def test_a_reply_is_read_up_to_its_stop_token() -> None:
    template = nanochat()
    ids = reply_ids(template, reply("So: ", call("12/60"), result("0.2"), " is it"))
    extra = template.tokenizer.encode_text("never read")
    assert template.parse_reply([*ids, *extra]).parts == (
        Part("text", "So: "),
        call("12/60"),
        result("0.2"),
        Part("text", " is it"),
    )


def test_an_unfinished_call_is_text() -> None:
    template = nanochat()
    ids = reply_ids(template, reply("So: ", call("12/60")))
    assert template.grammar is not None
    cut = ids[: ids.index(template.grammar.call_end)]
    assert template.parse_reply(cut).parts == (Part("text", "So: 12/60"),)


def test_named_calls_keep_their_name_in_turn() -> None:
    template = nanochat()
    message = reply(call('{"city": "Paris"}', "get_weather"), result("rain"), "Rain.")
    assert template.parse_reply(reply_ids(template, message)).parts == message.parts
    bare = reply(call("12/60", "python"))
    assert template.parse_reply(reply_ids(template, bare)).parts == (call("12/60"),)


def test_bare_code_becomes_one_argument_in_json_grammars() -> None:
    template = family_template("qwen2.5")
    message = reply(call("12/60"))
    assert template.parse_reply(reply_ids(template, message)).parts == (call('{"expression": "12/60"}', "calculator"),)


def test_json_that_a_model_garbles_stays_text() -> None:
    template = family_template("qwen2.5")
    control, encode = template.tokenizer.control_ids, template.tokenizer.encode_text
    for body in ['{"name": "x", "arguments": ', "[1]", '{"name": 1, "arguments": {}}', "", '{"name": "x"}']:
        ids = [*encode("Look: "), control["<tool_call>"], *encode(body), control["</tool_call>"]]
        (part,) = template.parse_reply(ids).parts
        assert part.kind == "text" and part.text.startswith("Look: ")


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_tags_in_words_are_words_where_tags_are_tokens(name: str) -> None:
    template = family_template(name)
    text = 'I write <tool_call>\n{"name": "x", "arguments": {}}\n</tool_call> and [TOOL_CALLS] [{"name": 1}] here'
    assert template.parse_reply(reply_ids(template, reply(text))).parts == (Part("text", text),)


def test_readers_by_themselves() -> None:
    plain = str  # tags are text
    hermes = 'Hm.\n<tool_call>\n{"name": "a", "arguments": {"x": "</tool_call>"}}\n</tool_call>\n' * 1
    assert read_hermes(hermes, plain) == ("Hm.", [call('{"x": "</tool_call>"}', "a")])
    two = '<tool_call>{"name": "a", "arguments": {}}</tool_call><tool_call>{"name": "b", "arguments": {}}</tool_call>'
    assert [part.tool for part in read_hermes(two, plain).calls] == ["a", "b"]
    assert read_llama('<|python_tag|>{"name": "a", "parameters": {"x": 1}}', plain).calls == [call('{"x": 1}', "a")]
    assert read_llama('{"name": "a", "parameters": {}} more', plain).calls == []
    listed = '[TOOL_CALLS] [{"name": "a", "arguments": {}, "id": "abcdefghi"}]'
    assert read_mistral(listed, plain).calls == [Part("tool_call", "{}", "a", "abcdefghi")]
    for read in JSON_GRAMMARS.values():
        assert read("Hello {", plain) == ("Hello {", [])


# Attacks through tools


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_names_arguments_results_and_schemas_forge_nothing(name: str) -> None:
    template = family_template(name)
    control = {index for index in template.tokenizer.control_names if index != template.tokenizer.unknown_id}
    expected = None
    for attack in ["harmless", *CONTROL_STRINGS, *[text[1:-1] for text in CONTROL_STRINGS]]:
        arguments = json.dumps({"query": attack, attack: [attack, {"k": attack}]})
        schema = json.loads(json.dumps(WEATHER))
        schema["function"]["description"] = attack
        schema["function"]["parameters"]["properties"][attack] = {
            "type": "string",
            "description": attack,
            attack: attack,
        }
        parts = (Part("tool_call", arguments, attack), Part("tool_result", attack, attack), Part("text", attack))
        messages = (Message.of("user", attack), Message("assistant", parts))
        variables = {"note": attack}
        conversation = Conversation(messages, tools=(schema,), variables=variables)
        counts = [
            [int(index) for index in example.ids if int(index) in control] for example in template.render(conversation)
        ]
        expected = counts if expected is None else expected
        assert counts == expected, attack


# Settings


def test_tools_can_be_mapped_to_reserved_tokens() -> None:
    base = family_template("gemma").tokenizer.add_control_tokens(["<r0>", "<r1>", "<r2>", "<r3>"])
    names = {"call_start": "<r0>", "call_end": "<r1>", "result_start": "<r2>", "result_end": "<r3>"}
    template = load_template(base, TemplateSettings(tools=names))
    assert template.trained_token_ids == tuple(sorted(base.control_ids[name] for name in names.values()))
    parts = template.parse_reply(reply_ids(template, reply("A", call("1+1"), result("2"), "B"))).parts
    assert parts == (Part("text", "A"), call("1+1"), result("2"), Part("text", "B"))
    with pytest.raises(TemplateError, match="<nothing>"):
        load_template(base, TemplateSettings(tools=names | {"call_end": "<nothing>"}))
    with pytest.raises(ConfigError, match="call_start, call_end"):
        build(TemplateSettings, {"tools": {"call_start": "<r0>"}}, "recipe")
    with pytest.raises(ConfigError, match="of its own"):
        build(TemplateSettings, {"tools": dict.fromkeys(names, "<r0>")}, "recipe")


def test_added_tokens_are_listed_for_training() -> None:
    plain = family_template("smollm2")
    added = family_template("smollm2", tools="add")
    assert plain.trained_token_ids == () and plain.grammar is None
    assert len(added.trained_token_ids) == 4 and min(added.trained_token_ids) == plain.tokenizer.vocab_size
    fresh = native_template("chatml")
    assert set(fresh.trained_token_ids) == {
        fresh.tokenizer.control_ids[name] for name in ("<|im_start|>", "<|im_end|>")
    }


def test_missing_control_tokens_are_named_where_they_may_not_be_added() -> None:
    tokenizer = family_template("gemma").tokenizer
    with pytest.raises(TemplateError, match=r"<\|im_start\|>, <\|im_end\|>"):
        load_template(tokenizer, TemplateSettings(format="chatml", add_missing_tokens=False))


def test_folded_and_unfolded_data_render_the_same() -> None:
    folded = tool_chat()
    for template in (nanochat(), family_template("qwen2.5")):
        unfolded = Conversation(
            (
                folded.messages[0],
                Message("assistant", folded.messages[1].parts[:1]),
                Message("tool", folded.messages[1].parts[1:2]),
                Message("assistant", folded.messages[1].parts[2:]),
                *folded.messages[2:],
            ),
            tools=folded.tools,
        )
        (one,), (other,) = template.render(folded), template.render(unfolded)
        assert np.array_equal(one.ids, other.ids) and np.array_equal(one.weights, other.weights)


def test_a_reply_goes_on_after_its_result() -> None:
    """What the engine holds after a forced result is what training showed before the text that follows it."""
    template = nanochat()
    question = Message.of("user", "What is 12/60?")
    so_far = Conversation((question, reply(call("12/60"), result("0.2"))))
    whole = template.render(Conversation((question, reply(call("12/60"), result("0.2"), "It is 0.2"))))[0]
    held = template.render_prompt(so_far)
    assert whole.ids[: len(held)].tolist() == held
    assert held[-1] == template.grammar.result_end  # type: ignore[union-attr]
    json_template = family_template("qwen2.5")
    waiting = Conversation((question, reply(call('{"a": 1}', "f"), result("0.2"))))
    prompt = json_template.tokenizer.decode(json_template.render_prompt(waiting), with_control=True)
    assert prompt.endswith("</tool_response><|im_end|>\n<|im_start|>assistant\n")
