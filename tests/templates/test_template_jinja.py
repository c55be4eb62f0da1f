"""Jinja templates: the same tokens as transformers, refused where they can't be trained as they are served."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from template_families import (
    FAMILIES,
    LLAMA3,
    WEATHER,
    chat,
    family_folder,
    family_template,
    native_template,
    tool_chat,
)
from template_strategies import conversations

from chatwright.conversations.schema import Conversation, Message, Part
from chatwright.errors import TemplateError
from chatwright.templates import jinja_program
from chatwright.templates.jinja_program import JinjaProgram
from chatwright.templates.laws import check_laws, trained_spans
from chatwright.templates.template import Template, TemplateSettings, TrainOn, load_template
from chatwright.templates.tokenizer import TextTokenizer
from shared_files import shared

transformers = pytest.importorskip("transformers")


def outline_text(template: Template, conversation: Conversation) -> str:
    (outline, *_) = template.outline(conversation, TrainOn.EVERYTHING)
    names = template.tokenizer.control_names
    return "".join(p.content if isinstance(p.content, str) else names[p.content] for p in outline.pieces)


def plain_messages(conversation: Conversation) -> list[dict[str, Any]]:
    """OpenAI's shape, made independently of the package."""
    rows: list[dict[str, Any]] = []
    for message in conversation.messages:
        row: dict[str, Any] = {"role": message.role, "content": message.text}
        calls = [part for part in message.parts if part.kind == "tool_call"]
        thoughts = [part.text for part in message.parts if part.kind == "thinking"]
        if message.role == "tool":
            row |= {"content": message.parts[0].text, "tool_call_id": "call00000", "name": message.parts[0].tool}
        if thoughts:
            row["reasoning_content"] = thoughts[0]
        if calls:
            row["tool_calls"] = [
                {"type": "function", "id": "call00000", "function": {"name": c.tool, "arguments": json.loads(c.text)}}
                for c in calls
            ]
        rows.append(row)
    return rows


def theirs(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)


def with_template(text: str, name: str = "qwen3", **options: Any) -> Template:
    tokenizer = TextTokenizer.load(family_folder(name)).with_chat_templates({"default": text})
    return load_template(tokenizer, TemplateSettings(format="jinja", **options))


CHATS = [
    chat("What is 2+2?", "4"),
    chat("Hi", "Hello! How can I help?", "Tell me a joke.", "Why did the byte cross the bus?"),
    chat("你好", "你好！有什么可以帮你的吗？"),
]


@pytest.mark.parametrize("name", FAMILIES)
def test_ids_equal_apply_chat_template(name: str) -> None:
    today = datetime.date.today().isoformat()
    template = family_template(name) if name != "llama3" else with_template(LLAMA3, "llama3", variables={"now": today})
    tokenizer = theirs(family_folder(name))
    for conversation in [*CHATS, *([] if name == "mistral" else [chat("Hi", "Hello!", system="Be terse.")])]:
        rows = plain_messages(conversation)
        expected = tokenizer.apply_chat_template(rows, return_dict=False)
        if template.render(conversation)[-1].ids.tolist() != expected:
            # only a merge across the header may differ: then the text is the same, and the laws count it
            assert outline_text(template, conversation) == tokenizer.apply_chat_template(rows, tokenize=False)
            assert "would give other tokens" in check_laws(template, [conversation])[0].detail
        prompt = tokenizer.apply_chat_template(rows[:-1], add_generation_prompt=True, return_dict=False)
        cut = Conversation(conversation.messages[:-1])
        if len(rows) < 4:  # a history's replies are split where they were generated
            assert template.render_prompt(cut) == prompt


@pytest.mark.parametrize("name", ["qwen2.5", "qwen3", "mistral"])
def test_tool_conversations_render_as_in_transformers(name: str) -> None:
    template, tokenizer = family_template(name), theirs(family_folder(name))
    arranged = template.arranged(tool_chat())
    expected = tokenizer.apply_chat_template(plain_messages(arranged), tools=[WEATHER], tokenize=False)
    assert outline_text(template, tool_chat()) == expected


