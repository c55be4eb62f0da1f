"""The chat templates of real models, as TRL ships them: as transformers renders them and lawful, or refused clearly."""

from __future__ import annotations

import datetime
import importlib.util
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from template_families import chat, native_template, tool_chat

from chatwright.conversations.schema import Conversation, Message, Part
from chatwright.errors import TemplateError
from chatwright.templates.laws import check_laws
from chatwright.templates.template import Template, TemplateSettings, TrainOn, load_template
from chatwright.templates.tokenizer import TextTokenizer

chat_template_utils = pytest.importorskip("transformers.utils.chat_template_utils")
_TRL = importlib.util.find_spec("trl")
FOLDER = Path(_TRL.origin).parent / "chat_templates" if _TRL and _TRL.origin else Path("absent")
FILES = sorted(FOLDER.glob("*.jinja"))
QUICK = {
    *("cohere", "deepseek_r1_distill", "gemma3", "glm4moe_training", "llama3_1", "phi3", "qwen2_5", "qwen3"),
    *("nemotron_3_nano", "qwen3_5_think", "lfm2"),
}
REFUSED = {
    "glm4moe": "end of turn",  # the next user's header ends a turn
    "gptoss": "generation prompt lacks",  # the model itself writes `<|channel|>final<|message|>`
    "gptoss_training": "generation prompt lacks",
    "muse_glimmer": "generation prompt lacks",
    "muse_glimmer_training": "generation prompt lacks",
    **dict.fromkeys(("idefics3", "idefics3_training", "smolvlm", "smolvlm_training"), "doesn't render the text"),
    **dict.fromkeys(("llava_next", "llava_next_training"), "fails"),
}
_TAG = re.compile(r"<[|｜/]?[A-Za-z_][^<>\n{}'\" =+~]*>|\[/?[A-Z_]{3,}\]")
_END = re.compile(r"eot_id|im_end|end_of_turn|end▁of|endoftext|END_OF_TURN|turn\|>")
pytestmark = pytest.mark.skipif(not FILES, reason="trl isn't installed; its chat templates are the test's data")

THOUGHTS = Conversation(
    (
        Message.of("user", "Hi"),
        Message("assistant", (Part("thinking", "Hm."), Part("text", "Hello"))),
        Message.of("user", "And?"),
        Message("assistant", (Part("thinking", "So."), Part("text", "Bye"))),
    )
)


@cache
def tokenizer_for(text: str) -> tuple[TextTokenizer, str, str]:
    """A tiny tokenizer with the control strings that a template writes, and its begin- and end-of-text."""
    tags = list(dict.fromkeys(_TAG.findall(text)))
    tags = [tag for tag in tags if not any(word in tag for word in ("name>", "args", "example", "param", "tools>"))]
    bos = next((tag for tag in tags if re.search(r"begin|startoftext|<bos>", tag)), "<s>")
    eos = next((tag for tag in tags if _END.search(tag)), "</s>")
    base = native_template("minimind").tokenizer
    return base.add_control_tokens([bos, eos, *tags]).with_special(bos_token=bos, eos_token=eos), bos, eos


def load(path: Path, **options: Any) -> Template:
    text = path.read_text(encoding="utf-8")
    tokenizer = tokenizer_for(text)[0].with_chat_templates({"default": text})
    now = {"now": datetime.date.today().isoformat()}
    return load_template(tokenizer, TemplateSettings(format="jinja", variables=now, **options))


def outline_text(template: Template, conversation: Conversation) -> str:
    (outline, *_) = template.outline(conversation, TrainOn.EVERYTHING)
    names = template.tokenizer.control_names
    return "".join(p.content if isinstance(p.content, str) else names[p.content] for p in outline.pieces)


def lawful(template: Template, conversation: Conversation) -> None:
    assert [result.failures for result in check_laws(template, [conversation]) if not result.passed] == []


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.stem, marks=() if path.stem in QUICK else pytest.mark.slow) for path in FILES],
)
def test_a_real_template(path: Path) -> None:
    if path.stem in REFUSED:
        with pytest.raises(TemplateError, match=REFUSED[path.stem]):
            load(path)
        return
    try:
        template = load(path)
    except TemplateError as error:
        assert "model_writes_thinking" in str(error)
        template = load(path, model_writes_thinking=True)
    text = path.read_text(encoding="utf-8")
    _, bos, eos = tokenizer_for(text)
    for conversation in (chat("What is 2+2?", "4", "More", " Yes \n"), chat("Hi", "Hello!", system="Be terse.")):
        rows = [{"role": message.role, "content": message.text} for message in conversation.messages]
        if "System role not supported" in text and rows[0]["role"] == "system":
            with pytest.raises(TemplateError, match=r"row 0.*System role not supported"):
                template.render(conversation)
            continue
        expected = chat_template_utils.render_jinja_template([rows], chat_template=text, bos_token=bos, eos_token=eos)
        assert outline_text(template, conversation) == expected[0][0]
        lawful(template, conversation)
    inline = load(path, tools="add", add_tokens=("<think>", "</think>"), model_writes_thinking=True)
    for conversation in (THOUGHTS, tool_chat()):
        lawful(inline, conversation)
        try:
            lawful(template, conversation)
        except TemplateError as error:
            assert "→" in str(error)  # refused, with what to do next
