"""Small templates that behave like the well-known families, with tiny tokenizers trained here."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from chatwright.conversations.schema import Conversation, Message, Part
from chatwright.templates.template import Template, TemplateSettings, load_template
from chatwright.templates.tokenizer import TextTokenizer

CORPUS = [
    "What is the capital of France? The capital of France is Paris. It is 0.2, so 12/60 = 0.2.",
    "user assistant system tool model name arguments parameters <tool_call> the think result get_weather city Paris",
    "Hello! How can I help you today?\n\nTell me a joke.\nWhy did the byte cross the bus?\n",
    "    indented code\n\treturn a + b  # comment\n",
    "你好！有什么可以帮你的吗？ 你叫什么名字？",
] * 4

_TOOLS_HERMES = (
    '\\n\\n# Tools\\n\\nYou may call one or more functions to assist with the user query.\\n\\n<tools>" }}'
    '{%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}{{- "\\n</tools>\\n\\nReturn a json object '
    "within <tool_call></tool_call> XML tags"
)
_HERMES_CALLS = (
    "{%- for tool_call in message.tool_calls %}"
    "{%- if tool_call.function is defined %}{%- set tool_call = tool_call.function %}{%- endif %}"
    '{{- JOIN + \'<tool_call>\\n{"name": "\' + tool_call.name + \'", "arguments": \' }}'
    "{{- tool_call.arguments | tojson }}{{- '}\\n</tool_call>' }}{%- endfor %}"
)
_HERMES_RESULTS = """
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\\n' }}{%- endif %}
"""

QWEN25 = (
    """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content }}{%- else %}{{- 'You are helpful.' }}{%- endif %}
    {{- \""""
    + _TOOLS_HERMES
    + """<|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) or
           (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}{{- '\\n' + message.content }}{%- endif %}
        """
    + _HERMES_CALLS.replace("JOIN", "'\\n'")
    + "{{- '<|im_end|>\\n' }}"
    + _HERMES_RESULTS
    + """    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
)