def test_minimind_tools_and_thinking_render_as_in_transformers() -> None:
    folder = shared("data/tokenizers/minimind")
    template = load_template(TextTokenizer.load(folder), TemplateSettings(model_writes_thinking=True))
    thought = (Part("thinking", "Rain?"), Part("tool_call", '{"city": "Paris"}', "get_weather"))
    messages = (
        Message.of("system", "Be terse."),
        Message.of("user", "Weather?"),
        Message("assistant", thought),
        Message("tool", (Part("tool_result", "rain", "get_weather"),)),
        Message("assistant", (Part("thinking", "Umbrella."), Part("text", "Take an umbrella."))),
    )
    conversation = Conversation(messages, tools=(WEATHER,))
    expected = theirs(folder).apply_chat_template(plain_messages(conversation), tools=[WEATHER], tokenize=False)
    assert outline_text(template, conversation) == expected
    assert all(result.passed for result in check_laws(template, [conversation]))
    (example,) = template.render(conversation)
    trained = [
        template.tokenizer.decode(example.ids[a:b].tolist(), with_control=True) for a, b in trained_spans(example)
    ]
    call = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
    assert trained == [
        f"<think>\nRain?\n</think>\n\n{call}<|im_end|>",
        "<think>\nUmbrella.\n</think>\n\nTake an umbrella.<|im_end|>",
    ]


@pytest.mark.parametrize("name", ["nanochat", "chatml", "minimind"])
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_native_formats_equal_their_jinja(name: str, data: st.DataObject) -> None:
    native = native_template(name, add_tokens=("<think>", "</think>"))
    tokenizer = native.tokenizer.with_chat_templates({"default": native.jinja})
    jinja = load_template(tokenizer, TemplateSettings(format="jinja"))
    conversation = data.draw(conversations())
    for ours, same in zip(native.render(conversation), jinja.render(conversation), strict=True):
        assert ours.ids.tolist() == same.ids.tolist()
        assert ours.weights.tolist() == same.weights.tolist()
    prompt = Conversation(conversation.messages[:-1])
    assert native.render_prompt(prompt) == jinja.render_prompt(prompt)
    assert set(native.stop_ids) == set(jinja.stop_ids)


@pytest.mark.parametrize("name", ["nanochat", "chatml", "minimind"])
def test_native_formats_equal_transformers(name: str, tmp_path: Path) -> None:
    native = native_template(name)
    native.tokenizer.save(tmp_path, chat_template=native.jinja, stop_ids=native.stop_ids)
    tokenizer = theirs(tmp_path)
    for conversation in [*CHATS, chat("Hi", "Hello!", system="Be terse.")]:
        rows = plain_messages(conversation)
        assert outline_text(native, conversation) == tokenizer.apply_chat_template(rows, tokenize=False)
        assert native.render(conversation)[0].ids.tolist() == tokenizer.apply_chat_template(rows, return_dict=False)
        prompt = tokenizer.apply_chat_template(rows[:-1], add_generation_prompt=True, return_dict=False)
        assert native.render_prompt(Conversation(conversation.messages[:-1])) == prompt


