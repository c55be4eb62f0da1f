"""Templates for lint tests, on a tokenizer of single bytes that needs no training."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from chatwright.templates.native_jinja import CHATML_JINJA
from chatwright.templates.template import Template, TemplateSettings, load_template
from chatwright.templates.tokenizer import TextTokenizer

CONTROL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
LLAMA2_JINJA = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
OTHER_JINJA = CHATML_JINJA.replace("<|im_start|>", "<s>").replace("<|im_end|>", "</s>")


@cache
def byte_tokenizer(chat_template: str | None = None) -> TextTokenizer:
    """256 bytes and the control tokens; `<s>` begins a text, `</s>` ends it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(CONTROL)
    folder = Path(mkdtemp())
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", **({"chat_template": chat_template} if chat_template else {})}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return TextTokenizer.load(folder)


def chatml() -> Template:
    """ChatML for a tokenizer without a chat template."""
    return load_template(byte_tokenizer(), TemplateSettings(format="chatml"))


def llama2() -> Template:
    """A template whose roles are plain text."""
    return load_template(byte_tokenizer(LLAMA2_JINJA), TemplateSettings(format="jinja"))


def chatml_over(chat_template: str) -> Template:
    """ChatML chosen for a model that ships another chat template."""
    return load_template(byte_tokenizer(chat_template), TemplateSettings(format="chatml"))