QWEN3 = (
    """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- \""""
    + _TOOLS_HERMES
    + """<|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and
           not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or (not loop.last and reasoning_content)) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') }}
            {{- '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}"""
    + _HERMES_CALLS.replace("JOIN", "('\\n' if (loop.first and content) or (not loop.first) else '')")
    + """{%- endif %}
        {{- '<|im_end|>\\n' }}"""
    + _HERMES_RESULTS
    + """    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""
)

LLAMA3 = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system_message = "" %}{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Cutting Knowledge Date: December 2023\\nToday Date: " + strftime_now("%d %b %Y") + "\\n\\n" }}
{%- if tools is not none %}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}
{%- endif %}
{{- system_message }}{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
        {{- '{"name": "' + tool_call.name + '", ' }}{{- '"parameters": ' }}{{- tool_call.arguments | tojson }}{{- "}" }}
        {{- "<|eot_id|>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}{{- message.content | tojson }}
        {%- else %}{{- message.content }}{%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""

MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}{%- set loop_messages = messages[1:] %}
{%- else %}{%- set loop_messages = messages %}{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}{{- tool | tojson }}{%- if not loop.last %}{{- ", " }}{%- endif %}{%- endfor %}
            {{- "][/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}{{- "[INST] " + message["content"] + "[/INST]" }}{%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS] [" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function|tojson %}{{- out[:-1] }}
            {%- if not tool_call.id is defined or tool_call.id|length != 9 %}
                {{- raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}
            {%- endif %}
            {{- ', "id": "' + tool_call.id + '"}' }}
            {%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" + eos_token }}{%- endif %}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}{{- " " + message["content"]|trim + eos_token}}
    {%- elif message["role"] == "tool" %}
        {{- '[TOOL_RESULTS] {"content": ' + message.content|string + ", " }}
        {%- if not message.tool_call_id is defined or message.tool_call_id|length != 9 %}
            {{- raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}
        {%- endif %}
        {{- '"call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- endif %}
{%- endfor %}"""

GEMMA = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first_user_prefix = messages[0]['content'] + '\\n\\n' -%}{%- set loop_messages = messages[1:] -%}
{%- else -%}{%- set first_user_prefix = "" -%}{%- set loop_messages = messages -%}{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}{%- set role = "model" -%}
    {%- else -%}{%- set role = message['role'] -%}{%- endif -%}
    {{ '<start_of_turn>' + role + '\\n' + (first_user_prefix if loop.first else "") }}
    {{- message['content'] | trim }}{{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{'<start_of_turn>model\\n'}}{%- endif -%}"""

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful AI assistant named SmolLM<|im_end|>\\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

PHI3 = (
    "{% for message in messages %}{{'<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)

LLAMA2 = """{%- if messages[0]['role'] == 'system' %}
    {%- set loop_messages = messages[1:] %}{%- set system_message = messages[0]['content'] %}
{%- else %}{%- set loop_messages = messages %}{%- set system_message = false %}{%- endif %}
{%- for message in loop_messages %}
    {%- if loop.index0 == 0 and system_message != false %}
        {%- set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}
    {%- else %}{%- set content = message['content'] %}{%- endif %}
    {%- if message['role'] == 'user' %}{{- bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
    {%- elif message['role'] == 'assistant' %}{{- ' '  + content.strip() + ' ' + eos_token }}{%- endif %}
{%- endfor %}"""

_CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_HERMES = ["<tool_call>", "</tool_call>", "<think>", "</think>"]

FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2.5": {
        "template": QWEN25,
        "special": _CHATML,
        "added": _HERMES[:2],
        "eos": "<|im_end|>",
        "kind": "nfc",
    },
    "qwen3": {"template": QWEN3, "special": _CHATML, "added": _HERMES, "eos": "<|im_end|>", "kind": "nfc"},
    "llama3": {
        "template": LLAMA3,
        "special": ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "bos": "<|begin_of_text|>",
        "eos": "<|eot_id|>",
        "kind": "ignore_merges",
    },
    "mistral": {
        "template": MISTRAL,
        "special": [
            *("<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
            *("[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
        ],
        "bos": "<s>",
        "eos": "</s>",
        "kind": "sentencepiece",
    },
    "gemma": {
        "template": GEMMA,
        "special": ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"],
        "added": ["\n\n", "▁▁"],
        "bos": "<bos>",
        "eos": "<eos>",
        "kind": "gemma",
    },
    "smollm2": {"template": SMOLLM2, "special": _CHATML, "eos": "<|im_end|>", "kind": "bytes"},
    "phi3": {
        "template": PHI3,
        "special": ["<s>", "<|endoftext|>"],
        "rstrip": ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"],
        "bos": "<s>",
        "eos": "<|endoftext|>",
        "kind": "sentencepiece",
    },
    "llama2": {"template": LLAMA2, "special": ["<s>", "</s>"], "bos": "<s>", "eos": "</s>", "kind": "unigram"},
}
WITH_TOOLS = ("qwen2.5", "qwen3", "llama3", "mistral")
WITH_THINKING = ("qwen3",)


def train_tokenizer(kind: str, control: list[str]) -> Tokenizer:
    """A tiny tokenizer of one of the builds that real families have; `control` strings get vocabulary entries."""
    if kind in ("bytes", "nfc", "ignore_merges"):
        tokenizer = Tokenizer(models.BPE(ignore_merges=kind == "ignore_merges"))
        tokenizer.normalizer = normalizers.NFC() if kind == "nfc" else None
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=500, special_tokens=control, initial_alphabet=alphabet, show_progress=False
        )
    elif kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
        characters = sorted({c for text in CORPUS for c in text} | set(map(chr, range(32, 127))))
        trainer = trainers.UnigramTrainer(
            vocab_size=400, special_tokens=["<unk>", *control], unk_token="<unk>", initial_alphabet=characters,
            show_progress=False,
        )  # fmt: skip
    else:
        fallback = [f"<0x{value:02X}>" for value in range(256)]
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        prepend = [] if kind == "gemma" else [normalizers.Prepend("▁")]
        tokenizer.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", "▁")])
        strip = [] if kind == "gemma" else [decoders.Strip(" ", 1, 0)]
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
        tokenizer.decoder = decoders.Sequence(steps)
        trainer = trainers.BpeTrainer(
            vocab_size=700, special_tokens=["<unk>", *control, *fallback], show_progress=False, limit_alphabet=120
        )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if kind in ("sentencepiece", "gemma", "unigram"):
        data = json.loads(tokenizer.to_str())
        data["added_tokens"] = [token for token in data["added_tokens"] if not token["content"].startswith("<0x")]
        tokenizer = Tokenizer.from_str(json.dumps(data))
    return tokenizer


@cache
def family_folder(name: str) -> Path:
    """A folder with the family's tokenizer and chat template, as Hugging Face models have them."""
    family = FAMILIES[name]
    special, plain, rstrip = family["special"], family.get("added", []), family.get("rstrip", [])
    tokenizer = train_tokenizer(family["kind"], [*special, *plain, *rstrip])
    data = json.loads(tokenizer.to_str())
    for token in data["added_tokens"]:
        token["special"] = token["content"] not in plain
        token["rstrip"] = token["content"] in rstrip
    folder = Path(mkdtemp(prefix=f"family-{name}-"))
    (folder / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": family["eos"],
        "chat_template": family["template"],
    }
    config |= {"bos_token": family["bos"]} if "bos" in family else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@cache
def family_template(name: str, tools: str = "auto", **options: Any) -> Template:
    """The family's template; `tools="add"` adds in-turn tool tokens."""
    return load_template(TextTokenizer.load(family_folder(name)), TemplateSettings(tools=tools, **options))


@cache
def native_template(name: str, kind: str = "bytes", **options: Any) -> Template:
    """A native format on a tiny tokenizer without any chat tokens."""
    folder = Path(mkdtemp(prefix=f"native-{name}-"))
    (folder / "tokenizer.json").write_text(train_tokenizer(kind, ["<|endoftext|>"]).to_str(), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}', encoding="utf-8")
    return load_template(TextTokenizer.load(folder), TemplateSettings(format=name, **options))


WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def chat(*texts: str, system: str | None = None) -> Conversation:
    """User and assistant in turns."""
    roles = ("user", "assistant")
    messages = [Message.of(roles[index % 2], text) for index, text in enumerate(texts)]
    return Conversation(((Message.of("system", system),) if system is not None else ()) + tuple(messages))


def tool_chat() -> Conversation:
    """A question, a call, its result and the answer, in one assistant turn; then one more plain exchange."""
    parts = (
        Part("tool_call", '{"city": "Paris"}', "get_weather"),
        Part("tool_result", '{"rain": 0.2}', "get_weather"),
        Part("text", "Hardly any rain."),
    )
    messages = (Message.of("user", "Weather in Paris?"), Message("assistant", parts))
    return Conversation((*messages, Message.of("user", "Thanks"), Message.of("assistant", "Bye!")), tools=(WEATHER,))