TURN = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ CONTENT }}<|im_end|>\n{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


@pytest.mark.parametrize(
    "content",
    ["m.content | e", "m.content | urlencode", "m.content | pprint", "[m.content]", "m.content | tojson(true)"],
)
def test_a_template_that_alters_sentinels_is_refused(content: str) -> None:
    template = with_template(TURN.replace("CONTENT", content) + PROMPT)
    with pytest.raises(TemplateError, match=r"rewrite|can't be kept apart"):
        template.render(chat("a < b", "Hello"))


def test_text_that_spells_sentinels_is_no_reason_to_refuse() -> None:
    template = with_template(TURN.replace("CONTENT", "m.content") + PROMPT)
    text = "a < b \\ue000 &#xe000; &#57344; %EE%80%80 \ue000\ue001"
    (example,) = template.render(chat(text, text))
    assert template.tokenizer.decode(example.ids.tolist()).count(text) == 2


def test_a_name_in_angle_brackets_forges_nothing() -> None:
    """Qwen3-Coder writes `<` + key + `>`: a key `think` must not become the control token `<think>`."""
    turn = "{% for m in messages %}<|im_start|>{{ m.role }}\n<{{ m.content }}><|im_end|>\n{% endfor %}"
    template = with_template(turn + "{% if add_generation_prompt %}<|im_start|>assistant\n<{% endif %}")
    (example,) = template.render(chat("think", "tool_call"))
    control = template.tokenizer.control_ids
    assert control["<think>"] not in example.ids and control["<tool_call>"] not in example.ids
    assert "<think>" in template.tokenizer.decode(example.ids.tolist())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (TURN.replace("CONTENT", "m.content"), "generation prompt lacks"),
        (TURN.replace("CONTENT", "m.content").replace("<|im_end|>\n", "\n") + PROMPT, "end of turn"),
        (
            TURN.replace("CONTENT", "m.content") + "{% if add_generation_prompt %}Bot: {% endif %}",
            "begin with its prompt",
        ),
        (TURN.replace("CONTENT", "m.role") + PROMPT, "doesn't render the text"),
        ("{% for m in messages %}", "valid Jinja"),
        ("{{ messages[0].content.nothing.at_all }}", "fails"),
        ("{{ raise_exception('no') }}", "refuses the conversation: no"),
    ],
)
def test_templates_that_cannot_be_trained_as_served_are_refused(text: str, words: str) -> None:
    with pytest.raises(TemplateError, match=words):
        with_template(text)


def test_a_prompt_that_opens_thinking_the_reply_lacks_is_explained() -> None:
    template = PROMPT.replace("assistant\n", "assistant\n<think>\n")
    with pytest.raises(TemplateError, match="model_writes_thinking"):
        with_template(TURN.replace("CONTENT", "m.content") + template)
    freed = with_template(TURN.replace("CONTENT", "m.content") + template, model_writes_thinking=True)
    assert all(result.passed for result in check_laws(freed, [chat("Hi", "Hello")]))


def test_a_template_that_hides_the_system_message_later_is_refused_with_the_row() -> None:
    conversation = Conversation(chat("Hi", "Hello!", system="Be terse.").messages, source="data.jsonl", row=7)
    with pytest.raises(TemplateError, match=r"data\.jsonl, row 7"):
        family_template("mistral").render(conversation)


def test_tools_are_refused_by_name_where_there_is_no_grammar() -> None:
    no_offer = Conversation(tool_chat().messages)
    for template in (family_template("gemma"), native_template("chatml"), family_template("qwen2.5", tools="none")):
        with pytest.raises(TemplateError, match="get_weather"):
            template.render(no_offer)
    with pytest.raises(TemplateError, match="offers the tools get_weather"):
        family_template("gemma").render(tool_chat())


def test_tools_in_a_form_nobody_can_read_back_are_refused() -> None:
    turn = TURN.replace("CONTENT", "m.content") + PROMPT
    calls = (
        "{% for c in m.tool_calls or [] %}CALL {{ c.function.name }} {{ c.function.arguments | tojson }}{% endfor %}"
    )
    offer = "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}"
    template = with_template(offer + turn.replace("<|im_end|>", calls + "<|im_end|>"))
    with pytest.raises(TemplateError, match="read back"):
        template.render(Conversation(tool_chat().messages))


def test_thinking_is_refused_where_it_would_be_dropped() -> None:
    conversation = Conversation(
        (Message.of("user", "Hi"), Message("assistant", (Part("thinking", "Hm."), Part("text", "Hello"))))
    )
    with pytest.raises(TemplateError, match="thinking"):
        family_template("llama3").render(conversation)
    template = family_template("llama3", add_tokens=("<think>", "</think>"))
    assert all(result.passed for result in check_laws(template, [conversation]))


def test_time_and_size_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jinja_program, "MAX_ROUNDS", 20_000)

    def render(text: str) -> str:
        return JinjaProgram(text).render([{"role": "user", "content": "x"}], None, {}, add_generation_prompt=False)

    loops = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    stored = "{% set r = range(99999) %}{% for i in r %}{% for j in r %}{% endfor %}{% endfor %}"
    recursive = "{% for i in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}"
    for text in (loops, stored, recursive, "{{ 'a' * 10**10 }}", "{{ 10 ** 10 ** 10 }}", "{{ '%99999999999d' % 1 }}"):
        with pytest.raises(TemplateError, match=r"stopped after|RecursionError"):
            render(text)
    for text in ("{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ cycler.__init__.__globals__ }}"):
        with pytest.raises(TemplateError, match="fails"):
            render(text)
    monkeypatch.setattr(jinja_program, "MAX_SECONDS", -1.0)
    with pytest.raises(TemplateError, match="more than"):
        render("{% for i in [1] %}{% endfor %}")


def test_the_environment_is_that_of_transformers() -> None:
    def render(text: str) -> str:
        return JinjaProgram(text).render([{"role": "user", "content": "x"}], None, {}, add_generation_prompt=False)

    assert render("{{ strftime_now('%d %b %Y') }}") == "01 Jan 2025"
    assert render("{% generation %}{{ messages[0].content }}{% endgeneration %}") == "x"
    loop = "{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{{ loop.last }}{% endfor %}"
    assert render(loop) == "1False"
    nested = "{% for i in [1, [2, [3]]] recursive %}{{ loop(i) if i is iterable else i }}{% endfor %}"
    assert render(nested) == "123"
    assert render("{% for m in messages | selectattr('role', 'equalto', 'user') %}{{ loop.length }}{% endfor %}") == "1"
    assert render("{% for x in nothing %}{{ x }}{% else %}none{% endfor %}") == "none"
    assert render("{{ {'a': '<é>'} | tojson }}") == '{"a": "<é>"}'


def test_the_date_is_a_variable_and_part_of_the_identity() -> None:
    plain, dated = family_template("llama3"), with_template(LLAMA3, "llama3", variables={"now": "2024-07-26"})
    assert "26 Jul 2024" in outline_text(dated, chat("Hi", "Hello"))
    assert plain.identity != dated.identity
    assert plain.identity == with_template(LLAMA3, "llama3").identity


def test_conversation_variables_reach_the_template_escaped() -> None:
    template = family_template("qwen3")
    base = chat("Hi", "Hello")
    off = Conversation(base.messages, variables={"enable_thinking": False})
    names = template.tokenizer
    prompt = template.render_prompt(Conversation(base.messages[:1], variables=off.variables))
    ending = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert names.decode(prompt, with_control=True).endswith(ending)
    (example,) = template.render(off)
    ((start, end),) = trained_spans(example)
    assert names.decode(example.ids[start:end].tolist(), with_control=True) == "Hello<|im_end|>"
    shown = with_template("{{ note }}" + TURN.replace("CONTENT", "m.content") + PROMPT)
    (example,) = shown.render(Conversation(base.messages, variables={"note": "<|im_start|>"}))
    assert (example.ids == shown.tokenizer.control_ids["<|im_start|>"]).sum() == 2


def test_settings_are_settled_so_that_a_saved_model_loads_the_same(tmp_path: Path) -> None:
    native = native_template("nanochat", tools="auto")
    auto = load_template(TextTokenizer.load(family_folder("smollm2")))
    assert auto.settings.format == "jinja"
    native.tokenizer.save(tmp_path, chat_template=native.jinja, stop_ids=native.stop_ids)
    again = load_template(TextTokenizer.load(tmp_path), native.settings, folder=tmp_path)
    assert type(again) is type(native) and again.identity == native.identity
    assert again.stop_ids == native.stop_ids and again.trained_token_ids == ()


def test_default_system_is_given_only_where_there_is_none() -> None:
    template = family_template("qwen2.5", default_system="Be kind.")
    assert "Be kind." in outline_text(template, chat("Hi", "Hello"))
    assert "Be kind." not in outline_text(template, chat("Hi", "Hello", system="Be terse."))
    assert all(result.passed for result in check_laws(template, [chat("Hi", "Hello")]))


def test_templates_say_whether_text_can_imitate_roles() -> None:
    found = {name: family_template(name).delimiters for name in FAMILIES}
    assert found == {**dict.fromkeys(FAMILIES, "tokens"), "llama2": "text"}
    (_, law, *_) = check_laws(family_template("llama2"), [chat("Hi", "Hello")])
    assert law.passed and "imitate" in law.detail
    assert native_template("chatml").delimiters == "tokens"
